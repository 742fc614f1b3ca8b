"""The port Outbox: what is accepted is stored, once, and only rises."""

from __future__ import annotations

import pytest
import trio

from tests.contracts.backends import Store, Table
from tests.contracts.examples import ANN, BOB, CID, DAY, THERE, acked, message, order_at
from yanchat.errors import StoreUnavailable
from yanchat.model import ACKED, GIVEN_UP, OPEN, Envelope, MessageId, Row, Step, Totals
from yanchat.node.adoption import FOREVER
from yanchat.ports import RowFilter, Tray, Waiting


async def only(store: Store, envelope: Envelope) -> Row:
    (row,) = await store.find([envelope.key])
    assert row is not None
    return row


# -- add ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("request_id", ["", "r-1"])
async def test_a_message_is_stored_once_and_stays_as_it_is(store: Store, request_id: str) -> None:
    (envelope,) = message(1, request=request_id)
    assert await store.add([[envelope]]) == [[True]]
    await store.record([Step(envelope.order, ACKED, settled_at=9)])
    assert await store.add([[envelope]]) == [[False]]
    assert await only(store, envelope) == Row(envelope, rank=ACKED, settled_at=9)


async def test_a_request_repeated_later_is_the_same_message(store: Store) -> None:
    (first,), (again,) = message(1, request="r-1"), message(2, request="r-1")
    assert await store.add([[first]]) == [[True]]
    assert await store.add([message(3), [again]]) == [[True], [False]]
    assert (await only(store, again)).envelope == first
    assert len(await store.open_rows(BOB, "messages", 9, 9999)) == 2


async def test_a_request_repeated_in_one_call_is_the_same_message(store: Store) -> None:
    first, again = message(1, request="r-1"), message(2, request="r-1")
    assert await store.add([first, again, first]) == [[True], [False], [False]]
    assert [row.envelope for row in await store.open_rows(BOB, "messages", 9, 9999)] == first


async def test_a_request_repeated_for_more_recipients_is_news_for_those(store: Store) -> None:
    await store.add([message(1, BOB, request="r-1")])
    assert await store.add([message(2, CID, BOB, ANN, request="r-1")]) == [[True, False, True]]
    (row,) = await store.open_rows(BOB, "messages", 9, 9999)
    assert row.envelope.order == order_at(1)


async def test_one_request_with_two_texts_makes_two_messages(store: Store) -> None:
    assert await store.add([message(1, request="r", text="a"), message(2, request="r", text="b")]) == [[True], [True]]


@pytest.mark.parametrize("quiet", [True, False])
async def test_a_request_that_was_acked_here_for_another_node_is_no_news(store: Store, quiet: bool) -> None:
    """It is the same message, whichever node accepts it: who has acked it does not get it again."""
    for_bob, for_cid = message(1, BOB, CID, request="r-1")
    await store.ack([acked(for_bob, THERE, at=7)])
    ids = {for_bob.message_id} if quiet else set()
    assert await store.add([[for_bob, for_cid], [for_bob]], quiet=ids) == [[False, True], [False]]
    assert await only(store, for_bob) == Row(for_bob, ACKED, ACKED, settled_at=7)
    assert await store.waiting() == [Waiting(ANN, CID, 1)]
    assert await store.totals() == Totals(pending=1, delivered=1, expired=0, untold=0)
    assert await store.add([[for_bob]]) == [[False]]


async def test_a_message_is_stored_for_each_of_its_recipients(store: Store) -> None:
    envelopes = message(1, BOB, CID, ANN)
    assert await store.add([envelopes]) == [[True, True, True]]
    assert await store.find([envelope.key for envelope in envelopes]) == [Row(envelope) for envelope in envelopes]


async def test_a_cancelled_call_stored_all_or_nothing_and_may_be_repeated(store: Store) -> None:
    messages = [message(1, BOB, CID, ANN), message(2, BOB, CID, request="r")]
    keys = [envelope.key for envelopes in messages for envelope in envelopes]
    with trio.CancelScope() as scope:
        scope.cancel()
        await store.add(messages)
    found = await store.find(keys)
    assert None not in found or set(found) == {None}
    await store.add(messages)
    assert None not in await store.find(keys)
    assert (await store.totals()).pending == len(keys)


async def test_no_messages_are_no_news(store: Store) -> None:
    assert await store.add([]) == []
    assert await store.find([]) == []
    await store.record([])


