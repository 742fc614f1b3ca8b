"""`yanchat audit`: whether the books of all nodes balance, and which messages are in doubt when they do not."""

from __future__ import annotations

import datetime
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from yanchat.cli.call import Call, run_async
from yanchat.cli.render import Columns, note, warn
from yanchat.errors import Unhealthy, Unreachable, UsageError

if TYPE_CHECKING:
    from yanchat.admin.accounts import NodeBooks
    from yanchat.cli.comparing import Compared
    from yanchat.cli.nodes import Cluster
    from yanchat.cli.witnesses import Silent, Witness

NUMBERS = ("accepted", "adopted", "delivered", "pending", "expired", "failed", "moved")
COLUMNS: Columns = (
    ("NODE", "node"),
    ("ACCEPTED", "accepted"),
    ("ADOPTED", "adopted"),
    ("DELIVERED", "delivered"),
    ("PENDING", "pending"),
    ("EXPIRED", "expired"),
    ("FAILED", "failed"),
    ("MOVED", "moved"),
    ("BALANCED", "balanced"),
)
DOUBTS: Columns = (("NODE", "node"), ("MESSAGE", "message_id"), ("TO", "to"), ("DOUBT", "sentence"))


class Audit(NamedTuple):
    """What all nodes say, each for itself and between one another."""

    books: Sequence[tuple[Witness, NodeBooks]]
    silent: Sequence[Silent]
    compared: Compared


def audit(
    call: Call,
    since: Annotated[
        str | None,
        typer.Option(metavar="1h|TIME", help="Only what was accepted since then; the durable counters are left out."),
    ] = None,
    admin_token_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="For nodes of other machines, else admin.token_file of the settings."),
    ] = None,
) -> int:
    """Prove that no message is lost: the books of each node, and of all against one another.

    On each node accepted + adopted = delivered + pending + expired + failed + moved; what was counted when it was
    stored must be there, or be counted as purged. Over all nodes each (message, recipient) has one owner, what has
    moved away has arrived, and what was acked is known where it was accepted. Exit code 10 when anything is in doubt,
    4 when it is not, but a node could not be asked.
    """
    from yanchat.cli.witnesses import admin_token

    after = _since(since) if since is not None else 0
    cluster = call.cluster()
    found: Audit = run_async(_audit, cluster, admin_token(cluster, admin_token_file), after)
    document = summary(found)
    if call.out.form == "person":
        _show(call, document)
    else:
        call.out.document(document, "")
    for one in found.silent:
        warn(one.why)
    if not document["balanced"]:
        return Unhealthy.exit_code
    return 0 if document["complete"] else Unreachable.exit_code


def _since(text: str) -> int:
    """Milliseconds since the epoch."""
    from yanchat.config.values import parse_option

    try:
        return max(1, int((time.time() - parse_option(text)) * 1000))
    except ValueError:
        pass
    try:
        return max(1, int(datetime.datetime.fromisoformat(text).timestamp() * 1000))
    except (ValueError, OverflowError):
        raise UsageError(f"--since {text!r} is not possible: say 1h, 7d, or a time as 2026-01-31T03:00.") from None


async def _audit(cluster: Cluster, token: str, since: int) -> Audit:
    from yanchat.cli.comparing import compare
    from yanchat.cli.witnesses import Witnesses
    from yanchat.model import Node

    witnesses = Witnesses(cluster, token)
    await witnesses.find()
    heard = await witnesses.ask(lambda witness: witness.books(since))
    if not heard.answers:
        raise Unreachable(" ".join(one.why for one in heard.silent) or "There are no nodes; see --state-dir.")
    purged = {Node(witness.node): books.purged_before or 0 for witness, books in heard.answers}
    return Audit(heard.answers, heard.silent, await compare(witnesses, purged, since))


def summary(found: Audit) -> dict[str, Any]:
    """The document. In all, each (message, recipient) counts once, wherever it has been."""
    import msgspec

    nodes = [{"node": one.node, "runs": one.runs, **msgspec.to_builtins(books)} for one, books in found.books]
    sums = {name: sum(node[name] for node in nodes) for name in NUMBERS}
    again = found.compared.again
    for state, rows in again.items():
        sums[state] -= rows
    sums["accepted"] += sums.pop("adopted") - sums.pop("moved") - again.total()
    doubts = [msgspec.to_builtins(doubt) for doubt in found.compared.doubts]
    return {
        **sums,
        "balanced": all(node["balanced"] for node in nodes) and not doubts,
        "complete": not found.silent,
        "repeated": again.total(),
        "nodes": nodes,
        "doubts": doubts,
        "more_doubts": found.compared.more,
        "silent": [{"node": one.node, "error": one.why} for one in found.silent],
    }


def _show(call: Call, document: dict[str, Any]) -> None:
    yes = {True: "yes", False: "NO"}
    nodes = document["nodes"]
    rows = [{**node, "balanced": yes[node["balanced"]]} for node in nodes]
    if len(rows) > 1:
        rows.append({**dict.fromkeys(NUMBERS), **document, "node": "all", "balanced": yes[document["balanced"]]})
    call.out.table(COLUMNS, rows)
    blank = {"node": None, "message_id": None, "to": None}
    doubts = [{**blank, **doubt, "node": node["node"]} for node in nodes for doubt in node["doubts"]]
    doubts += [{**blank, **doubt} for doubt in document["doubts"]]
    if doubts:
        call.out.line("")
        call.out.table(DOUBTS, doubts)
    if document["more_doubts"]:
        warn(f"{document['more_doubts']} more may be in doubt.")
    if any(not node["counted"] for node in nodes):
        note("What was counted when it was stored is not compared here; call it without --since for that.")
    if document["repeated"]:
        note(f"Requests that were sent again to another node count once in all: {document['repeated']}.")
    if not document["balanced"]:
        warn("The books do not balance. `yanchat trace MESSAGE_ID` tells more of a message.")
    elif document["complete"]:
        note("The books balance.")
    else:
        note("The books of those that answered balance.")
