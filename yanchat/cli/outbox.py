"""`yanchat outbox`: what waits in the nodes of this machine, and what they have given up."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from yanchat.cli.call import Call, run_async
from yanchat.cli.render import Cells, Columns, ago, note
from yanchat.errors import UsageError

COLUMNS: Columns = (
    ("MESSAGE", "message_id"),
    ("FROM", "from"),
    ("TO", "to"),
    ("STATE", "state"),
    ("ATTEMPTS", "attempts"),
    ("ACCEPTED", "accepted_at"),
    ("NODE", "node"),
)
CELLS: Cells = {"accepted_at": lambda at: f"{ago(at)} ago"}
STATES = ("pending", "delivered", "expired", "untold", "moved")
MOST = 10_000


def outbox(
    call: Call,
    to: Annotated[str | None, typer.Option(metavar="OPENID", help="Only messages to this user.")] = None,
    state: Annotated[
        str,
        typer.Option(
            metavar="STATE,…",
            autocompletion=lambda incomplete: [state for state in STATES if state.startswith(incomplete)],
            help="Any of pending, expired (a dead letter), delivered, untold (its sender does not know yet), moved"
            " (another node has adopted it).",
        ),
    ] = "pending,expired",
    node: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Only this node's.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=MOST, metavar="N", help="The oldest so many.")] = 100,
) -> None:
    """List the messages that wait or were given up, on the running nodes of this machine."""
    states = [part.strip() for part in state.split(",") if part.strip()]
    if not states or not set(states) <= set(STATES):
        raise UsageError(f"--state {state!r} is not possible: any of {', '.join(STATES)}, joined by commas.")
    cluster = call.cluster()
    query = {"state": ",".join(states), "limit": str(limit)} | ({"to": to} if to else {})

    async def ask() -> list[dict[str, Any]]:
        answers = await cluster.ask(node, "GET", "/outbox", query=query)
        return [{"node": answer["node"], **row} for answer in answers for row in answer["rows"]]

    rows = sorted(run_async(ask), key=lambda row: (row["accepted_at"], row["node"]))
    call.out.table(COLUMNS, rows[:limit], CELLS)
    if not rows:
        note("Nothing waits." if "pending" in states else "There is nothing of that kind.")
    elif len(rows) >= limit:
        note(f"These are the oldest {limit}; --limit shows more.")
