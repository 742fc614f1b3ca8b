"""The port Bus: what was stored comes until it was committed, in order, also to a node that was down."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import pytest
import trio

from tests.contracts.backends import Buses
from tests.contracts.examples import ANN, BOB, HERE, THERE, message
from yanchat.model import ACKED, GIVEN_UP, Node, Notice, OpenId, Row, SessionId
from yanchat.ports import Batch, Bus
from yanchat.protocol.records import Acked, Adopt, Adopted, Arrived, Close, Gone, Pull, Push, Record, Tell, Told

PATIENCE = 30.0


def pull(number: int, user: OpenId = BOB) -> Pull:
    return Pull(HERE, user, SessionId(f"s{number}"))


def gone(number: int) -> Gone:
    return Gone(HERE, ((BOB, SessionId(f"s{number}")),))


async def publish(bus: Bus, node: Node, records: Sequence[Record]) -> None:
    """Publish, and wait until it is stored."""
    answers: list[bool] = []
    bus.publish(node, records, answers.append)
    with trio.fail_after(PATIENCE):
        await bus.flush()
    assert answers == [True]


async def next_batch(batches: AsyncIterator[Batch]) -> Batch:
    with trio.fail_after(PATIENCE):
        return await anext(batches)


async def take(batches: AsyncIterator[Batch], number: int, commit: bool = True) -> list[Record]:
    """So many records; more is a failure."""
    found: list[Record] = []
    while len(found) < number:
        batch = await next_batch(batches)
        found += batch.records
        if commit:
            await batch.commit()
    assert len(found) == number
    return found


async def rest(batches: AsyncIterator[Batch]) -> list[Record]:
    """What the topic held at the subscription."""
    found, caught_up = list[Record](), False
    while not caught_up:
        batch = await next_batch(batches)
        found += batch.records
        caught_up = batch.caught_up
        await batch.commit()
    return found


async def test_the_first_batch_comes_at_once_also_from_an_empty_topic(buses: Buses) -> None:
    async with buses.connect(HERE) as bus, bus.subscribe("message") as messages, bus.subscribe("ack") as acks:
        for batches in (messages, acks):
            batch = await next_batch(batches)
            assert not batch.records
            assert batch.caught_up
            await batch.commit()


async def test_records_come_in_the_order_of_publishing(buses: Buses) -> None:
    async with buses.connect(HERE) as here, buses.connect(THERE) as there, there.subscribe("message") as batches:
        await next_batch(batches)
        for number in range(0, 300, 3):
            here.publish(THERE, [pull(number), pull(number + 1)])
            here.publish(THERE, [pull(number + 2)])
        assert await take(batches, 300) == [pull(number) for number in range(300)]


async def test_a_record_goes_to_the_topic_of_its_kind_and_to_that_node_alone(buses: Buses) -> None:
    async with buses.connect(HERE) as here, buses.connect(THERE) as there:
        await publish(here, THERE, [pull(1), gone(2), pull(3)])
        await publish(here, HERE, [pull(4)])
        async with there.subscribe("message") as messages, there.subscribe("ack") as acks:
            assert await rest(messages) == [pull(1), pull(3)]
            assert await rest(acks) == [gone(2)]
        async with here.subscribe("message") as messages, here.subscribe("ack") as acks:
            assert await rest(messages) == [pull(4)]
            assert await rest(acks) == []


async def test_every_kind_of_record_comes_as_it_was(buses: Buses) -> None:
    (envelope,) = message(1, text="\0 你好 \U0001f600 \"'")
    notice = Notice(7, envelope.message_id, BOB, ANN, "r", GIVEN_UP, 9)
    sessions = (SessionId("s1"), SessionId("s2"))
    pushed: list[Record] = [
        Push(HERE, envelope, sessions, "retry", True),
        Tell(HERE, notice, sessions),
        pull(1),
        Close(HERE, sessions[0], 4001, "replaced"),
        Adopt(HERE, "r1", THERE, (Row(envelope, ACKED, GIVEN_UP, 1, 2, 3, 4, 5),)),
        Adopt(HERE, "r1", THERE, (Row(envelope),), (Node("a:1"), Node("b:1"))),
    ]
    answers: list[Record] = [
        Arrived(HERE, (envelope.key, envelope.key)),
        Acked(HERE, (envelope.key,)),
        Told(HERE, (envelope.key,), ACKED),
        gone(1),
        Adopted(HERE, "r1", THERE, (envelope.key,)),
    ]
    async with buses.connect(HERE) as bus:
        await publish(bus, HERE, [*pushed, *answers])
        async with bus.subscribe("message") as messages, bus.subscribe("ack") as acks:
            assert await rest(messages) == pushed
            assert await rest(acks) == answers


async def test_a_node_that_is_down_finds_its_records_later(buses: Buses) -> None:
    async with buses.connect(HERE) as here:
        await publish(here, THERE, [pull(number) for number in range(5)])
    async with buses.connect(THERE) as there, there.subscribe("message") as batches:
        assert await rest(batches) == [pull(number) for number in range(5)]


async def test_what_was_committed_does_not_come_again(buses: Buses) -> None:
    async with buses.connect(HERE) as here:
        await publish(here, THERE, [pull(1), pull(2)])
        async with buses.connect(THERE) as there, there.subscribe("message") as batches:
            await take(batches, 2)
        await publish(here, THERE, [pull(3)])
        async with buses.connect(THERE) as there, there.subscribe("message") as batches:
            assert await rest(batches) == [pull(3)]


async def test_what_was_not_committed_comes_again(buses: Buses) -> None:
    async with buses.connect(HERE) as here:
        await publish(here, THERE, [pull(1), pull(2)])
        for _ in range(2):
            async with buses.connect(THERE) as there, there.subscribe("message") as batches:
                assert await take(batches, 2, commit=False) == [pull(1), pull(2)]
        async with buses.connect(THERE) as there:
            async with there.subscribe("message") as batches:
                await take(batches, 2, commit=False)
            async with there.subscribe("message") as batches:  # also in the same life
                assert await rest(batches) == [pull(1), pull(2)]


async def test_a_commit_covers_all_batches_before(buses: Buses) -> None:
    async with buses.connect(HERE) as here, buses.connect(THERE) as there:
        async with there.subscribe("message") as batches:
            await next_batch(batches)
            await publish(here, THERE, [pull(1)])
            first = await next_batch(batches)
            await publish(here, THERE, [pull(2)])
            second = await next_batch(batches)
            await publish(here, THERE, [pull(3)])
            await next_batch(batches)
            await second.commit()
            await first.commit()
            await first.commit()
        async with there.subscribe("message") as batches:
            assert await rest(batches) == [pull(3)]


async def test_a_commit_in_one_topic_leaves_the_other_and_other_nodes(buses: Buses) -> None:
    async with buses.connect(HERE) as here, buses.connect(THERE) as there:
        await publish(here, THERE, [gone(1)])
        await publish(here, HERE, [pull(2)])
        await publish(here, THERE, [pull(3)])
        async with there.subscribe("message") as batches:
            await take(batches, 1)
        async with there.subscribe("ack") as batches:
            assert await rest(batches) == [gone(1)]
        async with here.subscribe("message") as batches:
            assert await rest(batches) == [pull(2)]


async def test_caught_up_says_that_all_of_before_the_subscription_was_handed_over(buses: Buses) -> None:
    before = [gone(number) for number in range(1234)]
    async with buses.connect(HERE) as here:
        await publish(here, THERE, before)
        async with buses.connect(THERE) as there, there.subscribe("ack") as batches:
            found: list[Record] = []
            caught_up = False
            while not caught_up:
                batch = await next_batch(batches)
                found += batch.records
                caught_up = batch.caught_up
                assert caught_up == (len(found) >= len(before))
            assert found == before
            await publish(here, THERE, [gone(9999)])
            batch = await next_batch(batches)
            assert (list(batch.records), batch.caught_up) == ([gone(9999)], True)


async def test_records_wake_a_subscription_that_waits(buses: Buses) -> None:
    async with (
        buses.connect(HERE) as here,
        buses.connect(THERE) as there,
        there.subscribe("ack") as acks,
        there.subscribe("message") as messages,
        trio.open_nursery() as nursery,
    ):
        await next_batch(acks)
        await next_batch(messages)

        async def answer() -> None:
            for number in range(20):
                assert await take(messages, 1) == [pull(number)]
                there.publish(THERE, [gone(number)])

        nursery.start_soon(answer)
        for number in range(20):
            here.publish(THERE, [pull(number)])
            assert await take(acks, 1) == [gone(number)]


async def test_publish_does_not_wait_and_stored_is_told_once_for_each_call(buses: Buses) -> None:
    answers: list[tuple[int, bool]] = []
    async with buses.connect(HERE) as here:
        for number in range(50):
            here.publish(THERE, [pull(number)], lambda ok, number=number: answers.append((number, ok)))
        here.publish(THERE, [pull(50)])
        with trio.fail_after(PATIENCE):
            await here.flush()
        assert answers == [(number, True) for number in range(50)]
        with trio.fail_after(PATIENCE):
            await here.flush()
        assert len(answers) == 50
    async with buses.connect(THERE) as there, there.subscribe("message") as batches:
        assert await rest(batches) == [pull(number) for number in range(51)]


async def test_flush_without_anything_published_returns(buses: Buses) -> None:
    async with buses.connect(HERE) as bus:
        with trio.fail_after(PATIENCE):
            await bus.flush()


async def test_stored_may_publish(buses: Buses) -> None:
    done = trio.Event()
    async with buses.connect(HERE) as here:
        here.publish(THERE, [pull(1)], lambda ok: here.publish(THERE, [pull(2)], lambda ok: done.set()))
        with trio.fail_after(PATIENCE):
            await done.wait()
    async with buses.connect(THERE) as there, there.subscribe("message") as batches:
        assert await rest(batches) == [pull(1), pull(2)]


async def test_two_publishers_keep_each_his_order(buses: Buses) -> None:
    third = Node("127.0.0.1:8003")
    async with (
        buses.connect(HERE) as here,
        buses.connect(THERE) as there,
        buses.connect(third) as receiver,
        receiver.subscribe("message") as batches,
    ):
        for number in range(100):
            here.publish(third, [pull(number)])
            there.publish(third, [pull(number, ANN)])
        found = await take(batches, 200)
    for user in (ANN, BOB):
        mine = [record for record in found if isinstance(record, Pull) and record.openid == user]
        assert mine == [pull(number, user) for number in range(100)]


@pytest.mark.parametrize("node", ["[::1]:8001", "host.example:1"])
async def test_any_address_names_a_topic(buses: Buses, node: Node) -> None:
    async with buses.connect(node) as bus:
        await publish(bus, node, [pull(1)])
        async with bus.subscribe("message") as batches:
            assert await rest(batches) == [pull(1)]


async def test_another_nodes_topic_can_be_read_behind_its_last_commit(buses: Buses) -> None:
    """To its end, as often as one likes; nothing is taken by that, and that node finds all of it."""
    async with buses.connect(HERE) as here:
        await publish(here, THERE, [gone(number) for number in range(1000)])
        async with buses.connect(THERE) as there, there.subscribe("ack") as batches:
            assert len(await rest(batches)) == 1000
        await publish(here, THERE, [gone(number) for number in range(1000, 2234)])
        await publish(here, THERE, [pull(1)])
        for _ in range(2):
            with trio.fail_after(PATIENCE):
                assert await here.read(THERE, "ack") == [gone(number) for number in range(1000, 2234)]
                assert await here.read(THERE, "message") == [pull(1)]
        async with buses.connect(THERE) as there, there.subscribe("ack") as batches:
            assert await rest(batches) == [gone(number) for number in range(1000, 2234)]
        with trio.fail_after(PATIENCE):
            assert await here.read(THERE, "ack") == []


async def test_the_topic_of_a_node_that_never_was_is_empty(buses: Buses) -> None:
    async with buses.connect(HERE) as here:
        with trio.fail_after(PATIENCE):
            assert await here.read(Node("127.0.0.1:8009"), "ack") == []


async def test_reading_a_nodes_topic_takes_nothing_from_the_node_that_reads_it_now(buses: Buses) -> None:
    async with buses.connect(HERE) as here, buses.connect(THERE) as there, there.subscribe("ack") as batches:
        await next_batch(batches)
        await publish(here, THERE, [gone(1), gone(2)])
        with trio.fail_after(PATIENCE):
            assert await here.read(THERE, "ack") == [gone(1), gone(2)]
        assert await take(batches, 2) == [gone(1), gone(2)]
