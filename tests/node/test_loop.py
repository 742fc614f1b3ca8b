"""The closed loop on the memory backends, in virtual time: what each side is promised, step by step."""

from __future__ import annotations

from itertools import pairwise

import pytest
import trio

from tests.node.cluster import greeted, open_cluster
from yanchat.config import RedeliverySettings
from yanchat.model import OpenId
from yanchat.ports import RowFilter
from yanchat.protocol.client_frames import Settled


@pytest.mark.parametrize("there", ["n1", "n2"])
async def test_the_loop_closes(there: str, autojump_clock: object) -> None:
    """Receipt, push, ack receipt, notice: each once, with one id, on one node and on two."""
    async with open_cluster("n1", "n2") as cluster:
        ann = await cluster.nodes["n1"].login("ann")
        bob = await cluster.nodes[there].login("bob")
        await greeted(ann, bob)
        ann.write("bob", "hello")
        await ann.until(lambda ann: len(ann.told) == 1)
        await trio.sleep(400)
        (receipt,), (message,), (told,) = ann.receipts, bob.messages, ann.told
        assert receipt.status == 200
        assert receipt.message_id == message.message_id == told[0]
        assert (message.sender, message.recipient, message.text) == ("ann", "bob", "hello")
        assert told[1:] == ("bob", 200)
        assert bob.ack_statuses == [200]
        (row,) = await cluster.stores["n1"].search(RowFilter())
        assert row.state == "delivered"
        assert row.attempts == 1
        times = (row.envelope.accepted_at, row.sent_at, row.arrived_at, row.settled_at, row.told_at)
        assert 0 not in times
        assert list(times) == sorted(times)


async def test_a_message_to_oneself_is_a_message(autojump_clock: object) -> None:
    """Ann writes to ann: she gets it, acks it, and is told."""
    async with open_cluster("n1") as cluster:
        ann = await cluster.nodes["n1"].login("ann")
        ann.write("ann", "note")
        await ann.until(lambda ann: len(ann.told) == 1)
        assert ann.texts == ["note"]


async def test_several_recipients_have_one_id_and_a_notice_each(autojump_clock: object) -> None:
    """One message, three recipients, one of them named twice, one away."""
    async with open_cluster("n1", "n2") as cluster:
        ann = await cluster.nodes["n1"].login("ann")
        bob = await cluster.nodes["n2"].login("bob")
        cat = await cluster.nodes["n1"].login("cat")
        await greeted(ann, bob, cat)
        ann.write("bob,cat,bob,dan", "hello")
        await ann.until(lambda ann: len(ann.told) == 2)
        dan = await cluster.nodes["n2"].login("dan")
        await ann.until(lambda ann: len(ann.told) == 3)
        assert {told[1] for told in ann.told} == {"bob", "cat", "dan"}
        assert len({told[0] for told in ann.told}) == 1
        assert [client.texts for client in (bob, cat, dan)] == [["hello"]] * 3
        assert len(ann.receipts) == 1


async def test_a_request_repeated_on_another_node_is_the_same_message(autojump_clock: object) -> None:
    """Its receipts carry one id, the recipient gets it once, and both nodes' books are closed."""
    async with open_cluster("n1", "n2", "n3") as cluster:
        first, second = await cluster.nodes["n1"].login("ann"), await cluster.nodes["n2"].login("ann")
        bob = await cluster.nodes["n3"].login("bob")
        await greeted(first, second, bob)
        first.write("bob", "hello", "r-1")
        first.write("bob", "hello", "r-1")
        second.write("bob", "hello", "r-1")
        await first.until(lambda client: len(client.told) >= 1)
        await trio.sleep(30)
        assert len({receipt.message_id for receipt in first.receipts + second.receipts}) == 1
        assert len(first.receipts) == 2
        assert bob.texts == ["hello"]
        for name in ("n1", "n2"):
            (row,) = await cluster.stores[name].search(RowFilter())
            assert row.state == "delivered"


