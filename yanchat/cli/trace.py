"""`yanchat trace`: the life of one message across all nodes, and what can be done when it is not over."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from yanchat.cli.call import Call, run_async
from yanchat.cli.render import Cells, Columns, note, span, warn
from yanchat.errors import NotFound, Refused, Unreachable, UsageError

if TYPE_CHECKING:
    from yanchat.admin.stories import Event, Fate, Told
    from yanchat.cli.witnesses import Silent, Witness, Witnesses
    from yanchat.model import MessageId, OpenId, SessionRecord

COLUMNS: Columns = (
    ("TIME", "t"),
    ("AFTER", "after"),
    ("NODE", "node"),
    ("EVENT", "event"),
    ("TO", "to"),
    ("DETAIL", "detail"),
)


class Life(NamedTuple):
    """What all nodes tell of one message."""

    message_id: str
    told: Sequence[tuple[Witness, Told]]
    silent: Sequence[Silent]
    where: Mapping[OpenId, Sequence[SessionRecord]] | None
    """The sessions of those who have not acked; None when nobody knows."""


def trace(
    call: Call,
    message_id: Annotated[
        str | None,
        typer.Argument(metavar="MESSAGE_ID", show_default=False, help="In any case, with dashes or without."),
    ] = None,
    request_id: Annotated[
        str | None, typer.Option(metavar="ID", help="Instead of it: what was sent under this request id, --from whom.")
    ] = None,
    from_: Annotated[str | None, typer.Option("--from", metavar="OPENID", help="Whose request id it is.")] = None,
    admin_token_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="For nodes of other machines, else admin.token_file of the settings."),
    ] = None,
) -> int:
    """Tell what became of a message: when it was accepted, pushed, acked and told, and on which node.

    All nodes are asked; the files of those on this machine that do not run are read, and not changed. Who could not be
    asked is named. Texts of messages are never shown.
    """
    from yanchat.cli.witnesses import admin_token

    given = _given(message_id, request_id, from_)
    cluster = call.cluster()
    token = admin_token(cluster, admin_token_file)
    lives: list[Life] = run_async(_look, cluster, token, given, request_id, from_)
    found = [life for life in lives if any(told.events for _, told in life.told)]
    silent = list(dict.fromkeys(one for life in lives for one in life.silent))
    for one in silent:
        warn(one.why)
    if not found:
        raise _unknown(lives, f"message {given}" if given else f"request {request_id} from {from_}")
    found.sort(key=lambda life: min(event.t for _, told in life.told for event in told.events))
    rows = [row for life in found for row in merge(life)]
    if call.out.form == "person":
        rows = _for_people(rows)
    columns = COLUMNS if len(found) == 1 else (*COLUMNS[:3], ("MESSAGE", "message_id"), *COLUMNS[3:])
    call.out.table(columns, rows, CELLS)
    for life in found:
        for sentence in conclude(life):
            note(sentence)
    return 0


def _given(message_id: str | None, request_id: str | None, sender: str | None) -> MessageId | None:
    from yanchat.protocol.frames import check_openid
    from yanchat.protocol.ids import parse_message_id

    if (message_id is None) == (request_id is None):
        raise UsageError("Say which message: its id, or --request-id with --from.")
    if (request_id is None) != (sender is None):
        raise UsageError("A request id is its sender's own: give --request-id and --from together.")
    if sender is not None:
        try:
            check_openid(sender, f"--from {sender!r}")
        except Refused as refused:
            raise UsageError(str(refused)) from None
    if message_id is None:
        return None
    parsed = parse_message_id(message_id)
    if parsed is None:
        raise UsageError(
            f"{message_id!r} is no message id: 32 hex digits, with or without dashes; for what its sender called it,"
            " give --request-id and --from."
        )
    return parsed


async def _look(cluster: Any, token: str, given: MessageId | None, request_id: str | None, sender: Any) -> list[Life]:
    from yanchat.cli.witnesses import Witnesses

    witnesses = Witnesses(cluster, token)
    await witnesses.find()
    ids = [given] if given else []
    if request_id is not None:
        heard = await witnesses.ask(lambda witness: witness.requested(sender, request_id))
        ids = list(dict.fromkeys(one for _, found in heard.answers for one in found))
    lives = [await _live(witnesses, one) for one in ids]
    return lives or [Life("", [(one, _nothing(one.node)) for one in witnesses.asked], witnesses.silent, None)]


async def _live(witnesses: Witnesses, message_id: MessageId) -> Life:
    heard = await witnesses.ask(lambda witness: witness.tell(message_id))
    open_for = {fate.to for _, told in heard.answers for fate in told.recipients if fate.state == "pending"}
    where = await witnesses.sessions_of(sorted(open_for)) if open_for else {}
    return Life(message_id, heard.answers, heard.silent, where)


def _nothing(node: str) -> Told:
    from yanchat.admin.stories import Told

    return Told(node, "", [], [], None)


def _unknown(lives: Sequence[Life], what: str) -> NotFound | Unreachable:
    """It may be with a node that was not asked, or have been purged: that is said."""
    from yanchat.protocol.ids import COUNTER_BITS, order_from_message_id

    told = [answer for life in lives for _, answer in life.told]
    names = ", ".join(dict.fromkeys(answer.node for answer in told)) or "none"
    if any(life.silent for life in lives):
        return Unreachable(f"Whether there is a {what} cannot be told: those that answered do not know it ({names}).")
    sentence = f"No node knows a {what}; asked were: {names}."
    purged = max((answer.purged_before or 0 for answer in told), default=0)
    at = max((order_from_message_id(life.message_id) >> COUNTER_BITS for life in lives), default=0)
    if at and at < purged:
        sentence += f" By its id it was accepted at {_time(at)}; what was done by then may be purged (redelivery.keep)."
    elif purged and not at:
        sentence += f" What was accepted before {_time(purged)} and was done may be purged (redelivery.keep)."
    return NotFound(sentence)


# -- the table ---------------------------------------------------------------------------------------------------------
def merge(life: Life) -> list[dict[str, Any]]:
    """The events of all nodes by time; what an adopted row brought with it once, from the node where it happened."""
    all_events = [(witness.node, event) for witness, told in life.told for event in told.events]
    own = {_what(event) for _, event in all_events if not event.inherited}
    kept: dict[tuple[object, ...], tuple[str, Event]] = {}
    for node, event in all_events:
        if not event.inherited:
            kept[node, *_what(event)] = node, event
        elif _what(event) not in own:
            kept.setdefault(_what(event), (node, event))
    return [
        {
            "t": event.t,
            "node": node,
            "event": event.event,
            "message_id": life.message_id,
            "to": event.to,
            "detail": event.detail,
        }
        for node, event in sorted(kept.values(), key=lambda one: one[1].t)
    ]


def _what(event: Event) -> tuple[object, ...]:
    return event.t, event.event, event.to


def _for_people(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    first = rows[0]["t"]
    return [{**row, "after": span((row["t"] - first) / 1000) if row["t"] > first else "-"} for row in rows]


def _time(ms: int) -> str:
    return datetime.datetime.fromtimestamp(ms / 1000).astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


CELLS: Cells = {"t": _time}


# -- what it comes to --------------------------------------------------------------------------------------------------
def conclude(life: Life) -> list[str]:
    """One sentence for each recipient: whether he has it, and if not, what to do."""
    recipients = dict.fromkeys(event.to for _, told in life.told for event in told.events)
    return [_conclusion(life, to) for to in recipients]


def _conclusion(life: Life, to: str) -> str:
    fates = [(witness, fate) for witness, told in life.told for fate in told.recipients if fate.to == to]
    acked = [
        witness for witness, told in life.told for event in told.events if (event.event, event.to) == ("acked", to)
    ]
    delivered = [fate for _, fate in fates if fate.state == "delivered"]
    if delivered:
        return f"{to} has it; {_sender_knows(delivered)}"
    if acked:
        holder = next((witness.node for witness, fate in fates if fate.state != "moved"), "")
        knows = f"{holder} does not know that yet" if holder else "no node that was asked has accepted it"
        return f"{to} has it: acked on {acked[0].node}; {knows}."
    pending = [witness for witness, fate in fates if fate.state == "pending"]
    if pending:
        return _pending(life, to, pending)
    expired = [fate for _, fate in fates if fate.state == "expired"]
    if expired:
        again = f"`yanchat redeliver --dead --message-id {life.message_id}` pushes it once more."
        return f"{to} did not get it, as far as is known: it was given up. {again}"
    moved = ", ".join(witness.node for witness, _ in fates)
    return f"{to}: moved away from {moved}, and no node that was asked has it now."


def _sender_knows(fates: Iterable[Fate]) -> str:
    told = [fate for fate in fates if fate.told_at]
    if told:
        return f"{told[0].sender} knows."
    (fate, *_) = fates
    if fate.told:
        return f"{fate.sender} was not told: he wanted no notice, or did not come for it in time."
    return f"{fate.sender} does not know yet, and is told at the next login."


def _pending(life: Life, to: str, holders: Sequence[Witness]) -> str:
    running = [witness for witness in holders if witness.runs]
    if not running:
        dead = holders[0]
        return (
            f"{to}: waits on {dead.node}, which does not run. Start it: `{dead.start}`; or, when it does not come"
            f" back: `yanchat redeliver --adopt {dead.node}`."
        )
    if life.where is None:
        return f"{to}: waits on {running[0].node}; whether he is connected is not known."
    sessions = life.where.get(to, ())  # type: ignore[call-overload]
    if not sessions:
        return f"{to}: waits on {running[0].node} until he connects; he has no session now."
    nodes = ", ".join(dict.fromkeys(session.node for session in sessions))
    return (
        f"{to}: waits on {running[0].node}; he is connected to {nodes} and has not acked it."
        f" `yanchat redeliver --message-id {life.message_id}` pushes it now."
    )