async def test_any_text_comes_back_as_it_was(store: Store) -> None:
    (envelope,) = message(1, text="\0 \u2028 你好 \U0001f600 ' \" %s ?1")
    await store.add([[envelope]])
    assert (await only(store, envelope)).envelope == envelope


async def test_when_the_store_is_full_nothing_of_the_call_is_stored(table: Table, store: Store) -> None:
    await store.add([message(1)])
    await table.fill(store)
    big = [message(at, text="x" * 10_000) for at in range(2, 200)]
    with pytest.raises(StoreUnavailable):
        await store.add([message(300, BOB, CID), *big])
    assert not store.healthy()
    assert await store.totals() == Totals(pending=1)
    assert await store.find([message(300)[0].key]) == [None]

    await table.make_room(store)
    assert await store.add([message(300, BOB, CID), *big]) == [[True, True]] + [[True]] * len(big)
    assert store.healthy()


async def test_a_store_is_healthy_again_when_it_is_looked_at_after_there_is_room(table: Table, store: Store) -> None:
    """Nobody has to send for that, and nobody who sends is the first to learn."""
    await table.fill(store)
    with pytest.raises(StoreUnavailable):
        await store.add([message(1, text="x" * 10_000)])
    await store.check()
    assert not store.healthy()
    await table.make_room(store)
    await store.check()
    assert store.healthy()
    assert await store.totals() == Totals()


async def test_what_was_added_survives_a_restart(table: Table) -> None:
    envelopes = message(1, BOB, CID) + message(2, BOB, request="r-1")
    async with table.open() as store:
        store_id = store.store_id
        await store.add([envelopes[:2], envelopes[2:]])
        await store.record([Step(envelopes[0].order, ACKED, settled_at=5)])
    async with table.open() as store:
        assert store.store_id == store_id
        assert store.store_id
        assert [row and row.rank for row in await store.find([one.key for one in envelopes])] == [ACKED, OPEN, OPEN]
        assert await store.last_order() == envelopes[2].order


# -- record ------------------------------------------------------------------------------------------------------------
async def test_ranks_only_rise(store: Store) -> None:
    (envelope,) = message(1)
    await store.add([[envelope]])
    await store.record([Step(envelope.order, ACKED, GIVEN_UP, settled_at=10, told_at=11)])
    await store.record([Step(envelope.order, GIVEN_UP, OPEN, settled_at=20, told_at=21)])
    assert await only(store, envelope) == Row(envelope, ACKED, GIVEN_UP, settled_at=10, told_at=11)
    await store.record([Step(envelope.order, ACKED, ACKED, settled_at=30, told_at=31)])
    assert await only(store, envelope) == Row(envelope, ACKED, ACKED, settled_at=10, told_at=31)


async def test_first_times_stay_and_attempts_only_grow(store: Store) -> None:
    (envelope,) = message(1)
    await store.add([[envelope]])
    await store.record([Step(envelope.order, attempts=2, sent_at=10)])
    await store.record([Step(envelope.order, attempts=1, sent_at=20, arrived_at=21), Step(envelope.order)])
    await store.record([Step(envelope.order, attempts=3, arrived_at=30)])
    assert await only(store, envelope) == Row(envelope, attempts=3, sent_at=10, arrived_at=21)


async def test_an_ack_after_expiry_still_counts(store: Store) -> None:
    (envelope,) = message(1)
    await store.add([[envelope]])
    await store.record([Step(envelope.order, GIVEN_UP, GIVEN_UP, settled_at=10, told_at=11)])
    assert await store.open_rows(ANN, "notices", 9, 9999) == []
    await store.record([Step(envelope.order, ACKED, settled_at=20)])
    row = await only(store, envelope)
    assert (row.state, row.settled_at) == ("delivered", 20)
    assert await store.open_rows(ANN, "notices", 9, 9999) == [row]


async def test_a_step_of_an_unknown_row_changes_nothing(store: Store) -> None:
    await store.record([Step(order_at(1), ACKED)])
    assert await store.totals() == Totals()


async def test_a_repeated_record_changes_nothing(store: Store) -> None:
    (envelope,) = message(1)
    await store.add([[envelope]])
    step = Step(envelope.order, ACKED, GIVEN_UP, 2, 3, 4, 5, 6)
    await store.record([step])
    once = await only(store, envelope)
    await store.record([step, step])
    assert await only(store, envelope) == once == Row(envelope, ACKED, GIVEN_UP, 2, 3, 4, 5, 6)


