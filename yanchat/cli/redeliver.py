"""`yanchat redeliver`: replay unacked messages now, on the running nodes of this machine; or move a dead node's."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from yanchat.cli.call import Call, flag, run_async
from yanchat.cli.render import note
from yanchat.errors import NotFound, Refused, UsageError

if TYPE_CHECKING:
    from yanchat.adoption import Moved

PROGRESS_SECONDS = 2.0


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
    adopt: Annotated[
        str | None,
        typer.Option(metavar="DEAD_NODE", help="Move what this dead node had accepted to a live one, for good."),
    ] = None,
    into: Annotated[
        str | None, typer.Option(metavar="NODE", help="With --adopt: to this one; else to the least busy.")
    ] = None,
    dry_run: Annotated[bool, flag("--dry-run", "Only say what would be done.")] = False,
    yes: Annotated[bool, flag("--yes", "Do not ask.")] = False,
) -> None:
    """Push waiting messages again now, not when they are due.

    Nobody gets a message twice by that: a client that has it knows its id, and it is marked as redelivered.

    A node that does not come back leaves messages in its directory: --adopt moves them to a node that is up, which
    delivers them and tells their senders. It may be interrupted and repeated, and the dead node may come back after it.
    """
    if adopt is not None:
        return _adopt(
            call, adopt, into, dry_run, yes, others=bool(all_ or to or message_id or older_than or dead or node)
        )
    if into is not None:
        raise UsageError("--into says which node adopts; say with --adopt which one is dead.")
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
    from yanchat.config.values import parse_option
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
            order["older_than_s"] = parse_option(older_than)
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


# -- a dead node's messages --------------------------------------------------------------------------------------------
def _adopt(call: Call, dead: str, into: str | None, dry_run: bool, yes: bool, others: bool) -> None:
    from yanchat.names import slug

    if others:
        raise UsageError(
            "--adopt moves all that waits on the dead node; give only --into, --dry-run and --yes with it."
        )
    if into is not None and slug(into) == slug(dead):
        raise UsageError(f"--into {into} is the dead node itself; name one that is up, or leave it out.")
    if not (yes or dry_run) and sys.stdin.isatty():
        would = run_async(_move, call, dead, into, True)
        if would.selected and not typer.confirm(f"Move {_what(would, dead)} to {would.node} now?", err=True):
            note("Nothing was done.")
            return
    moved: Moved = run_async(_move, call, dead, into, dry_run)
    document = {
        "node": moved.node,
        "selected": moved.selected,
        "redelivered": 0,
        "adopted": moved.adopted,
        "message_ids": moved.message_ids,
    }
    if not moved.selected:
        sentence = f"Nothing waits on {dead}."
    elif dry_run:
        sentence = f"{_what(moved, dead)} would move to {moved.node}."
    else:
        sentence = f"{_what(moved, dead)} moved to {moved.node}, which goes on with them."
    call.out.document(document, sentence)


async def _move(call: Call, dead: str, into: str | None, dry_run: bool) -> Moved:
    from yanchat.adoption import adopt
    from yanchat.model import Node

    cluster = call.cluster()
    await cluster.nodes_here(dead)  # says which there are when this one is not
    said = time.monotonic()

    def progress(rows: int) -> None:
        nonlocal said
        if time.monotonic() - said >= PROGRESS_SECONDS:
            said = time.monotonic()
            note(f"{_messages(rows)} moved so far.")

    target = None if into is None else Node(into)
    return await adopt(cluster.settings, cluster.state, Node(dead), target, dry_run=dry_run, progress=progress)


def _what(moved: Moved, dead: str) -> str:
    return f"{_messages(moved.selected)} of {dead}"
