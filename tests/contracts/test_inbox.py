"""The port Inbox: what was acked here is known for good, and its acks find their way back."""

from __future__ import annotations

import pytest
import trio

from tests.contracts.backends import Store, Table
from tests.contracts.examples import ANN, BOB, CID, HERE, THERE, acked, message
from yanchat.errors import StoreUnavailable
from yanchat.model import ACKED, GIVEN_UP, OPEN, MessageId, Row, Step


async def places(store: Store, after: int = 0, limit: int = 99) -> list[int]:
    return [place for place, _ in await store.unsent(after, limit)]


@pytest.mark.parametrize("request_id", ["", "r-1"])
async def test_another_nodes_message_is_known_once_it_was_acked(store: Store, request_id: str) -> None:
    for_bob, for_cid = message(1, BOB, CID, request=request_id)
    assert await store.known([for_bob.key, for_cid.key]) == [False, False]
    (place,) = await store.ack([acked(for_bob, THERE)])
    assert place > 0
    assert await store.known([for_cid.key, for_bob.key, for_bob.key]) == [False, True, True]
    assert await store.known([]) == []


@pytest.mark.parametrize("request_id", ["", "r-1"])
async def test_an_own_row_is_known_when_it_is_acked_and_not_before(store: Store, request_id: str) -> None:
    (envelope,) = message(1, request=request_id)
    await store.add([[envelope]])
    assert await store.known([envelope.key]) == [False]
    await store.record([Step(envelope.order, GIVEN_UP)])
    assert await store.known([envelope.key]) == [False]
    assert await store.ack([acked(envelope, own=True, at=9)]) == [0]
    assert await store.known([envelope.key]) == [True]
    (row,) = await store.find([envelope.key])
    assert row == Row(envelope, ACKED, OPEN, attempts=1, sent_at=2, settled_at=9)


async def test_an_ack_settles_the_own_row_and_tells_the_others_too(store: Store) -> None:
    (envelope,) = message(1, request="r")
    await store.add([[envelope]])
    (place,) = await store.ack([acked(envelope, THERE, own=True)])
    assert place > 0
    assert (await store.totals()).delivered == 1
    assert await store.unsent(0, 9) == [(place, acked(envelope, THERE))]


async def test_a_repeated_ack_leaves_the_own_row_as_it_is(store: Store) -> None:
    (envelope,) = message(1)
    await store.add([[envelope]])
    await store.ack([acked(envelope, own=True, at=9)])
    await store.ack([acked(envelope, own=True, at=20)])
    (row,) = await store.find([envelope.key])
    assert row is not None
    assert row.settled_at == 9


async def test_places_ascend_in_the_order_of_the_acks(store: Store) -> None:
    entries = [acked(message(at)[0], THERE) for at in (3, 1, 2)]
    own = message(9)
    await store.add([own])
    first, second, none, third = await store.ack([entries[0], entries[1], acked(own[0], own=True), entries[2]])
    assert none == 0
    assert 0 < first < second < third
    assert await store.unsent(0, 9) == list(zip((first, second, third), entries, strict=True))


async def test_a_repeated_ack_moves_to_the_end_with_the_origins_of_both(store: Store) -> None:
    (envelope,), (other,) = message(1), message(2)
    first, second = await store.ack([acked(envelope, THERE), acked(other, THERE)])
    (third,) = await store.ack([acked(envelope, HERE, at=6)])
    assert first < second < third
    assert await store.unsent(0, 9) == [(second, acked(other, THERE)), (third, acked(envelope, HERE, THERE, at=6))]


async def test_two_acks_of_one_message_in_one_call_are_as_two_calls(store: Store) -> None:
    (envelope,) = message(1)
    first, second = await store.ack([acked(envelope, THERE), acked(envelope, HERE)])
    assert first < second
    assert await store.unsent(0, 9) == [(second, acked(envelope, HERE, THERE))]


async def test_a_cancelled_ack_may_be_repeated(store: Store) -> None:
    entries = [acked(message(at)[0], THERE) for at in (1, 2)]
    with trio.CancelScope() as scope:
        scope.cancel()
        await store.ack(entries)
    assert len(set(await store.known([entry.key for entry in entries]))) == 1
    await store.ack(entries)
    assert [entry for _, entry in await store.unsent(0, 9)] == entries