# -- settle ------------------------------------------------------------------------------------------------------------
async def test_settle_answers_the_rows_that_rose_as_they_were(store: Store) -> None:
    (first,), (second,) = message(1), message(2, request="r")
    await store.add([[first], [second]])
    unknown = message(3)[0].key
    rows = await store.settle([first.key, unknown, second.key, first.key], rank=ACKED, told=OPEN, at=9)
    assert sorted(rows, key=lambda row: row.envelope.order) == [Row(first), Row(second)]
    assert await only(store, first) == Row(first, ACKED, settled_at=9)
    assert await store.settle([first.key], rank=GIVEN_UP, told=OPEN, at=10) == []
    assert await store.settle([first.key], rank=OPEN, told=ACKED, at=11) == [Row(first, ACKED, settled_at=9)]
    assert await only(store, first) == Row(first, ACKED, ACKED, settled_at=9, told_at=11)


# -- trays -------------------------------------------------------------------------------------------------------------
async def test_open_messages_come_oldest_first_and_leave_when_settled(store: Store) -> None:
    messages = [message(at, request="r" if at == 2 else "", text=f"{at}") for at in (3, 1, 2)]
    await store.add([*messages, message(4, CID)])
    texts = [row.envelope.text for row in await store.open_rows(BOB, "messages", 9, 9999)]
    assert texts == ["1", "2", "3"]
    assert [row.envelope.text for row in await store.open_rows(BOB, "messages", 2, 9999)] == ["1", "2"]
    await store.record([Step(order_at(1), ACKED), Step(order_at(2), GIVEN_UP)])
    assert [row.envelope.text for row in await store.open_rows(BOB, "messages", 9, 9999)] == ["3"]


@pytest.mark.parametrize("tray", ["messages", "notices"])
async def test_open_rows_end_with_the_one_that_makes_them_large_enough(store: Store, tray: Tray) -> None:
    """So a caller knows whether there is more, and gets one at least, however large."""
    await store.add([message(at, sender=BOB, text="ö" * 10) for at in (1, 2, 3)])
    if tray == "notices":
        await store.record([Step(order_at(at), ACKED) for at in (1, 2, 3)])
    for size, count in ((1 << 40, 3), (21, 3), (20, 2), (11, 2), (10, 1), (1, 1), (0, 1)):
        assert len(await store.open_rows(BOB, tray, 9, size)) == count
    assert await store.open_rows(CID, tray, 9, 0) == []


async def test_notices_wait_for_the_sender_until_he_knows_the_rank(store: Store) -> None:
    await store.add([message(1), message(2), message(3, sender=CID)])
    await store.record([Step(order_at(at), ACKED) for at in (3, 2, 1)])
    assert [row.envelope.order for row in await store.open_rows(ANN, "notices", 9, 9999)] == [order_at(1), order_at(2)]
    assert [row.envelope.order for row in await store.open_rows(ANN, "notices", 1, 9999)] == [order_at(1)]
    await store.record([Step(order_at(1), told=ACKED), Step(order_at(2), told=GIVEN_UP)])
    assert [row.envelope.order for row in await store.open_rows(ANN, "notices", 9, 9999)] == [order_at(2)]


async def test_a_sender_who_wants_no_notice_is_never_owed_one(store: Store) -> None:
    quiet = [message(1), message(2, request="r")]
    await store.add([*quiet, message(3)], quiet={first.message_id for (first,) in quiet})
    await store.record([Step(order_at(1), ACKED), Step(order_at(2), GIVEN_UP), Step(order_at(3), ACKED)])
    assert [row.envelope.order for row in await store.open_rows(ANN, "notices", 9, 9999)] == [order_at(3)]
    assert await store.totals() == Totals(delivered=2, expired=1, untold=1)


async def test_users_with_anything_in_either_tray_come_in_pages(store: Store) -> None:
    users = [f"u{number:02}" for number in range(10)]
    await store.add([message(at, user, sender="zoe") for at, user in enumerate(users, 1)])  # type: ignore[arg-type]
    await store.record([Step(order_at(at), ACKED) for at in (1, 2)])
    await store.record([Step(order_at(1), told=ACKED)])
    found, page = [], await store.users_with_open_rows("", 4)
    while page:
        assert len(page) <= 4
        found += page
        page = await store.users_with_open_rows(page[-1], 4)
    assert found == [*users[2:], "zoe"]


