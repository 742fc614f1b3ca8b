"""The port Outbox, between nodes: the rows of a dead one go to a live one, and nothing of them is lost or doubled."""

from __future__ import annotations

from random import Random

import pytest
from msgspec.structs import replace

from tests.contracts.backends import Store, Table
from tests.contracts.examples import ANN, BOB, CID, message, order_at
from yanchat.errors import StoreUnavailable
from yanchat.model import ACKED, GIVEN_UP, OPEN, Envelope, Row, Step, Totals
from yanchat.ports import RowFilter
from yanchat.protocol.ids import message_id_from_order, order_from_message_id


async def only(store: Store, envelope: Envelope) -> Row:
    (row,) = await store.find([envelope.key])
    assert row is not None
    return row


def foreign(envelope: Envelope, rank: int = OPEN, told: int = OPEN) -> Row:
    """A row as another node had it, with a history of its own."""
    return Row(envelope, rank, told, attempts=2, sent_at=10, arrived_at=11, settled_at=12 if rank else 0, told_at=0)


def elsewhere(envelope: Envelope) -> Envelope:
    """What another node made of the same message: an id that carries the order has chance in it."""
    if order_from_message_id(envelope.message_id):
        return replace(envelope, message_id=message_id_from_order(envelope.order, Random("there")))
    return envelope


# -- adopt -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("request_id", ["", "r-1"])
async def test_what_is_adopted_stands_here_as_it_stood_there(store: Store, request_id: str) -> None:
    (envelope,) = message(1, request=request_id)
    came = await store.adopt([foreign(envelope, ACKED, GIVEN_UP)], 50)
    assert came == [replace(foreign(envelope, ACKED, GIVEN_UP), adopted_at=50)]
    assert await only(store, envelope) == came[0]
    assert await store.open_rows(ANN, "notices", 9, 9999) == came
    assert await store.totals() == Totals(delivered=1, untold=1, adopted=1)


async def test_adopting_again_changes_nothing(store: Store) -> None:
    rows = [foreign(envelope) for envelope in message(1, BOB, CID) + message(2, request="r")]
    assert len(await store.adopt(rows, 50)) == 3
    before = await store.search(RowFilter())
    assert await store.adopt(rows, 60) == []
    assert await store.search(RowFilter()) == before
    assert await store.totals() == Totals(pending=3, adopted=3)


async def test_no_rows_are_adopted(store: Store) -> None:
    assert await store.adopt([], 50) == []
    await store.moved([], 50)
    assert await store.movable(0, 9) == []


async def test_a_row_named_twice_comes_once(store: Store) -> None:
    (envelope,) = message(1)
    assert len(await store.adopt([foreign(envelope), foreign(envelope, ACKED)], 50)) == 1
    assert (await only(store, envelope)).rank == ACKED


async def test_a_row_that_is_here_keeps_the_higher_rank_and_told(store: Store) -> None:
    """Accepted here by the same request: in its place, and known as what either node knows."""
    (mine,), (theirs,) = message(5, request="r"), message(1, request="r")
    await store.add([[mine]])
    assert await store.adopt([foreign(theirs, ACKED, GIVEN_UP)], 50) == []
    row = await only(store, mine)
    assert (row.envelope, row.rank, row.told, row.settled_at, row.adopted_at) == (mine, ACKED, GIVEN_UP, 12, 0)
    assert await store.adopt([foreign(theirs)], 60) == []
    assert await only(store, mine) == row
    assert await store.totals() == Totals(delivered=1, untold=1)


async def test_adopted_rows_wait_among_those_accepted_here_in_the_order_of_acceptance(store: Store) -> None:
    await store.add([message(at, text=f"{at}") for at in (2, 4)])
    await store.adopt([foreign(message(at, text=f"{at}")[0]) for at in (5, 1, 3)], 50)
    assert [row.envelope.text for row in await store.open_rows(BOB, "messages", 9, 9999)] == ["1", "2", "3", "4", "5"]
    assert [row.envelope.order for row in await store.open_rows(BOB, "messages", 9, 9999)] == [
        order_at(at) for at in range(1, 6)
    ]


