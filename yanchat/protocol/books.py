"""The rules of the books: what must hold of one message table, and of all of them together. Pure.

Every row is counted when it comes and when its state changes, in the same transaction; the purged are counted as well.
So what a table counted must be what it holds and has purged, state by state. Between tables each (message, recipient)
has one owner, what has moved away has come somewhere, and who has an ack of a message names a node that knows it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from yanchat.model import MessageId, Node, OpenId, Row
from yanchat.protocol.ids import COUNTER_BITS, order_from_message_id

STATES = ("pending", "delivered", "expired", "moved")


class ByState(msgspec.Struct, frozen=True):
    """Rows by state; a moved one is in no other."""

    pending: int = 0
    delivered: int = 0
    expired: int = 0
    moved: int = 0

    @property
    def all(self) -> int:
        return self.pending + self.delivered + self.expired + self.moved


class Doubt(msgspec.Struct, frozen=True, omit_defaults=True):
    """Something that does not fit together; about one message, when it can be told which."""

    sentence: str
    message_id: str = ""
    to: str = ""


class Account(msgspec.Struct, frozen=True):
    """What one message table counted, beside what it holds, at one instant."""

    accepted: int
    adopted: int
    counted: ByState | None
    """By the durable counters, purged ones included; None when only some rows were looked at, or there are none yet."""
    held: ByState
    purged: ByState
    purged_before: int
    """Milliseconds since the epoch: of what was accepted before, rows that were done may be purged; 0: none was."""
    doubts: tuple[Doubt, ...] = ()


class Waits(msgspec.Struct, frozen=True):
    """What is not done with in one message table."""

    pending: int = 0
    """Rows that wait for their recipients' acks."""
    untold: int = 0
    """Settled rows of which the senders do not know yet."""
    oldest: int = 0
    """When the first of the pending ones was accepted, in ms as its order says; 0 when there is none."""


class Held(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Who owns one (message, recipient), as a table says."""

    order: int
    message_id: MessageId
    to: OpenId
    accepted_at: int
    rank: int
    moved: bool
    adopted: bool


def held(row: Row) -> Held:
    """The row, as far as the books are concerned."""
    one = row.envelope
    return Held(
        one.order, one.message_id, one.recipient, one.accepted_at, row.rank, row.moved_at > 0, row.adopted_at > 0
    )


class HeldAck(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An ack of another node's message, as the inbox has it; `left`: it is on its way to the origins."""

    place: int
    message_id: MessageId
    to: OpenId
    origins: tuple[Node, ...]
    at: int
    left: bool


class Story(msgspec.Struct, frozen=True):
    """All that one table knows of one message. The texts of the rows are left out."""

    rows: tuple[Row, ...] = ()
    acks: tuple[HeldAck, ...] = ()
    purged_before: int = 0


def imbalances(account: Account) -> Iterator[str]:
    """What does not balance in one table, a sentence for each state."""
    counted = account.counted
    if counted is None:
        return
    for state in STATES:
        there = getattr(account.held, state) + getattr(account.purged, state)
        off = there - getattr(counted, state)
        if off:
            purged = f" and {getattr(account.purged, state)} were purged" if getattr(account.purged, state) else ""
            yield (
                f"{getattr(counted, state)} {state} were counted, but {getattr(account.held, state)} are there{purged}:"
                f" {abs(off)} {'too many' if off > 0 else 'missing'}"
            )


def judge(
    message_id: MessageId,
    to: OpenId,
    rows: Mapping[Node, Held],
    acks: Mapping[Node, HeldAck],
    purged_before: Mapping[Node, int],
    complete: bool,
) -> Doubt | None:
    """What is wrong with one (message, recipient) in all tables that were asked (those of `purged_before`).

    `complete`: there are no others. What may lie with one that was not asked, or may have been purged, is not accused.
    """

    def doubt(sentence: str) -> Doubt:
        return Doubt(sentence, message_id, to)

    own_order = order_from_message_id(message_id)
    owners = {node: row for node, row in rows.items() if not row.moved}
    away = [node for node, row in rows.items() if row.moved]
    came = [node for node, row in owners.items() if row.adopted]
    accepted_at = min((row.accepted_at for row in rows.values()), default=own_order >> COUNTER_BITS)
    ended = bool(came) and all(row.rank for row in owners.values())  # whoever has it knows its end
    if len(owners) > 1 and not ended and (own_order or (complete and len(came) > len(away))):
        where = " and on ".join(sorted(owners))
        if came:
            return doubt(
                f"on {where}: an adoption has not come to its end; call `yanchat redeliver --adopt` once more for the"
                " one that is dead"
            )
        return doubt(f"on {where}, though only one node can have accepted it")
    if away and not owners and complete and accepted_at >= max(purged_before.values(), default=0):
        return doubt(f"moved away from {away[0]}, and on no other node")
    for node, ack in acks.items():
        if node in rows and (rows[node].moved or rows[node].adopted):
            continue  # when the row was another's, its ack went to all to whom rows have moved: some do not know it
        for origin in ack.origins:
            known = origin in rows or origin not in purged_before
            purged = accepted_at < purged_before.get(origin, 0) if accepted_at else purged_before.get(origin, 0) > 0
            if not (known or purged):
                return doubt(f"acked on {node} as a message of {origin}, which does not know it")
    return None
