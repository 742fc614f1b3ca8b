"""The rules of the books: what does not fit together is said, and nothing else is accused."""

from __future__ import annotations

import pytest

from yanchat.model import ACKED, GIVEN_UP, OPEN, MessageId, Node, OpenId
from yanchat.protocol.books import Account, ByState, Held, HeldAck, imbalances, judge
from yanchat.protocol.ids import message_id_from_request, order_from_message_id

N1, N2, N3 = Node("n1:1"), Node("n2:1"), Node("n3:1")
BOB = OpenId("bob")
PLAIN = MessageId("018cc7b2a37070008000000000000001")
"""An id that carries its order: only one node can have made it."""
AT = order_from_message_id(PLAIN) >> 16
REQUEST = message_id_from_request("ann", "r", 0, "hello")
NONE = ByState()
ALL = {N1: 0, N2: 0, N3: 0}
"""All were asked, and nothing was ever purged."""


def row(message_id: MessageId = PLAIN, *, moved: bool = False, adopted: bool = False, rank: int = OPEN) -> Held:
    return Held(AT << 16, message_id, BOB, AT, rank, moved, adopted)


def ack(*origins: Node, message_id: MessageId = PLAIN) -> HeldAck:
    return HeldAck(1, message_id, BOB, origins, AT + 5, left=True)


# -- one table ---------------------------------------------------------------------------------------------------------
def account(held: ByState, counted: ByState | None, purged: ByState = NONE) -> Account:
    return Account(9, 0, counted, held, purged, 0)


def test_what_is_there_and_what_was_purged_is_what_was_counted() -> None:
    assert not list(imbalances(account(ByState(1, 2, 3, 1), ByState(1, 4, 3, 1), ByState(0, 2, 0, 0))))


@pytest.mark.parametrize(
    ("held", "says"),
    [
        (ByState(1, 3, 3, 1), "4 delivered were counted, but 3 are there: 1 missing"),
        (ByState(3, 4, 3, 1), "1 pending were counted, but 3 are there: 2 too many"),
        (ByState(1, 4, 2, 1), "3 expired were counted, but 2 are there: 1 missing"),
        (ByState(1, 4, 3, 0), "1 moved were counted, but 0 are there: 1 missing"),
    ],
)
def test_each_state_is_compared_on_its_own(held: ByState, says: str) -> None:
    assert list(imbalances(account(held, ByState(1, 4, 3, 1)))) == [says]


def test_a_row_that_changed_its_state_unseen_is_missed_in_one_and_too_many_in_the_other() -> None:
    found = list(imbalances(account(ByState(2, 3), ByState(1, 4), ByState())))
    assert ["missing" in one for one in found] == [False, True]


def test_the_purged_are_named_in_the_sentence() -> None:
    (said,) = imbalances(account(ByState(), ByState(delivered=4), ByState(delivered=3)))
    assert said == "4 delivered were counted, but 0 are there and 3 were purged: 1 missing"


def test_without_counters_nothing_is_compared() -> None:
    assert not list(imbalances(account(ByState(5), None)))


# -- all tables --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("rows", "acks"),
    [
        ({N1: row()}, {}),
        ({N1: row(rank=ACKED)}, {N2: ack(N1)}),
        ({N1: row()}, {N2: ack(N1)}),  # the ack is on its way
        ({N1: row(moved=True), N2: row(adopted=True)}, {}),
        ({N1: row(adopted=True), N2: row(moved=True)}, {}),  # there and back
        ({N1: row(moved=True), N2: row(moved=True, adopted=True), N3: row(adopted=True)}, {}),
        ({N1: row(moved=True), N2: row(adopted=True)}, {N3: ack(N1, N2)}),
        ({N1: row(moved=True), N2: row(adopted=True)}, {N1: ack(N2, N3)}),  # passed on; once another had moved to n3
        ({N1: row(adopted=True), N2: row(moved=True)}, {N1: ack(N2, N3)}),  # and has come back since
        ({N1: row(REQUEST), N2: row(REQUEST)}, {}),  # the request was sent again to another node
        ({N1: row(REQUEST, moved=True), N2: row(REQUEST, adopted=True), N3: row(REQUEST)}, {}),
        ({N1: row(REQUEST, moved=True), N2: row(REQUEST)}, {}),  # the adopter had it already
    ],
)
def test_what_nodes_do_is_not_accused(rows: dict[Node, Held], acks: dict[Node, HeldAck]) -> None:
    message_id = next(iter(rows.values())).message_id
    assert judge(message_id, BOB, rows, acks, ALL, complete=True) is None