@pytest.mark.parametrize("request_id", ["", "r"])
async def test_a_taken_order_gives_way_and_the_sequence_stays(store: Store, request_id: str) -> None:
    """Both nodes accepted in one millisecond: the adopted rows get the next free orders, and are found by their ids."""
    await store.add([message(1, BOB, CID, ANN), message(1, n=4)])
    theirs = [elsewhere(message(1, request=request_id, text=f"{n}", n=n)[0]) for n in range(4)]
    came = await store.adopt([foreign(envelope) for envelope in theirs], 50)
    assert [row.envelope.order for row in came] == [order_at(1, n) for n in (3, 5, 6, 7)]
    assert [row.envelope.text for row in came] == ["0", "1", "2", "3"]
    assert await store.find([envelope.key for envelope in theirs]) == list(came)
    assert await store.last_order() == order_at(1, 7)
    for row in came:
        assert (await store.recipients(row.envelope.message_id))[0] == {BOB: row.envelope.order}
    assert await store.adopt([foreign(envelope) for envelope in theirs], 60) == []


async def test_an_order_far_from_what_the_id_carries_is_found_all_the_same(store: Store) -> None:
    (envelope,) = message(1)
    far = replace(envelope, order=order_at(9, 7))
    await store.adopt([foreign(far)], 50)
    assert (await only(store, envelope)).envelope == far
    assert await store.known([envelope.key]) == [False]
    await store.settle([envelope.key], rank=ACKED, told=ACKED, at=60)
    assert await store.known([envelope.key]) == [True]
    assert [row.envelope for row in await store.search(RowFilter(message_id=envelope.message_id))] == [far]


async def test_an_adopted_row_lives_on_as_any_other(store: Store) -> None:
    """Steps, expiry, purge."""
    (envelope,) = message(1)
    await store.adopt([foreign(envelope)], 50)
    assert [row.envelope for row in await store.expired(2, 0, 9)] == [envelope]
    await store.record([Step(envelope.order, GIVEN_UP, GIVEN_UP, attempts=3, settled_at=60, told_at=61)])
    row = await only(store, envelope)
    assert (row.rank, row.told, row.attempts, row.sent_at, row.adopted_at) == (GIVEN_UP, GIVEN_UP, 3, 10, 50)
    assert await store.purge(2, 9) == 1
    assert await store.totals() == Totals(expired=1, adopted=1)


async def test_a_full_store_adopts_nothing_of_the_call(table: Table, store: Store) -> None:
    await table.fill(store)
    rows = [foreign(message(at, text="x" * 10_000)[0]) for at in range(1, 200)]
    with pytest.raises(StoreUnavailable):
        await store.adopt(rows, 50)
    assert await store.totals() == Totals()
    await table.make_room(store)
    assert len(await store.adopt(rows, 50)) == len(rows)


# -- movable -----------------------------------------------------------------------------------------------------------
async def test_movable_is_whatever_may_still_change(store: Store) -> None:
    """Open rows, untold ones, and those given up; not what is delivered and told."""
    await store.add([message(at, request=f"r{at}" if at % 2 else "") for at in range(1, 6)])
    await store.add([message(6)], quiet={message(6)[0].message_id})
    await store.record(
        [
            Step(order_at(2), ACKED),
            Step(order_at(3), ACKED, ACKED),
            Step(order_at(4), GIVEN_UP),
            Step(order_at(5), GIVEN_UP, GIVEN_UP),
        ]
    )

    async def orders(after: int = 0, limit: int = 9) -> list[int]:
        return [row.envelope.accepted_at for row in await store.movable(after, limit)]

    assert await orders() == [1, 2, 4, 5, 6]
    assert await orders(order_at(2), 2) == [4, 5]
    await store.moved([message(at)[0].key for at in (2, 4)], 50)
    assert await orders() == [1, 5, 6]


# -- moved -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("request_id", ["", "r-1"])
async def test_a_moved_row_is_open_no_more(store: Store, request_id: str) -> None:
    """Nobody is owed anything of it here, and what still comes of it changes nothing."""
    open_row, untold, given_up, stays = (message(at, request=request_id and f"{request_id}{at}") for at in (1, 2, 3, 4))
    await store.add([open_row, untold, given_up, stays])
    await store.record([Step(order_at(2), ACKED), Step(order_at(3), GIVEN_UP, GIVEN_UP)])
    keys = [one[0].key for one in (open_row, untold, given_up)]
    await store.moved(keys, 50)
    await store.moved(keys, 60)

    assert await store.totals() == Totals(pending=1, moved=3)
    assert [row and (row.state, row.moved_at) for row in await store.find(keys)] == [("moved", 50)] * 3
    assert [row.envelope for row in await store.open_rows(BOB, "messages", 9, 9999)] == stays
    assert await store.open_rows(ANN, "notices", 9, 9999) == []
    assert await store.users_with_open_rows("", 9) == [BOB]
    assert [waiting.rows for waiting in await store.waiting()] == [1]
    assert [row.envelope for row in await store.expired(99, 99, 9)] == stays
    assert [row.envelope for row in await store.movable(0, 9)] == stays
    assert await store.settle(keys, rank=ACKED, told=ACKED, at=70) == []
    assert [row and row.rank for row in await store.find(keys)] == [OPEN, ACKED, GIVEN_UP]
    assert await store.recipients(open_row[0].message_id) == ({}, [])