async def test_waiting_counts_open_rows_by_sender_and_recipient(store: Store) -> None:
    await store.add([message(1), message(2), message(3, CID, BOB), message(4, sender=CID), message(5)])
    await store.record([Step(order_at(5), GIVEN_UP)])
    assert sorted(await store.waiting()) == [Waiting(ANN, BOB, 3), Waiting(ANN, CID, 1), Waiting(CID, BOB, 1)]


# -- questions ---------------------------------------------------------------------------------------------------------
async def test_find_answers_in_the_order_of_the_keys(store: Store) -> None:
    by_order, by_request = message(1, BOB, CID), message(2, BOB, CID, request="r")
    await store.add([by_order, by_request])
    unknown = [(by_order[0].message_id, ANN), (MessageId("0" * 32), BOB), (by_request[0].message_id, ANN)]
    keys = [by_request[1].key, unknown[0], by_order[1].key, unknown[1], by_order[0].key, unknown[2], by_order[0].key]
    assert [row and row.envelope for row in await store.find(keys)] == [
        by_request[1],
        None,
        by_order[1],
        None,
        by_order[0],
        None,
        by_order[0],
    ]


async def test_a_message_with_the_most_recipients_is_found_for_each(store: Store) -> None:
    users = [f"u{number}" for number in range(100)]
    envelopes = message(1, *users)  # type: ignore[arg-type]
    await store.add([envelopes])
    assert [row and row.envelope for row in await store.find([one.key for one in envelopes])] == envelopes


async def test_search_filters(store: Store) -> None:
    messages = [message(1), message(2, BOB, CID), message(3, CID, request="r"), message(4), message(5)]
    await store.add(messages)
    await store.record([Step(order_at(1), ACKED, ACKED), Step(order_at(2), ACKED), Step(order_at(4), GIVEN_UP)])

    async def orders(**what: object) -> list[int]:
        return [row.envelope.order for row in await store.search(RowFilter(**what))]  # type: ignore[arg-type]

    one, two, two_b, three, four, five = (order_at(1), order_at(2), order_at(2, 1), *map(order_at, (3, 4, 5)))
    assert await orders() == [one, two, two_b, three, four, five]
    assert await orders(recipient=CID) == [two_b, three]
    assert await orders(message_id=messages[1][0].message_id) == [two, two_b]
    assert await orders(message_id=messages[2][0].message_id) == [three]
    assert await orders(message_id=messages[1][0].message_id, recipient=CID) == [two_b]
    assert await orders(message_id=MessageId("0" * 32)) == []
    assert await orders(states=("pending",)) == [two_b, three, five]
    assert await orders(states=("delivered",)) == [one, two]
    assert await orders(states=("expired",)) == [four]
    assert await orders(states=("untold",)) == [two, four]
    assert await orders(states=("pending", "expired")) == [two_b, three, four, five]
    assert await orders(states=("delivered", "untold")) == [one, two, four]
    assert await orders(states=("pending",), recipient=CID, accepted_before=3) == [two_b]
    assert await orders(accepted_before=3) == [one, two, two_b]
    assert await orders(after=two, limit=2) == [two_b, three]
    assert await orders(states=("expired", "pending"), after=two_b, limit=2) == [three, four]