async def test_a_request_repeated_on_its_recipients_node_is_the_same_message(autojump_clock: object) -> None:
    """He has acked it there for another node: he does not get it again, and its sender hears so."""
    async with open_cluster("n1", "n2") as cluster:
        ann, bob = await cluster.nodes["n1"].login("ann"), await cluster.nodes["n2"].login("bob")
        await greeted(ann, bob)
        ann.write("bob", "hello", "r-1")
        await ann.until(lambda ann: len(ann.told) == 1)
        await trio.sleep(5)
        ann.leave()
        ann = await cluster.nodes["n2"].login("ann")
        await greeted(ann)
        ann.write("bob", "hello", "r-1")
        await ann.until(lambda ann: [status for *_, status in ann.told] == [200])
        await trio.sleep(100)
        assert len(ann.told) == len(ann.receipts) == 1
        assert bob.texts == ["hello"]


async def test_a_request_repeated_after_its_end_is_answered_and_told_again(autojump_clock: object) -> None:
    """A sender that has forgotten what became of it asks by repeating; its recipient hears nothing of that."""
    async with open_cluster("n1", "n2") as cluster:
        ann, bob = await cluster.nodes["n1"].login("ann"), await cluster.nodes["n2"].login("bob")
        await greeted(ann, bob)
        ann.write("bob", "hello", "r-1")
        await ann.until(lambda ann: len(ann.told) == 1)
        await trio.sleep(5)
        ann.leave()
        ann = await cluster.nodes["n1"].login("ann")
        await greeted(ann)
        await trio.sleep(5)
        assert ann.told == []
        ann.write("bob", "hello", "r-1")
        await ann.until(lambda ann: [status for *_, status in ann.told] == [200])
        await trio.sleep(100)
        assert len(ann.told) == len(ann.receipts) == 1
        assert bob.texts == ["hello"]


async def test_one_request_id_for_two_texts_makes_two_messages(autojump_clock: object) -> None:
    """Neither is taken for the other."""
    async with open_cluster("n1") as cluster:
        ann, bob = await cluster.nodes["n1"].login("ann"), await cluster.nodes["n1"].login("bob")
        await greeted(ann, bob)
        ann.write("bob", "yes", "r-1")
        ann.write("bob", "no", "r-1")
        await ann.until(lambda ann: len(ann.told) == 2)
        assert bob.texts == ["yes", "no"]
        assert len({message_id for message_id, *_ in ann.told}) == 2


async def test_only_the_recipient_can_ack(autojump_clock: object) -> None:
    """Somebody else's ack is refused with 403, an unknown id with 404; a repeated ack is answered again."""
    async with open_cluster("n1") as cluster:
        n1 = cluster.nodes["n1"]
        ann, bob, eve = await n1.login("ann"), await n1.login("bob", acks=False), await n1.login("eve")
        await greeted(ann, bob, eve)
        ann.write("bob", "hello")
        await bob.until(lambda bob: len(bob.messages) == 1)
        eve.ack(bob.messages[0])
        await eve.until(lambda eve: eve.ack_statuses == [403])
        assert ann.told == []
        ann._say('{"type":15,"params":{"msgid":"16516"}}')
        await ann.until(lambda ann: ann.ack_statuses == [404])
        bob.ack(bob.messages[0])
        bob.ack(bob.messages[0])
        await bob.until(lambda bob: bob.ack_statuses == [200, 200])
        await trio.sleep(5)
        bob.ack(bob.messages[0])
        await bob.until(lambda bob: bob.ack_statuses == [200, 200, 200])
        assert len(ann.told) == 1


async def test_the_ack_of_a_client_that_leaves_at_once_counts(autojump_clock: object) -> None:
    """An ack that came before the end of the session is recorded, although the session has ended since."""
    async with open_cluster("n1", "n2") as cluster:
        ann = await cluster.nodes["n1"].login("ann")
        bob = await cluster.nodes["n2"].login("bob", acks=False)
        await greeted(ann, bob)
        ann.write("bob", "hello")
        await bob.until(lambda bob: len(bob.messages) == 1)
        bob.ack(bob.messages[0])
        bob.leave()
        await ann.until(lambda ann: len(ann.told) == 1)


