"""What a node tells of its message table and its bus when it is measured."""

from __future__ import annotations

import trio

from tests.contracts.backends import Buses, Store
from tests.contracts.examples import BOB, CID, HERE, THERE, message
from tests.contracts.test_bus import PATIENCE, gone, next_batch, publish, pull, take
from yanchat.model import ACKED, GIVEN_UP, Step
from yanchat.ports import Bus
from yanchat.protocol.books import Waits


async def test_what_waits_is_what_nobody_has_acked_and_what_nobody_was_told(store: Store) -> None:
    assert await store.books.waits() == Waits()
    (first,), (second,), (third,) = message(1_000, CID), message(2_000, BOB), message(3_000, BOB)
    await store.add([[third], [first], [second]])
    assert await store.books.waits() == Waits(3, 0, 1_000)
    await store.record([Step(first.order, GIVEN_UP, settled_at=4_000)])
    assert await store.books.waits() == Waits(2, 1, 2_000)
    await store.moved([second.key], at=5_000)
    assert await store.books.waits() == Waits(1, 1, 3_000)
    await store.record([Step(third.order, ACKED, ACKED, settled_at=6_000, told_at=7_000)])
    assert await store.books.waits() == Waits(0, 1, 0)
    await store.record([Step(first.order, GIVEN_UP, GIVEN_UP, told_at=8_000)])
    assert await store.books.waits() == Waits()


async def test_the_lag_of_a_topic_is_what_stands_in_it_uncommitted(buses: Buses) -> None:
    async with (
        buses.connect(HERE) as here,
        buses.connect(THERE) as there,
        there.subscribe("message") as messages,
        there.subscribe("ack") as acks,
    ):
        for batches in (messages, acks):
            await next_batch(batches)
        assert await there.lag() == {"message": 0, "ack": 0}
        await publish(here, THERE, [gone(1), gone(2), pull(1)])
        await lag_is(there, {"message": 1, "ack": 2})
        await take(acks, 2)
        await lag_is(there, {"message": 1, "ack": 0})
        await take(messages, 1)
        await lag_is(there, {"message": 0, "ack": 0})


async def lag_is(bus: Bus, wanted: dict[str, int]) -> None:
    """A bus may learn a little late how far it has come."""
    with trio.fail_after(PATIENCE):
        while await bus.lag() != wanted:
            await trio.sleep(0.02)