async def test_a_person_finds_moved_rows_as_such(store: Store) -> None:
    await store.add([message(1), message(2)])
    await store.record([Step(order_at(1), ACKED)])
    await store.moved([message(1)[0].key], 50)

    async def orders(*states: str) -> list[int]:
        return [row.envelope.accepted_at for row in await store.search(RowFilter(states=states))]

    assert await orders("moved") == [1]
    assert await orders("pending") == [2]
    assert await orders("delivered") == await orders("expired") == await orders("untold") == []
    assert await orders("moved", "pending") == await orders() == [1, 2]


async def test_moving_what_is_not_here_changes_nothing(store: Store) -> None:
    await store.moved([message(1)[0].key], 50)
    assert await store.totals() == Totals()


async def test_a_request_of_a_moved_message_is_known(store: Store) -> None:
    """Its promise is kept elsewhere; here it is no news."""
    await store.add([message(1, request="r")])
    await store.moved([message(1, request="r")[0].key], 50)
    assert await store.add([message(2, request="r")]) == [[False]]
    assert await store.open_rows(BOB, "messages", 9, 9999) == []


async def test_purge_removes_old_moved_rows_in_whatever_rank(store: Store) -> None:
    await store.add([message(at, request=f"r{at}") for at in (1, 2, 3, 4)])
    await store.record([Step(order_at(2), GIVEN_UP), Step(order_at(3), ACKED)])
    await store.moved([message(at, request=f"r{at}")[0].key for at in (1, 2, 3, 4)], 50)
    assert await store.purge(4, 9) == 3
    assert await store.totals() == Totals(moved=4)
    assert [row.envelope.accepted_at for row in await store.search(RowFilter())] == [4]


async def test_a_row_that_was_moved_away_comes_back(store: Store) -> None:
    """In its place, with all that the other node has learnt of it; then it may go again."""
    envelopes = message(1, BOB, CID)
    await store.add([envelopes])
    await store.record([Step(envelopes[0].order, attempts=1, sent_at=5)])
    keys = [envelope.key for envelope in envelopes]
    await store.moved(keys, 50)
    theirs = [
        foreign(replace(envelopes[0], order=order_at(7))),
        foreign(replace(envelopes[1], order=order_at(8)), ACKED),
    ]
    came = await store.adopt(theirs, 60)
    assert came == [
        Row(envelopes[0], attempts=2, sent_at=5, arrived_at=11, adopted_at=60),
        Row(envelopes[1], ACKED, attempts=2, sent_at=10, arrived_at=11, settled_at=12, adopted_at=60),
    ]
    assert await store.find(keys) == list(came)
    assert [row.envelope for row in await store.open_rows(BOB, "messages", 9, 9999)] == envelopes[:1]
    assert await store.totals() == Totals(pending=1, delivered=1, untold=1)
    assert await store.adopt(theirs, 70) == []
    await store.moved(keys, 80)
    assert await store.totals() == Totals(moved=2)


async def test_what_was_moved_and_adopted_survives_a_restart(table: Table) -> None:
    async with table.open() as store:
        await store.add([message(1), message(2)])
        await store.moved([message(1)[0].key], 50)
        await store.adopt([foreign(message(3, request="r")[0])], 50)
    async with table.open() as store:
        assert await store.totals() == Totals(pending=2, moved=1, adopted=1)
        assert [row.envelope.accepted_at for row in await store.movable(0, 9)] == [2, 3]
        assert await store.last_order() == order_at(3)


async def test_every_row_is_counted_in_one_state(store: Store) -> None:
    """Accepted and adopted are as many as delivered, pending, expired and moved, whatever happens in between."""
    await store.add([message(at) for at in range(1, 9)])
    await store.adopt([foreign(message(11)[0]), foreign(message(12, request="r")[0], ACKED)], 50)
    await store.record([Step(order_at(at), ACKED, ACKED) for at in (1, 2, 3)] + [Step(order_at(4), GIVEN_UP)])
    await store.moved([message(at)[0].key for at in (3, 4, 5)], 50)
    await store.adopt([foreign(message(5)[0])], 60)
    for _ in range(2):
        totals = await store.totals()
        assert totals.delivered + totals.pending + totals.expired + totals.moved == 8 + totals.adopted
        assert (totals.moved, totals.adopted) == (2, 2)
        await store.purge(100, 99)