@pytest.mark.parametrize("there", ["n1", "n2"])
async def test_messages_wait_for_an_absent_user_in_order(there: str, autojump_clock: object) -> None:
    """They come at the next login, on any node, oldest first, once, and newer ones queue behind them."""
    async with open_cluster("n1", "n2") as cluster:
        ann = await cluster.nodes["n1"].login("ann")
        for number in range(600):
            ann.write("bob", f"{number:03}")
        await ann.until(lambda ann: len(ann.receipts) == 600)
        await trio.sleep(100)
        bob = await cluster.nodes[there].login("bob")
        await bob.until(lambda bob: len(bob.texts) > 100)
        for number in range(600, 700):
            ann.write("bob", f"{number:03}")
        await ann.until(lambda ann: len(ann.told) == 700, within=60)
        assert bob.texts == [f"{number:03}" for number in range(700)]
        assert bob.hello is not None
        assert bob.hello.pending
        assert not any(message.redelivered for message in bob.messages)
        await trio.sleep(100)
        assert cluster.registry.pending[OpenId("bob")] == set()
        assert cluster.nodes["n1"].work.mailboxes.items == {}


async def test_an_unacked_push_is_redelivered_on_its_schedule_and_marked(autojump_clock: object) -> None:
    """5 s × 3ⁿ with jitter, at most 5 minutes; each repeat says so."""
    async with open_cluster("n1", "n2") as cluster:
        ann = await cluster.nodes["n1"].login("ann")
        bob = await cluster.nodes["n2"].login("bob", acks=False)
        await greeted(ann, bob)
        ann.write("bob", "hello")
        at: list[float] = []
        for count in range(1, 8):
            await bob.until(lambda bob, count=count: len(bob.texts) == count, within=400)  # type: ignore[misc]
            at.append(trio.current_time())
        gaps = [later - earlier for earlier, later in pairwise(at)]
        for gap, exact in zip(gaps, (5, 15, 45, 135, 300, 300), strict=True):
            assert exact * 0.89 <= gap <= exact * 1.11 + 0.5
        assert [message.redelivered for message in bob.messages] == [False] + [True] * 6


async def test_what_has_lived_too_long_is_given_up_and_its_sender_told(autojump_clock: object) -> None:
    """410 after its lifetime; should the ack come all the same, a 200 follows; 200 is final."""
    redelivery = RedeliverySettings(lifetime=100.0, keep=30 * 86400.0)
    async with open_cluster("n1", "n2", redelivery=redelivery) as cluster:
        ann = await cluster.nodes["n1"].login("ann")
        bob = await cluster.nodes["n2"].login("bob", acks=False)
        await greeted(ann, bob)
        ann.write("bob", "hello")
        ann.write("zoe", "are you there?")
        await ann.until(lambda ann: [status for *_, status in ann.told] == [410, 410], within=200)
        errors = [frame.error for frame in ann.frames if isinstance(frame, Settled)]
        assert all(errors)
        rows = await cluster.stores["n1"].search(RowFilter(states=("expired",)))
        assert len(rows) == 2
        bob.ack(bob.messages[0])
        await ann.until(lambda ann: [status for *_, status in ann.told] == [410, 410, 200])
        zoe = await cluster.nodes["n2"].login("zoe")
        await trio.sleep(50)
        assert zoe.texts == []


async def test_a_sender_who_is_away_is_told_at_the_next_login(autojump_clock: object) -> None:
    """On any node, once."""
    async with open_cluster("n1", "n2", "n3") as cluster:
        ann = await cluster.nodes["n1"].login("ann")
        await greeted(ann)
        ann.write("bob", "hello")
        await ann.until(lambda ann: len(ann.receipts) == 1)
        ann.leave()
        bob = await cluster.nodes["n2"].login("bob")
        await bob.until(lambda bob: bob.ack_statuses == [200])
        await trio.sleep(20)
        ann = await cluster.nodes["n3"].login("ann")
        await ann.until(lambda ann: len(ann.told) == 1)
        assert ann.hello is not None
        assert ann.hello.pending
        await trio.sleep(5)
        again = await cluster.nodes["n3"].login("ann")
        await trio.sleep(400)
        assert again.told == []
