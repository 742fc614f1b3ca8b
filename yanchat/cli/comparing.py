"""The books of all nodes held against one another: each (message, recipient) has one owner, and nothing is nowhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from yanchat.backends.sqlite.comparison import Comparison
from yanchat.model import ACKED, GIVEN_UP, OPEN, Key
from yanchat.protocol.books import judge
from yanchat.protocol.ids import COUNTER_BITS, order_from_message_id

if TYPE_CHECKING:
    from yanchat.cli.witnesses import Witness, Witnesses
    from yanchat.model import Node
    from yanchat.protocol.books import Doubt, Held

LOOK_AGAIN_AFTER: Final = 1.0
"""Seconds until whoever is in doubt is looked at again: what is just moving is in two places."""
MOST_DOUBTS: Final = 1000
STATES: Final = {OPEN: "pending", ACKED: "delivered", GIVEN_UP: "expired"}


class Compared(NamedTuple):
    """What is wrong between the nodes, and what they count more than once."""

    doubts: list[Doubt]
    more: int
    """There are so many more doubts."""
    again: Counter[str]
    """By state: rows of which another node has one as well, that has come at least as far."""


async def compare(witnesses: Witnesses, purged_before: Mapping[Node, int], since: int) -> Compared:
    """Compare what all of them have; who is in doubt is looked at twice."""
    with closing(Comparison()) as tables:
        await witnesses.ask(lambda witness: _fill(tables, witness, since))
        suspects: list[Key] = []
        again: Counter[str] = Counter()
        for key in tables.unlike():
            rows = tables.held(key)
            again.update(_again(rows.values()))
            if judge(*key, rows, tables.acks(key), purged_before, not witnesses.silent):
                suspects.append(key)
    if not suspects:
        return Compared([], 0, again)
    await trio.sleep(LOOK_AGAIN_AFTER)
    with closing(Comparison()) as tables:
        wanted = suspects[:MOST_DOUBTS]
        for message_id in dict.fromkeys(message_id for message_id, _ in wanted):
            heard = await witnesses.ask(lambda witness, message_id=message_id: witness.entries(message_id))  # type: ignore[misc]
            for witness, (rows_there, acks) in heard.answers:
                tables.add(witness.node, rows_there, acks)
        doubts = [
            doubt
            for key in wanted
            if (doubt := judge(*key, tables.held(key), tables.acks(key), purged_before, not witnesses.silent))
        ]
    return Compared(doubts, len(suspects) - len(wanted), again)


async def _fill(tables: Comparison, witness: Witness, since: int) -> None:
    """All its rows and acks, page by page."""
    tables.add(witness.node)
    after = 0
    while rows := await witness.rows(after, since):
        tables.add(witness.node, rows)
        after = rows[-1].order
    after = 0
    while acks := await witness.acks(after, since):
        tables.add(witness.node, acks=(ack for ack in acks if not since or _since(ack.message_id, since)))
        after = acks[-1].place


def _since(message_id: str, since: int) -> bool:
    """Whether its id says that it was accepted since then; only then must its row be among those since then."""
    return order_from_message_id(message_id) >> COUNTER_BITS >= since


def _again(rows: Iterable[Held]) -> Iterable[str]:
    """The states of all owners but the one that has come the farthest: a request sent again to another node."""
    ranks = sorted((row.rank for row in rows if not row.moved), key=(OPEN, GIVEN_UP, ACKED).index)
    return [STATES[rank] for rank in ranks[:-1]]