# -- the way back ------------------------------------------------------------------------------------------------------
async def test_unsent_starts_behind_the_watermark_which_never_goes_back(store: Store) -> None:
    given = await store.ack([acked(message(at)[0], THERE) for at in range(1, 6)])
    assert await places(store) == given
    assert await places(store, limit=2) == given[:2]
    assert await places(store, after=given[1], limit=2) == given[2:4]
    await store.published(given[2])
    await store.published(given[0])
    assert await places(store) == given[3:]
    assert await places(store, after=given[0]) == given[3:]
    assert await places(store, after=given[3]) == given[4:]


async def test_acks_and_the_watermark_survive_a_restart(table: Table) -> None:
    async with table.open() as store:
        given = await store.ack([acked(message(at)[0], THERE) for at in (1, 2, 3)])
        await store.published(given[0])
    async with table.open() as store:
        assert await places(store) == given[1:]
        assert await store.known([message(1)[0].key]) == [True]
        (later,) = await store.ack([acked(message(4)[0], THERE)])
        assert later > given[-1]


async def test_old_acks_are_purged_and_no_place_is_given_twice(store: Store) -> None:
    given = await store.ack([acked(message(at)[0], THERE, at=at) for at in (1, 2, 3)])
    assert await store.purge(3, 1) == 1
    assert await store.purge(3, 9) == 1
    assert await store.purge(3, 9) == 0
    keys = [message(at)[0].key for at in (1, 2, 3)]
    assert await store.known(keys) == [False, False, True]
    assert await store.purge(4, 9) == 1
    (later,) = await store.ack([acked(message(9)[0], THERE)])
    assert later > given[-1]


async def test_a_purge_takes_rows_and_acks_together(store: Store) -> None:
    await store.add([message(at) for at in range(1, 5)])
    await store.ack([acked(message(at)[0], own=True) for at in range(1, 5)])
    await store.record([Step(message(at)[0].order, told=ACKED) for at in range(1, 5)])
    await store.ack([acked(message(at)[0], THERE, at=6) for at in range(5, 8)])
    gone, chunk = 0, await store.purge(100, 2)
    while chunk:
        gone += chunk
        chunk = await store.purge(100, 2)
    assert gone == 7
    assert (await store.totals()).delivered == 4
    assert await store.unsent(0, 9) == []


# -- who may ack -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("request_id", ["", "r-1"])
async def test_recipients_are_the_own_rows_and_those_who_acked(store: Store, request_id: str) -> None:
    for_ann, for_bob, for_cid = message(1, ANN, BOB, CID, request=request_id)
    await store.add([[for_ann, for_bob]])
    await store.ack([acked(for_bob, own=True), acked(for_cid, THERE)])
    rows, done = await store.recipients(for_ann.message_id)
    assert rows == {ANN: for_ann.order, BOB: for_bob.order}
    assert sorted(done) == [BOB, CID]


async def test_nobody_is_known_of_an_unknown_message(store: Store) -> None:
    await store.add([message(1)])
    for unknown in (MessageId("0" * 32), message(2)[0].message_id, message(3, request="r")[0].message_id):
        assert await store.recipients(unknown) == ({}, [])


@pytest.mark.parametrize("first_digit", "3478bcf")
async def test_an_id_that_nobody_could_have_given_is_unknown(store: Store, first_digit: str) -> None:
    """A client may name any: one that carries an order of the far future as well."""
    strange = MessageId(f"{first_digit}fffffffffff7fffbfffffffffffffff")
    assert await store.recipients(strange) == ({}, [])
    assert await store.known([(strange, BOB)]) == [False]
    assert await store.find([(strange, BOB)]) == [None]
    assert await store.settle([(strange, BOB)], rank=ACKED, told=OPEN, at=1) == []


async def test_a_full_store_takes_no_ack_and_knows_none_of_them(table: Table, store: Store) -> None:
    entries = [acked(message(at)[0], THERE) for at in range(1, 2000)]
    await table.fill(store)
    with pytest.raises(StoreUnavailable):
        await store.ack(entries)
    assert not any(await store.known([entry.key for entry in entries]))
    await table.make_room(store)
    await store.ack(entries)
    assert all(await store.known([entry.key for entry in entries]))
