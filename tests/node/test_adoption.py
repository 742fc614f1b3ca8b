"""A dead node's rows on a live one, in virtual time: everything arrives, and senders are told."""

from __future__ import annotations

import trio

from tests.node.adopting import adopt, left_behind, settled, the_only_row
from tests.node.cluster import greeted, is_push, open_cluster, pushes
from yanchat.config import LimitSettings, RedeliverySettings
from yanchat.model import ACKED, Node, Totals
from yanchat.protocol.records import Acked, Told


async def test_what_a_dead_node_had_accepted_arrives_at_the_adopter(autojump_clock: object) -> None:
    """Everything comes, in order, once, marked; and the sender hears of each."""
    await everything_arrives("n2")


async def test_what_a_dead_node_had_accepted_arrives_on_another_node(autojump_clock: object) -> None:
    await everything_arrives("n3")


async def everything_arrives(there: str) -> None:
    async with open_cluster("n1", "n2", "n3") as cluster:
        texts = [f"{number:03}" for number in range(600)]
        await left_behind(cluster, *texts)
        moved = await adopt(cluster)
        assert (moved.node, moved.selected, moved.adopted, len(moved.message_ids)) == ("n2:1", 600, 600, 600)
        bob = await cluster.nodes[there].login("bob")
        await bob.until(lambda bob: len(bob.texts) == 600, within=60)
        assert bob.texts == texts
        assert all(message.redelivered for message in bob.messages)
        assert bob.hello is not None
        assert bob.hello.pending
        ann = await cluster.nodes["n3"].login("ann")
        await ann.until(lambda ann: len(ann.told) == 600, within=60)
        await settled(cluster, "n2")
        assert len(ann.told) == len(bob.texts) == 600
        assert await cluster.stores["n1"].totals() == Totals(moved=600)
        assert await cluster.stores["n2"].totals() == Totals(delivered=600, adopted=600)


async def test_users_who_are_there_get_it_at_once(autojump_clock: object) -> None:
    """On the adopter and on another node; the sender, who is there as well, is told."""
    async with open_cluster("n1", "n2", "n3") as cluster:
        cluster.lose(lambda node, record: is_push(record))
        bob, cat = await cluster.nodes["n2"].login("bob"), await cluster.nodes["n3"].login("cat")
        await greeted(bob, cat)
        await left_behind(cluster, "hello", to="bob,cat")
        cluster.lose(lambda *_: False)
        ann = await cluster.nodes["n3"].login("ann")
        await greeted(ann)
        await adopt(cluster)
        await ann.until(lambda ann: sorted(told[1:] for told in ann.told) == [("bob", 200), ("cat", 200)])
        assert [bob.texts, cat.texts] == [["hello"], ["hello"]]


async def test_a_session_that_has_the_message_already_gets_it_again_only_when_it_is_due(
    autojump_clock: object,
) -> None:
    """Its ack goes to both nodes: to the dead one's topic, and to the adopter."""
    async with open_cluster("n1", "n2", "n3") as cluster:
        bob = await cluster.nodes["n3"].login("bob", acks=False)
        await greeted(bob)
        await left_behind(cluster, "hello")
        await adopt(cluster)
        await trio.sleep(1)
        assert bob.texts == ["hello"]
        bob.ack(bob.messages[0])
        ann = await cluster.nodes["n2"].login("ann")
        await ann.until(lambda ann: len(ann.told) == 1)
        assert bob.texts == ["hello"]
        await bob.until(lambda bob: bob.ack_statuses == [200])


async def test_an_ack_that_came_back_for_the_dead_node_settles_the_adopted_row(autojump_clock: object) -> None:
    """Nobody gets the message again, and the sender is told."""
    async with open_cluster("n1", "n2", "n3") as cluster:
        bob = await cluster.nodes["n3"].login("bob", acks=False)
        await greeted(bob)
        await left_behind(cluster, "hello")
        bob.ack(bob.messages[0])
        await bob.until(lambda bob: bob.ack_statuses == [200])
        bob.leave()
        await adopt(cluster)
        await trio.sleep(1)
        assert pushes(cluster, "n3") == pushes(cluster, "n3")[:1]  # that of n1
        ann = await cluster.nodes["n2"].login("ann")
        await ann.until(lambda ann: [told[1:] for told in ann.told] == [("bob", 200)])
        again = await cluster.nodes["n2"].login("bob")
        await trio.sleep(400)
        assert again.texts == []


async def test_what_the_sender_knows_already_is_not_told_again(autojump_clock: object) -> None:
    """A `told` that came back for the dead node, and one that it had written itself."""
    async with open_cluster("n1", "n2", "n3") as cluster:
        ann = await cluster.nodes["n3"].login("ann")
        bob = await cluster.nodes["n2"].login("bob", acks=False)
        writer = await cluster.nodes["n1"].login("ann")
        await greeted(ann, bob, writer)
        writer.write("bob", "hello")
        await bob.until(lambda bob: bob.texts == ["hello"])
        writer.leave()
        cluster.lose(lambda node, record: isinstance(record, Told))
        bob.ack(bob.messages[0])
        await ann.until(lambda ann: len(ann.told) == 1)
        await trio.sleep(2)  # its answer is lost
        cluster.lose(lambda *_: False)
        cluster.nodes["n1"].crash()
        name, (row,) = Node("n1:1"), await cluster.stores["n1"].movable(0, 9)
        cluster.bus.store(name, Told(Node("n3:1"), (row.envelope.key,), ACKED), "i")
        await trio.sleep(15)
        await adopt(cluster)
        await settled(cluster, "n2")
        await trio.sleep(400)
        assert len(ann.told) == 1
        assert (await the_only_row(cluster, "n2")).told == ACKED


