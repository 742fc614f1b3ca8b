"""What a test may ask of the memory backends: faults, and virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import pytest
import trio
from trio.testing import MockClock

from tests.contracts.examples import ANN, BOB, HERE, THERE, acked, message, node, session
from yanchat.backends.memory import MemoryBus, MemoryRegistry, MemoryStore
from yanchat.errors import RegistryUnavailable, StoreUnavailable
from yanchat.model import ACKED, Node, OpenId, SessionId, Step, Totals
from yanchat.ports import Batch
from yanchat.protocol.records import Pull, Record


# -- the store ---------------------------------------------------------------------------------------------------------
async def test_a_write_that_is_cancelled_before_its_commit_leaves_nothing(autojump_clock: MockClock) -> None:
    store = MemoryStore("s")
    store.before_commit = 1.0
    (envelope,) = message(1)
    calls = (
        lambda: store.add([[envelope]]),
        lambda: store.record([Step(envelope.order, ACKED)]),
        lambda: store.ack([acked(envelope, THERE)]),
    )
    for call in calls:
        with trio.move_on_after(0.9):
            await call()
        assert await store.totals() == Totals()
        assert await store.known([envelope.key]) == [False]


async def test_a_write_that_is_cancelled_after_its_commit_stays(autojump_clock: MockClock) -> None:
    store = MemoryStore("s")
    store.before_commit = store.after_commit = 1.0
    with trio.move_on_after(1.5) as scope:
        await store.add([message(1)])
    assert scope.cancelled_caught
    assert await store.totals() == Totals(pending=1)
    assert trio.current_time() < 2


async def test_a_store_that_is_broken_says_so(autojump_clock: MockClock) -> None:
    store = MemoryStore("s")
    store.readable = False
    with pytest.raises(StoreUnavailable):
        await store.totals()
    await store.add([message(1)])
    store.readable, store.writable = True, False
    with pytest.raises(StoreUnavailable):
        await store.add([message(2)])
    assert not store.healthy()
    assert await store.totals() == Totals(pending=1)


# -- the registry ------------------------------------------------------------------------------------------------------
@pytest.fixture
async def registry() -> MemoryRegistry:
    return MemoryRegistry(trio.current_time, 10.0)


async def test_leases_lapse_in_virtual_time(registry: MemoryRegistry, autojump_clock: MockClock) -> None:
    view = registry.view()
    await view.join(node())
    await trio.sleep(9.9)
    assert await view.renew(node())
    await trio.sleep(9.9)
    assert await view.renew(node())
    await trio.sleep(10)
    assert not await view.renew(node())


async def test_one_node_may_be_cut_off_and_all_may(registry: MemoryRegistry, autojump_clock: MockClock) -> None:
    here, there = registry.view(), registry.view()
    here.up = False
    with pytest.raises(RegistryUnavailable):
        await here.claim([session()])
    assert await there.sessions() == []
    registry.up = False
    with pytest.raises(RegistryUnavailable):
        await there.sessions()
    here.up = registry.up = True
    assert await here.claim([session()]) == [True]


async def test_an_answer_may_be_lost(registry: MemoryRegistry, autojump_clock: MockClock) -> None:
    view = registry.view()
    view.answers = False
    with pytest.raises(RegistryUnavailable):
        await view.claim([session()])
    view.answers = True
    assert await view.claim([session()]) == [False]


async def test_a_call_may_take_its_time(registry: MemoryRegistry, autojump_clock: MockClock) -> None:
    view = registry.view()
    view.takes = 5.0
    with trio.move_on_after(4.0):
        await view.join(node())
    view.takes = 0.0
    assert await view.nodes() == []


async def fill(registry: MemoryRegistry, users: Sequence[OpenId]) -> None:
    view = registry.view()
    await view.join(node())
    await view.claim([session(user) for user in users])
    await view.enter(HERE, users)


async def test_it_may_forget_everything_and_be_the_same_server(
    registry: MemoryRegistry, autojump_clock: MockClock
) -> None:
    view = registry.view()
    await fill(registry, [ANN, BOB])
    epoch = await view.epoch()
    registry.forget_all()
    assert await view.nodes() == await view.sessions() == []
    assert not (await view.pending([BOB]))[BOB]
    assert not await view.renew(node())
    assert await view.epoch() == epoch


async def test_after_a_fail_over_another_server_answers_that_missed_half(
    registry: MemoryRegistry, autojump_clock: MockClock
) -> None:
    view = registry.view()
    users = [OpenId(f"u{number}") for number in range(10)]
    await fill(registry, users)
    epoch = await view.epoch()
    registry.fail_over()
    assert await view.epoch() != epoch
    assert len(await view.sessions()) == 5


# -- the bus -----------------------------------------------------------------------------------------------------------
def pull(number: int) -> Pull:
    return Pull(HERE, BOB, SessionId(f"s{number}"))


@pytest.fixture
async def bus() -> MemoryBus:
    return MemoryBus()


async def taken(batches: AsyncIterator[Batch], seconds: float) -> list[tuple[float, int]]:
    """What comes within this time: when, and the number of the record."""
    found = []
    with trio.move_on_after(seconds):
        async for batch in batches:
            for record in batch.records:
                assert isinstance(record, Pull)
                found.append((trio.current_time(), int(record.session_id[1:])))
    return found


async def test_records_may_be_lost_repeated_and_late(bus: MemoryBus, autojump_clock: MockClock) -> None:
    fates: dict[int, Sequence[float]] = {1: (), 2: (0.0, 0.0), 3: (7.0,), 4: (0.0, 3.0)}

    def fate(to: Node, record: Record) -> Sequence[float]:
        assert to == THERE
        assert isinstance(record, Pull)
        return fates.get(int(record.session_id[1:]), (0.0,))

    bus.fate = fate
    async with bus.connect(HERE) as here, bus.connect(THERE) as there, there.subscribe("message") as batches:
        here.publish(THERE, [pull(number) for number in range(1, 6)])
        assert await taken(batches, 10) == [(0, 2), (0, 2), (0, 4), (0, 5), (3, 4), (7, 3)]


async def test_what_is_not_stored_is_told(bus: MemoryBus, autojump_clock: MockClock) -> None:
    answers: list[bool] = []
    async with bus.connect(HERE) as here, bus.connect(THERE) as there, there.subscribe("message") as batches:
        for view_up, bus_up, told in (
            (False, True, True),
            (True, False, True),
            (True, True, False),
            (True, True, True),
        ):
            here.up, bus.up, here.answers = view_up, bus_up, told
            here.publish(THERE, [pull(len(answers))], answers.append)
            await here.flush()
        assert answers == [False, False, False, True]
        assert await taken(batches, 1) == [(0, 2), (0, 3)]  # of the third only the answer was lost


async def test_what_a_node_published_just_before_its_end_may_be_lost(bus: MemoryBus, autojump_clock: MockClock) -> None:
    answers: list[bool] = []
    async with bus.connect(HERE) as here:
        here.takes = 1.0
        here.publish(THERE, [pull(1)], answers.append)
        await trio.sleep(0.5)
    async with bus.connect(THERE) as there, there.subscribe("message") as batches:
        assert await taken(batches, 5) == []
    assert answers == []


async def test_batches_may_be_small(bus: MemoryBus, autojump_clock: MockClock) -> None:
    bus.batch = 2
    async with bus.connect(HERE) as here:
        here.publish(HERE, [pull(number) for number in range(5)])
        await here.flush()
        async with here.subscribe("message") as batches:
            sizes = [(len(batch.records), batch.caught_up) for batch in [await anext(batches) for _ in range(3)]]
    assert sizes == [(2, False), (2, False), (1, True)]
