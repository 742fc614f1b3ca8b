"""`yanchat redeliver`: replay unacked messages now, on the running nodes of this machine."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from yanchat.cli.call import Call, flag, run_async
from yanchat.cli.render import note
from yanchat.errors import NotFound, Refused, UsageError


def redeliver(
    call: Call,
    all_: Annotated[bool, flag("--all", "All that wait.")] = False,
    to: Annotated[str | None, typer.Option(metavar="OPENID", help="Those to this user.")] = None,
    message_id: Annotated[str | None, typer.Option(metavar="ID", help="This message, to all its recipients.")] = None,
    older_than: Annotated[
        str | None, typer.Option(metavar="10m", help="Only those accepted longer ago than that.")
    ] = None,
    dead: Annotated[bool, flag("--dead", "Dead letters too: those that were given up.")] = False,
    node: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Only on this node.")] = None,
    dry_run: Annotated[bool, flag("--dry-run", "Only say what would be redelivered.")] = False,
    yes: Annotated[bool, flag("--yes", "Do not ask.")] = False,
) -> None:
    """Push waiting messages again now, not when they are due.

    Nobody gets a message twice by that: a client that has it knows its id, and it is marked as redelivered.
    """
    order = _order(all_, to, message_id, older_than, dead)
    cluster = call.cluster()

    async def ask(dry: bool) -> list[dict[str, Any]]:
        return await cluster.ask(node, "POST", "/redeliver", body={**order, "dry_run": dry}, quiet=asked and not dry)

    asked = not (yes or dry_run) and sys.stdin.isatty()
    if asked and not _agreed(run_async(ask, True)):
        note("Nothing was done.")
        return
    result = _sum(run_async(ask, dry_run))
    if message_id is not None and not result["selected"]:
        raise NotFound(f"No running node here holds {message_id} as unacked; see `yanchat outbox --state delivered`.")
    call.out.document(result, _sentence(result, dry_run))


def _order(all_: bool, to: str | None, message_id: str | None, older_than: str | None, dead: bool) -> dict[str, Any]:
    from yanchat.config.load import parse_duration
    from yanchat.protocol.frames import check_openid
    from yanchat.protocol.ids import is_message_id

    if not (all_ or to or message_id or older_than):
        raise UsageError("Say which messages: --all, --to OPENID, --message-id ID or --older-than 10m.")
    if all_ and (to or message_id):
        raise UsageError("--all is all of them; leave out --to and --message-id.")
    order: dict[str, Any] = {"all": not (to or message_id), "dead": dead}
    try:
        if to:
            order["to"] = check_openid(to, f"--to {to!r}")
        if older_than:
            order["older_than_s"] = parse_duration(older_than)
    except Refused as refused:
        raise UsageError(str(refused)) from None
    except ValueError as error:
        raise UsageError(f"--older-than {older_than!r} is not possible: {error}.") from None
    if message_id:
        if not is_message_id(message_id):
            raise UsageError(f"--message-id {message_id!r} is none: 32 lower-case hex digits.")
        order["message_id"] = message_id
    return order


def _agreed(would: list[dict[str, Any]]) -> bool:
    selected = _sum(would)["selected"]
    return not selected or typer.confirm(f"Redeliver {_messages(selected)} now?", err=True)


def _sum(answers: list[dict[str, Any]]) -> dict[str, Any]:
    """All answers in one; `node` is null when there were several."""
    return {
        "node": answers[0]["node"] if len(answers) == 1 else None,
        "selected": sum(answer["selected"] for answer in answers),
        "redelivered": sum(answer["redelivered"] for answer in answers),
        "adopted": 0,
        "message_ids": list(dict.fromkeys(one for answer in answers for one in answer["message_ids"])),
    }


def _sentence(result: dict[str, Any], dry_run: bool) -> str:
    selected = result["selected"]
    if not selected:
        return "Nothing is selected."
    if dry_run:
        return f"{_messages(selected)} would be redelivered."
    return f"{_messages(selected)} selected, {result['redelivered']} redelivered now; those of absent users wait on."


def _messages(count: int) -> str:
    return f"{count} message" + ("" if count == 1 else "s")