async def test_expired_are_old_open_rows_and_those_long_untold(store: Store) -> None:
    await store.add([message(at * DAY) for at in (1, 2, 3, 4)] + [message(5 * DAY)])
    await store.record(
        [
            Step(order_at(3 * DAY), ACKED, settled_at=6 * DAY),
            Step(order_at(4 * DAY), GIVEN_UP, settled_at=8 * DAY),
            Step(order_at(1 * DAY), ACKED, ACKED, settled_at=1 * DAY),
        ]
    )

    async def orders(accepted: int, settled: int, limit: int = 9) -> list[int]:
        return [row.envelope.order // (DAY << 16) for row in await store.expired(accepted, settled, limit)]

    assert await orders(2 * DAY, 6 * DAY) == []
    assert await orders(2 * DAY + 1, 6 * DAY) == [2]
    assert await orders(6 * DAY, 6 * DAY + 1) == [2, 5, 3]
    assert await orders(6 * DAY, 9 * DAY) == [2, 5, 3, 4]
    assert await orders(6 * DAY, 9 * DAY, limit=1) == [2]
    assert await orders(6 * DAY, 9 * DAY, limit=3) == [2, 5, 3]


# -- keeping house -----------------------------------------------------------------------------------------------------
async def test_totals_count_what_was_purged(store: Store) -> None:
    await store.add([message(at, request=f"r{at}" if at % 2 else "") for at in range(1, 7)])
    await store.add([message(7), message(3, request="r3")])
    await store.record([Step(order_at(at), ACKED, ACKED) for at in (1, 2)])
    await store.record([Step(order_at(3), GIVEN_UP, GIVEN_UP), Step(order_at(4), GIVEN_UP), Step(order_at(5), ACKED)])
    totals = Totals(pending=2, delivered=3, expired=2, untold=2)
    assert await store.totals() == totals
    assert await store.purge(100, 9) == 3
    assert await store.totals() == totals


async def test_purge_removes_only_rows_that_are_old_and_done(store: Store) -> None:
    await store.add([message(at * DAY) for at in range(1, 6)])
    await store.record(
        [
            Step(order_at(1 * DAY), ACKED, GIVEN_UP),  # not told of the last rank
            Step(order_at(2 * DAY), ACKED, ACKED),
            Step(order_at(3 * DAY), GIVEN_UP, GIVEN_UP),
            Step(order_at(5 * DAY), ACKED, ACKED),  # not old
        ]
    )
    assert await store.purge(4 * DAY + 1, 9) == 2
    left = [row.envelope.order for row in await store.search(RowFilter())]
    assert left == [order_at(1 * DAY), order_at(4 * DAY), order_at(5 * DAY)]
    assert await store.purge(4 * DAY + 1, 9) == 0


async def test_purge_goes_in_chunks_oldest_first(store: Store) -> None:
    await store.add([message(at, request=f"r{at}") for at in range(1, 8)])
    await store.record([Step(order_at(at), ACKED, ACKED) for at in range(1, 8)])
    assert await store.purge(100, 3) == 3
    assert [row.envelope.order for row in await store.search(RowFilter())] == [order_at(at) for at in (4, 5, 6, 7)]
    assert [await store.purge(100, 3), await store.purge(100, 3), await store.purge(100, 3)] == [3, 1, 0]
    assert await store.totals() == Totals(delivered=7)


async def test_a_request_whose_row_was_purged_is_a_new_message(store: Store) -> None:
    await store.add([message(1, request="r")])
    await store.record([Step(order_at(1), ACKED, ACKED)])
    await store.purge(100, 9)
    assert await store.find([message(1, request="r")[0].key]) == [None]
    assert await store.add([message(2, request="r")]) == [[True]]


async def test_the_last_order_survives_a_purge_and_a_restart(table: Table) -> None:
    async with table.open() as store:
        assert await store.last_order() == 0
        await store.add([message(1), message(5, BOB, CID), message(3)])
        assert await store.last_order() == order_at(5, 1)
        await store.record([Step(order, ACKED, ACKED) for order in (order_at(1), order_at(5), order_at(5, 1))])
        assert await store.purge(100, 9) == 3
        assert await store.last_order() == order_at(5, 1)
    async with table.open() as store:
        assert await store.last_order() == order_at(5, 1)


async def test_a_mark_keeps_the_highest_and_answers_the_one_before(table: Table) -> None:
    async with table.open() as store:
        assert await store.mark("a", 5) == 0
        assert await store.mark("a", 3) == 5
        assert await store.mark("a", 9) == 5
        assert await store.mark("b", 1) == 0
    async with table.open() as store:
        assert await store.mark("a", 0) == 9
        assert await store.last_order() == 0


async def test_a_time_that_no_message_can_have_is_behind_all_of_them(table: Table) -> None:
    async with table.open() as store:
        await store.add([message(1)])
        assert await store.mark("came from n1:1", FOREVER) == 0
        assert len(await store.expired(FOREVER + 1, 0, 9)) == 1


async def test_marks_are_found_by_how_their_names_begin(table: Table) -> None:
    """What looks like a pattern is none."""
    async with table.open() as store:
        assert await store.marks("from ") == {}
        for name, value in (("from a", 5), ("from b%", 6), ("fro", 1), ("From c", 1), ("from", 1), ("from a", 4)):
            await store.mark(name, value)
    async with table.open() as store:
        assert await store.marks("from ") == {"a": 5, "b%": 6}
        assert await store.marks("from _") == {}
        assert await store.marks("from b%") == {"": 6}


async def test_a_new_store_is_healthy_and_empty(store: Store) -> None:
    assert store.healthy()
    assert await store.totals() == Totals()
    assert await store.search(RowFilter()) == []
    assert await store.waiting() == []
    assert await store.users_with_open_rows("", 9) == []