async def test_an_ack_of_a_user_of_the_adopter_counts_although_its_record_was_lost(autojump_clock: object) -> None:
    """It stands in the adopter's own inbox: the message is not pushed again."""
    async with open_cluster("n1", "n2") as cluster:
        bob = await cluster.nodes["n2"].login("bob")
        await greeted(bob)
        cluster.lose(lambda node, record: isinstance(record, Acked))
        await left_behind(cluster, "hello")
        assert bob.texts == ["hello"]
        await adopt(cluster)
        ann = await cluster.nodes["n2"].login("ann")
        await ann.until(lambda ann: len(ann.told) == 1)
        assert bob.texts == ["hello"]


async def test_acks_that_the_dead_node_had_not_published_leave_with_the_run(autojump_clock: object) -> None:
    """Its user had acked another node's message; that node hears of it now."""
    async with open_cluster("n1", "n2", "n3") as cluster:
        n1 = cluster.nodes["n1"]
        bob, ann = await n1.login("bob", acks=False), await cluster.nodes["n3"].login("ann")
        await greeted(bob, ann)
        ann.write("bob", "hello")
        await bob.until(lambda bob: bob.texts == ["hello"])
        n1.bus.up = False
        bob.ack(bob.messages[0])
        await bob.until(lambda bob: bob.ack_statuses == [200])
        n1.crash()
        await trio.sleep(15)
        assert (await adopt(cluster)).selected == 0
        await ann.until(lambda ann: len(ann.told) == 1)
        assert await cluster.stores["n1"].unsent(0, 9) == []
        assert (await cluster.stores["n3"].totals()).delivered == 1


async def test_old_rows_are_given_up_by_the_adopter_and_their_senders_told(autojump_clock: object) -> None:
    """But not those whose ack had come back for the dead node; also the ack of a dead letter still counts."""
    redelivery = RedeliverySettings(lifetime=100.0, keep=30 * 86400.0)
    async with open_cluster("n1", "n2", "n3", redelivery=redelivery) as cluster:
        bob = await cluster.nodes["n3"].login("bob", acks=False)
        ann = await cluster.nodes["n1"].login("ann")
        await greeted(ann, bob)
        ann.write("bob", "dead letter")
        await ann.until(lambda ann: [told[2] for told in ann.told] == [410], within=200)
        await trio.sleep(5)
        ann.leave()
        await left_behind(cluster, "acked", "not acked")
        for message in {message.text: message for message in bob.messages}.values():
            if message.text != "not acked":
                bob.ack(message)
        bob.leave()
        await trio.sleep(200)
        assert (await adopt(cluster)).selected == 3
        ann = await cluster.nodes["n2"].login("ann")
        await ann.until(lambda ann: len(ann.told) == 3, within=60)
        await settled(cluster, "n2")
        assert sorted(told[2] for told in ann.told) == [200, 200, 410]
        assert await cluster.stores["n2"].totals() == Totals(delivered=2, expired=1, adopted=3)


async def test_older_rows_come_before_those_in_flight_without_upsetting_the_window(autojump_clock: object) -> None:
    """Bob has a window full of small texts from the adopter, unacked, when large older ones are adopted."""
    limits = LimitSettings(window=8, window_bytes=10_000)
    async with open_cluster("n1", "n2", limits=limits) as cluster:
        large = [f"{number}" + "x" * 6_000 for number in range(5)]
        await left_behind(cluster, *large)
        bob = await cluster.nodes["n2"].login("bob", acks=False)
        cat = await cluster.nodes["n2"].login("cat")
        await greeted(bob, cat)
        for number in range(12):
            cat.write("bob", f"{number}")
        await bob.until(lambda bob: len(bob.texts) == 8)
        await adopt(cluster)
        bob.acks = True
        for message in list(bob.messages):
            bob.ack(message)
        await bob.until(lambda bob: len(set(bob.texts)) == 17, within=60)
        await cluster.nodes["n2"].login("ann")
        await settled(cluster, "n2")
        adopted = [text for text in bob.texts if len(text) > 100]
        assert adopted == large
        assert [text for text in bob.texts if len(text) < 100] == [f"{number}" for number in range(12)]


async def test_an_adopted_row_counts_against_what_may_wait(autojump_clock: object) -> None:
    """And no more when it is settled."""
    limits = LimitSettings(window=8, pending_per_pair=3)
    async with open_cluster("n1", "n2", limits=limits) as cluster:
        await left_behind(cluster, "1", "2", "3")
        await adopt(cluster)
        ann = await cluster.nodes["n2"].login("ann")
        ann.write("bob", "4")
        await ann.until(lambda ann: [receipt.status for receipt in ann.receipts] == [429])
        bob = await cluster.nodes["n2"].login("bob")
        await ann.until(lambda ann: len(ann.told) == 3)
        for text in ("4", "5", "6"):
            ann.write("bob", text)
        await bob.until(lambda bob: bob.texts == ["1", "2", "3", "4", "5", "6"])
