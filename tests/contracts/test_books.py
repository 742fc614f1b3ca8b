"""The port Books: what is said of a message and of a whole table is what was done to it."""

from __future__ import annotations

from msgspec.structs import replace

from tests.contracts.backends import Store, Table
from tests.contracts.examples import ANN, BOB, CID, HERE, THERE, acked, message, order_at
from yanchat.model import ACKED, GIVEN_UP, Envelope, MessageId, Row, Step
from yanchat.protocol.books import Account, ByState, Held, HeldAck, Story, imbalances


async def finish(store: Store, *times: int, rank: int = ACKED) -> None:
    """Settle the messages accepted at these times, and tell their senders."""
    await store.record([Step(order_at(at), rank, rank, settled_at=9, told_at=9) for at in times])


# -- one message -------------------------------------------------------------------------------------------------------
async def test_the_story_of_a_message_is_its_rows_without_their_text(store: Store) -> None:
    """To all its recipients, as they stand; with a request id and without."""
    for request in ("", "r-1"):
        for_bob, for_cid = message(1 if request else 2, BOB, CID, request=request, text=f"secret {request}")
        await store.add([[for_bob, for_cid]])
        await store.record([Step(for_cid.order, GIVEN_UP, GIVEN_UP, 2, 5, 6, 7, 8)])
        bob, cid = (await store.books.story(for_bob.message_id)).rows
        assert bob == Row(without_text(for_bob))
        assert cid == Row(without_text(for_cid), GIVEN_UP, GIVEN_UP, 2, 5, 6, 7, 8)


def without_text(envelope: Envelope) -> Envelope:
    return replace(envelope, text="")


async def test_the_story_has_the_acks_of_users_here_and_whether_they_have_left(store: Store) -> None:
    (envelope,), (other,) = message(1), message(2)
    await store.ack([acked(other, THERE), acked(envelope, THERE, HERE, at=7)])
    story = await store.books.story(envelope.message_id)
    assert story == Story(acks=(HeldAck(2, *envelope.key, (HERE, THERE), 7, left=False),))
    await store.published(2)
    (ack,) = (await store.books.story(envelope.message_id)).acks
    assert ack.left


async def test_of_an_unknown_message_it_is_said_up_to_when_rows_were_purged(store: Store) -> None:
    assert await store.books.story(message(1)[0].message_id) == Story()
    await store.add([message(at) for at in (1, 2, 3)])
    await finish(store, 1, 2, 3)
    await store.purge(3, 9)
    assert await store.books.story(message(2)[0].message_id) == Story(purged_before=3)
    assert (await store.books.story(message(3)[0].message_id)).rows


async def test_a_request_leads_to_its_messages(store: Store) -> None:
    """The oldest first; of its sender only; each once, however many recipients it has."""
    second, first = message(2, BOB, CID, request="r", text="again"), message(1, request="r")
    await store.add([second, first, message(3, request="r", sender=BOB), message(4, request="s")])
    ids = [first[0].message_id, second[0].message_id]
    assert await store.books.requested(ANN, "r", 9) == ids
    assert await store.books.requested(ANN, "r", 1) == ids[:1]
    assert await store.books.requested(CID, "r", 9) == []


# -- all of them -------------------------------------------------------------------------------------------------------
async def test_every_change_is_counted_and_found_again(store: Store) -> None:
    """Whatever rows go through, those counted are those there and those purged."""
    await store.add([message(at) for at in range(1, 9)])
    await store.adopt([Row(message(11)[0]), Row(message(12, request="r")[0], ACKED, settled_at=1)], 50)
    await store.ack([acked(message(1)[0], own=True)])
    await finish(store, 2, 3)
    await finish(store, 4, 5, rank=GIVEN_UP)
    await store.settle([message(4)[0].key], rank=ACKED, told=ACKED, at=60)  # an ack came all the same
    await store.record([Step(order_at(6), GIVEN_UP, settled_at=9), Step(order_at(6), ACKED, settled_at=9)])
    await store.moved([message(at)[0].key for at in (5, 6, 7)], 50)
    await store.adopt([Row(message(7)[0], ACKED, settled_at=1)], 60)
    counted = ByState(pending=2, delivered=6, expired=0, moved=2)
    account = await store.books.account()
    assert account == Account(8, 2, counted, counted, ByState(), 0)
    await finish(store, 1, 7)
    assert await store.purge(100, 99) > 0
    account = await store.books.account()
    assert account.counted == counted
    assert account.purged == ByState(0, 5, 0, 2)
    assert account.held == ByState(2, 1, 0, 0)
    assert list(imbalances(account)) == []


async def test_what_was_given_up_is_counted_until_an_ack_comes(store: Store) -> None:
    await store.add([message(1), message(2)])
    await finish(store, 1, 2, rank=GIVEN_UP)
    assert (await store.books.account()).counted == ByState(expired=2)
    await store.ack([acked(message(1)[0], own=True)])
    assert (await store.books.account()).counted == ByState(delivered=1, expired=1)


async def test_a_request_that_was_acked_here_is_counted_as_delivered(store: Store) -> None:
    await store.ack([acked(message(1, request="r")[0], THERE)])
    await store.add([message(2, request="r")])
    account = await store.books.account()
    assert (account.accepted, account.counted) == (1, ByState(delivered=1))


async def test_steps_of_a_row_that_moved_away_are_not_counted(store: Store) -> None:
    await store.add([message(1)])
    await store.moved([message(1)[0].key], 5)
    await finish(store, 1)
    account = await store.books.account()
    assert account.counted == account.held == ByState(moved=1)


async def test_an_account_since_then_has_only_the_rows_since_then(store: Store) -> None:
    await store.add([message(at) for at in (1, 2, 3)])
    await store.adopt([Row(message(4)[0])], 9)
    await finish(store, 1, 3)
    assert await store.books.account(2) == Account(2, 1, None, ByState(2, 1), ByState(), 0)


async def test_rows_and_acks_are_listed_page_by_page(store: Store) -> None:
    await store.add([message(1, BOB, CID), message(2), message(3)])
    await finish(store, 2)
    await store.moved([message(3)[0].key], 9)
    await store.adopt([Row(message(4)[0])], 9)
    rows = await store.books.held(0, 0, 99)
    assert [(row.accepted_at, row.rank, row.moved, row.adopted) for row in rows] == [
        (1, 0, False, False),
        (1, 0, False, False),
        (2, ACKED, False, False),
        (3, 0, True, False),
        (4, 0, False, True),
    ]
    assert rows[1] == Held(order_at(1, 1), MessageId(rows[0].message_id), CID, 1, 0, moved=False, adopted=False)
    assert await store.books.held(rows[1].order, 0, 2) == rows[2:4]
    assert await store.books.held(0, 3, 99) == rows[3:]

    places = await store.ack([acked(message(at)[0], THERE, at=at) for at in (1, 2, 3)])
    acks = await store.books.held_acks(0, 0, 99)
    assert [ack.place for ack in acks] == places
    assert await store.books.held_acks(places[0], 0, 1) == acks[1:2]
    assert await store.books.held_acks(0, 3, 9) == acks[2:]


async def test_the_books_survive_a_restart(table: Table) -> None:
    async with table.open() as store:
        await store.add([message(at) for at in (1, 2, 3)])
        await finish(store, 1, 2)
        await store.purge(2, 9)
        before = await store.books.account()
    async with table.open() as store:
        assert await store.books.account() == before
        assert before.counted == ByState(pending=1, delivered=2)