def sentence(rows: dict[Node, Held], acks: dict[Node, HeldAck], purged: dict[Node, int], complete: bool = True) -> str:
    message_id = next(one.message_id for one in (*rows.values(), *acks.values()))
    doubt = judge(message_id, BOB, rows, acks, purged, complete)
    if doubt is None:
        return ""
    assert (doubt.message_id, doubt.to) == (message_id, BOB)
    return doubt.sentence


def test_a_row_of_one_node_on_two_is_in_doubt() -> None:
    for complete in (True, False):
        assert "only one node can have accepted it" in sentence({N1: row(), N2: row()}, {}, ALL, complete)


def test_an_adoption_that_did_not_end_is_said_with_what_to_do() -> None:
    half = {N1: row(), N2: row(adopted=True)}
    assert "redeliver --adopt" in sentence(half, {}, ALL)
    twice = {N2: row(adopted=True), N3: row(adopted=True), N1: row(moved=True)}
    assert "redeliver --adopt" in sentence(twice, {}, ALL)


@pytest.mark.parametrize("message_id", [PLAIN, REQUEST])
def test_an_adoption_that_did_not_end_is_no_doubt_when_all_who_have_it_know_its_end(message_id: MessageId) -> None:
    """Delivered, or given up, on each of them: no recipient waits for it. One that is open is enough for a doubt."""
    done = {N1: row(message_id, rank=ACKED), N2: row(message_id, adopted=True, rank=GIVEN_UP)}
    assert sentence(done, {}, ALL) == ""
    for waits in ({N1: row(message_id)}, {N2: row(message_id, adopted=True)}):
        assert "redeliver --adopt" in sentence({**done, **waits}, {}, ALL)
    assert "only one node can have accepted it" in sentence({N1: row(rank=ACKED), N2: row(rank=ACKED)}, {}, ALL)


def test_an_adopted_request_may_have_come_from_a_node_that_was_not_asked() -> None:
    rows = {N1: row(REQUEST), N2: row(REQUEST, adopted=True)}
    assert "redeliver --adopt" in sentence(rows, {}, ALL)
    assert sentence(rows, {}, ALL, complete=False) == ""


def test_what_moved_and_is_nowhere_is_in_doubt_unless_it_may_be_elsewhere_or_purged() -> None:
    rows = {N1: row(moved=True)}
    assert "on no other node" in sentence(rows, {}, ALL)
    assert sentence(rows, {}, ALL, complete=False) == ""
    assert sentence(rows, {}, {**ALL, N2: AT + 1}) == ""
    assert sentence(rows, {}, {**ALL, N2: AT}) != ""


def test_an_ack_whose_origin_does_not_know_the_message_is_in_doubt_unless_that_purged_it_or_was_not_asked() -> None:
    acks = {N2: ack(N1)}
    assert "acked on n2:1 as a message of n1:1" in sentence({}, acks, ALL)
    assert sentence({}, acks, {N2: 0}) == ""
    assert sentence({}, acks, {**ALL, N1: AT + 1}) == ""
    assert sentence({}, acks, {**ALL, N1: AT}) != ""
    assert "which does not know it" in sentence({N1: row()}, {N2: ack(N1, N3)}, ALL)
    assert "which does not know it" in sentence({N1: row()}, {N1: ack(N3)}, ALL)


def test_when_a_request_was_accepted_its_id_does_not_say_so_any_purge_excuses_it() -> None:
    acks = {N2: ack(N1, message_id=REQUEST)}
    assert sentence({}, acks, ALL) != ""
    assert sentence({}, acks, {**ALL, N1: 1}) == ""
