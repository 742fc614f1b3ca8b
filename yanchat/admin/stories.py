"""What became of a message, told from what one node's message table knows of it. Pure, and without the web.

A node tells this of itself; the command line tells it of a table whose node does not run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

import msgspec

from yanchat.model import ACKED, GIVEN_UP, OPEN, Row
from yanchat.protocol.books import HeldAck, Story

_STILL: Final = "; nothing happens while this node does not run"


class Event(msgspec.Struct, frozen=True):
    """Something that happened to a message for one recipient, or, as `pending` and `untold`, how it stands now."""

    t: int
    """Milliseconds since the epoch, by the clock of the node."""
    event: str
    to: str
    detail: str
    inherited: bool = False
    """It came with the row from the node that had it before, which may tell the same."""


class Fate(msgspec.Struct, frozen=True, rename={"sender": "from"}):
    """How it stands with one recipient, as this node knows."""

    to: str
    sender: str
    state: str
    """pending, delivered, expired or moved."""
    told: bool
    """Nothing is left to be told to the sender."""
    told_at: int | None
    """None: he knows nothing; when `told` all the same, he wanted no notice, or did not come for it in time."""


class Told(msgspec.Struct, frozen=True):
    """What a node tells of one message. Without events it does not know it."""

    node: str
    message_id: str
    events: Sequence[Event]
    recipients: Sequence[Fate]
    purged_before: int | None
    """Milliseconds: what was accepted before that, and was done, may have been forgotten."""


def tell(
    node: str, message_id: str, story: Story, now: int, fresh: Callable[[Row], Row] = lambda row: row, *, runs: bool
) -> Told:
    """Tell it, as it stands `now` (ms). `fresh` adds to a row what is not on disk yet; `runs`: the node is not dead."""
    rows = [fresh(row) for row in story.rows]
    events = [event for row in rows for event in _of_row(row, now, runs)] + [_of_ack(ack) for ack in story.acks]
    return Told(
        node,
        message_id,
        sorted(events, key=lambda one: one.t),
        [_fate(row) for row in rows],
        story.purged_before or None,
    )


def _fate(row: Row) -> Fate:
    one = row.envelope
    return Fate(one.recipient, one.sender, row.state, row.told >= row.rank, row.told_at or None)


def _of_row(row: Row, now: int, runs: bool) -> Iterator[Event]:
    one = row.envelope
    to, sender = one.recipient, one.sender

    def event(t: int, name: str, detail: str) -> Event:
        return Event(t, name, to, detail, inherited=t < row.adopted_at)

    kind = f", file type {one.file_type}" if one.file_type else ""
    yield event(one.accepted_at, "accepted", f"from {sender}, request {one.request_id}{kind}")
    if row.sent_at:
        yield event(row.sent_at, "pushed", f"to {to} for the first time")
    if row.arrived_at:
        yield event(row.arrived_at, "arrived", f"at {to}'s node, which handed it to his session")
    if row.rank == GIVEN_UP:
        yield event(row.settled_at, "expired", f"given up: {to} had not acked it in time")
    if row.rank == ACKED:
        yield event(row.settled_at, "delivered", f"{to}'s client has acked it")
    if row.told_at:
        yield event(row.told_at, "told", f"{sender} knows: {'delivered' if row.told == ACKED else 'given up'}")
    if row.adopted_at:
        yield event(row.adopted_at, "adopted", "taken over from a dead node")
    if row.moved_at:
        yield event(row.moved_at, "moved", "another node has adopted it, and goes on with it")
    elif row.rank == OPEN:
        yield event(now, "pending", _pending(row, runs))
    elif row.rank > row.told:
        yield event(now, "untold", f"{sender} does not know yet; told at the next login" + ("" if runs else _STILL))


def _pending(row: Row, runs: bool) -> str:
    if row.attempts:
        pushed = f"pushed {row.attempts} time{'' if row.attempts == 1 else 's'} so far"
    elif runs:
        pushed = "not pushed yet"
    else:
        pushed = "how often it was pushed is not on disk"
    return f"not acked, {pushed}" + ("" if runs else _STILL)


def _of_ack(ack: HeldAck) -> Event:
    origins = " and ".join(ack.origins)
    way = f"the ack has left for {origins}" if ack.left else f"the ack has still to leave for {origins}"
    return Event(ack.at, "acked", ack.to, f"{ack.to}'s client is here, and has it; {way}")
