"""What may happen while rows move, in virtual time: whoever dies or comes back when, nothing is lost."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
import trio
from msgspec.structs import replace

from tests.node.adopting import adopt, left_behind, settled, the_only_row
from tests.node.cluster import EPOCH_MS, Client, Cluster, RunningNode, greeted, open_cluster
from yanchat.adoption import ANSWERED_WITHIN
from yanchat.backends.memory import MemoryStore
from yanchat.config import RedeliverySettings
from yanchat.errors import AddressTaken, Unreachable
from yanchat.model import ACKED, OPEN, Envelope, Node, Totals
from yanchat.ports import RowFilter
from yanchat.protocol.ids import message_id_from_order
from yanchat.protocol.records import Acked, Adopt, Adopted, Record, Topic


async def test_an_ack_that_comes_while_rows_move_is_not_missed(autojump_clock: object) -> None:
    """The dead node's topic is read again after every batch."""
    async with open_cluster("n1", "n2", "n3") as cluster:
        bob = await cluster.nodes["n3"].login("bob", acks=False)
        await greeted(bob)
        await left_behind(cluster, "hello")
        cluster.lose(lambda node, record: isinstance(record, Adopted))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(adopt, cluster)
            await trio.sleep(2)
            bob.ack(bob.messages[0])
            bob.leave()
            await trio.sleep(1)
            cluster.lose(lambda *_: False)
        await trio.sleep(1)
        assert (await the_only_row(cluster, "n2")).state == "delivered"


async def test_the_dead_node_comes_back_and_sends_nothing(autojump_clock: object) -> None:
    """Its rows are the adopter's; acks of them that it finds in its topic are none of its business."""
    async with open_cluster("n1", "n2", "n3") as cluster:
        bob = await cluster.nodes["n3"].login("bob", acks=False)
        await greeted(bob)
        await left_behind(cluster, "one", "two")
        await adopt(cluster)
        bob.ack(bob.messages[0])  # to n1 and to n2
        await cluster.start("n1")
        ann = await cluster.nodes["n1"].login("ann")
        await ann.until(lambda ann: len(ann.told) == 1)
        bob.ack(bob.messages[1])
        await ann.until(lambda ann: len(ann.told) == 2)
        await trio.sleep(400)
        assert bob.texts == ["one", "two"]
        assert len(ann.told) == 2
        assert await cluster.stores["n1"].totals() == Totals(moved=2)
        assert await cluster.stores["n2"].totals() == Totals(delivered=2, adopted=2)
        ann.write("bob", "three")
        await bob.until(lambda bob: bob.texts == ["one", "two", "three"])


async def test_a_request_repeated_on_the_node_that_came_back_is_the_message_that_moved(autojump_clock: object) -> None:
    """Its receipt has the same id, and its recipient gets it from the adopter, once."""
    async with open_cluster("n1", "n2") as cluster:
        ann = await cluster.nodes["n1"].login("ann")
        ann.write("bob", "hello", "r-1")
        await ann.until(lambda ann: len(ann.receipts) == 1)
        cluster.nodes["n1"].crash()
        await trio.sleep(15)
        await adopt(cluster)
        await cluster.start("n1")
        again = await cluster.nodes["n1"].login("ann")
        again.write("bob", "hello", "r-1")
        await again.until(lambda again: len(again.receipts) == 1)
        bob = await cluster.nodes["n1"].login("bob")
        await again.until(lambda again: len(again.told) == 1)
        assert again.receipts[0].message_id == ann.receipts[0].message_id
        assert bob.texts == ["hello"]


@pytest.mark.parametrize("when", [0.0001, 0.0006, 0.0011, 0.0016, 0.0021, 0.0026, 0.0031, 0.004])
async def test_a_run_that_dies_is_repeated_without_harm(when: float, autojump_clock: object) -> None:
    """At whatever instant; also when the dead node comes back in between, so that both have the rows."""
    async with open_cluster("n1", "n2", "n3") as cluster:
        await left_behind(cluster, *[f"{number}" for number in range(30)])
        for store in cluster.stores.values():
            store.before_commit = store.after_commit = 0.0003
        with trio.move_on_after(when):
            await adopt(cluster)
        await cluster.start("n1")
        await trio.sleep(0.1)
        cluster.nodes["n1"].crash()
        await trio.sleep(15)
        await adopt(cluster)
        assert (await adopt(cluster)).selected == 0
        bob, ann = await cluster.nodes["n3"].login("bob"), await cluster.nodes["n3"].login("ann")
        await ann.until(lambda ann: len(ann.told) == 30, within=60)
        await settled(cluster, "n2")
        assert bob.texts == [f"{number}" for number in range(30)]
        assert len(ann.told) == 30
        assert await cluster.stores["n1"].totals() == Totals(moved=30)


async def test_both_nodes_have_the_rows_after_a_run_that_died_and_it_all_ends_well(autojump_clock: object) -> None:
    """Adopted and not marked, and the dead node lives again for good: at last both books are closed."""
    async with open_cluster("n1", "n2", "n3") as cluster:
        await left_behind(cluster, *[f"{number}" for number in range(30)])
        cluster.stores["n1"].before_commit = 0.01
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_has_no_room, cluster)
            await trio.sleep(0.015)
            cluster.stores["n1"].writable = False  # so that nothing can be marked
        cluster.stores["n1"].writable, cluster.stores["n1"].before_commit = True, 0.0
        assert (await cluster.stores["n2"].totals()).adopted == 30
        await cluster.start("n1")
        bob, ann = await cluster.nodes["n3"].login("bob"), await cluster.nodes["n2"].login("ann")
        await ann.until(lambda ann: len(set(ann.told)) == 30, within=60)
        await settled(cluster, "n1")
        await settled(cluster, "n2")
        assert len(set(bob.texts)) == 30
        assert Counter(message.redelivered for message in bob.messages)[False] == 0


async def _has_no_room(cluster: Cluster) -> None:
    with pytest.RaisesGroup(pytest.RaisesExc(Exception, match="make room"), flatten_subgroups=True):
        await adopt(cluster)


async def test_what_the_dead_node_has_learnt_meanwhile_is_known_at_once(autojump_clock: object) -> None:
    """The adopter has the row from a run that died; the dead node has lived again since, and it alone got the ack."""
    async with open_cluster("n1", "n2", "n3") as cluster:
        await left_behind(cluster, "hello")
        with trio.move_on_after(0.1):
            cluster.lose(lambda node, record: isinstance(record, Adopted))
            await adopt(cluster)
        cluster.lose(lambda node, record: node == "n2:1" and isinstance(record, Acked))
        await cluster.start("n1")
        bob = await cluster.nodes["n3"].login("bob")
        await bob.until(lambda bob: bob.texts == ["hello"])
        await trio.sleep(0.5)
        cluster.nodes["n1"].crash()
        items = cluster.nodes["n2"].work.mailboxes.items
        assert [item.rank for item in items.values()] == [OPEN]
        assert (await adopt(cluster)).selected == 1
        assert [item.rank for item in items.values()] == [ACKED]
        ann = await cluster.nodes["n3"].login("ann")
        await ann.until(lambda ann: len(ann.told) == 1)
        await settled(cluster, "n2")


async def test_an_adopter_that_dies_adopts_when_it_is_back(autojump_clock: object) -> None:
    """The run sends the batch again until it is answered."""
    async with open_cluster("n1", "n2", "n3") as cluster:
        await left_behind(cluster, "hello")
        cluster.stores["n2"].after_commit = 0.01
        async with trio.open_nursery() as nursery:
            nursery.start_soon(adopt, cluster)
            await trio.sleep(0.005)  # on its disk, and it does not know
            cluster.nodes["n2"].crash()
            cluster.stores["n2"].after_commit = 0.0
            await trio.sleep(2)
            await cluster.start("n2")
        assert await cluster.stores["n1"].totals() == Totals(moved=1)
        bob = await cluster.nodes["n3"].login("bob")
        await bob.until(lambda bob: bob.texts == ["hello"])


async def test_without_an_answer_nothing_is_marked_and_the_run_says_so(autojump_clock: object) -> None:
    async with open_cluster("n1", "n2") as cluster:
        await left_behind(cluster, "hello")
        cluster.nodes["n2"].crash()
        began = trio.current_time()
        with pytest.RaisesGroup(pytest.RaisesExc(Unreachable, match="Nothing is lost"), flatten_subgroups=True):
            await adopt(cluster)
        assert trio.current_time() - began == pytest.approx(ANSWERED_WITHIN, abs=1)
        assert await cluster.stores["n1"].totals() == Totals(pending=1)


async def test_an_adopter_whose_disk_is_full_goes_on_serving_and_adopts_when_there_is_room(
    autojump_clock: object,
) -> None:
    async with open_cluster("n1", "n2") as cluster:
        await left_behind(cluster, "hello")
        cluster.stores["n2"].writable = False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(adopt, cluster)
            await trio.sleep(8)
            bob = await cluster.nodes["n2"].login("bob")
            await greeted(bob)
            cluster.stores["n2"].writable = True
        await bob.until(lambda bob: bob.texts == ["hello"])
        assert await cluster.stores["n1"].totals() == Totals(moved=1)


async def test_a_bus_that_cannot_be_read_is_read_later(autojump_clock: object) -> None:
    """The ack that stands there is found all the same, and until then nothing is given up."""
    redelivery = RedeliverySettings(lifetime=100.0, keep=30 * 86400.0)
    async with open_cluster("n1", "n2", "n3", redelivery=redelivery) as cluster:
        bob = await cluster.nodes["n3"].login("bob", acks=False)
        await greeted(bob)
        await left_behind(cluster, "hello")
        bob.ack(bob.messages[0])
        bob.leave()
        n2 = cluster.nodes["n2"]
        reads = n2.bus.read

        async def fails(node: Node, topic: Any) -> list[Record]:
            cluster.bus.up = False
            try:
                return await reads(node, topic)
            finally:
                cluster.bus.up = True

        n2.bus.read = fails  # type: ignore[method-assign]
        await adopt(cluster)
        await trio.sleep(200)
        assert (await the_only_row(cluster, "n2")).state == "pending"
        n2.bus.read = reads  # type: ignore[method-assign]
        await trio.sleep(20)
        assert (await the_only_row(cluster, "n2")).state == "delivered"


async def test_rows_accepted_in_the_same_instant_or_in_the_future_meet_nobody(autojump_clock: object) -> None:
    """The dead node's clock was ahead: what is being accepted on the adopter at that moment is stored all the same."""
    async with open_cluster("n1", "n2") as cluster:
        n1, n2 = cluster.stores["n1"], cluster.nodes["n2"]
        cluster.nodes["n1"].crash()
        await trio.sleep(15)
        ann, bob = await n2.login("ann"), await n2.login("bob")
        await greeted(ann, bob)
        now = EPOCH_MS + int(trio.current_time() * 1000)
        orders = [(now + shift << 16) + n for shift in (*range(20), 1_000_000) for n in range(20)]
        envelopes = [
            Envelope(
                order, message_id_from_order(order, cluster.rng), bob.openid, ann.openid, "", "r", f"old {n}", 0, 1
            )
            for n, order in enumerate(orders)
        ]
        await n1.add([[envelope] for envelope in envelopes])
        cluster.stores["n2"].before_commit = 0.005
        async with trio.open_nursery() as nursery:
            for number in range(200):
                if number == 100:
                    nursery.start_soon(adopt, cluster)
                ann.write("bob", f"new {number}")
                await trio.sleep(0.0001)
        await ann.until(lambda ann: len(ann.receipts) == 200)
        assert {receipt.status for receipt in ann.receipts} == {200}
        await bob.until(lambda bob: len(bob.texts) == 620, within=60)
        assert [text for text in bob.texts if text.startswith("old")] == [f"old {n}" for n in range(420)]
        assert [text for text in bob.texts if text.startswith("new")] == [f"new {n}" for n in range(200)]
        assert await cluster.stores["n2"].last_order() < now + 100_000 << 16


async def test_rows_move_on_and_come_back(autojump_clock: object) -> None:
    """The adopter dies as well, and the first node, which lives again, adopts its rows: they are where they were."""
    async with open_cluster("n1", "n2", "n3") as cluster:
        await left_behind(cluster, "1", "2")
        before = await cluster.stores["n1"].search(RowFilter())
        await adopt(cluster)
        cluster.nodes["n2"].crash()
        await cluster.start("n1")
        await trio.sleep(15)
        await adopt(cluster, dead="n2", into="n1")
        assert await cluster.stores["n2"].totals() == Totals(moved=2, adopted=2)
        assert await cluster.stores["n1"].totals() == Totals(pending=2)
        rows = await cluster.stores["n1"].search(RowFilter())
        assert [row.envelope for row in rows] == [row.envelope for row in before]
        bob, ann = await cluster.nodes["n3"].login("bob"), await cluster.nodes["n3"].login("ann")
        await ann.until(lambda ann: len(ann.told) == 2)
        assert bob.texts == ["1", "2"]


async def test_a_living_node_heeds_no_adopted_and_adopts_nothing_of_its_own(autojump_clock: object) -> None:
    async with open_cluster("n1", "n2") as cluster:
        ann = await cluster.nodes["n1"].login("ann")
        ann.write("bob", "hello")
        await ann.until(lambda ann: len(ann.receipts) == 1)
        name, row = Node("n1:1"), await the_only_row(cluster, "n1")
        cluster.bus.store(name, Adopted(Node("n2:1"), "r", name, (row.envelope.key,)), "i")
        cluster.bus.store(name, Adopt(name, "r", name, (replace(row, rank=ACKED),)), "i")
        await trio.sleep(1)
        assert await cluster.stores["n1"].totals() == Totals(pending=1)
        bob = await cluster.nodes["n2"].login("bob")
        await bob.until(lambda bob: bob.texts == ["hello"])


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_dies_when_nothing_is_lost(seed: int, autojump_clock: object) -> None:
    """Users talk on three nodes; one dies; runs die, too, or the node comes back; at last its rows have moved."""
    rng = random.Random(seed)
    async with open_cluster("n1", "n2", "n3", seed=seed) as cluster:
        texts: dict[str, tuple[str, str]] = {}
        clients: dict[str, list[Client]] = {name: [] for name in ("ann", "bob", "cat", "dan")}

        async def connect(user: str, *names: str) -> Client:
            client = await cluster.nodes[rng.choice(names)].login(user, acks=rng.random() < 0.7)
            clients[user].append(client)
            return client

        for user in clients:
            await greeted(await connect(user, "n1", "n2", "n3"))
        for user in ("ann", "bob"):  # somebody's messages shall be n1's
            await greeted(await connect(user, "n1"))
        for number in range(200):
            user, to = rng.choice(list(clients)), rng.choice(list(clients))
            texts[f"{number}"] = (user, to)
            clients[user][-1].write(to, f"{number}", f"{number}")
            await trio.sleep(rng.expovariate(1000))
        cluster.nodes["n1"].crash()
        for client in (client for user in clients.values() for client in user):
            client.acks = True
        await trio.sleep(12)
        for store in cluster.stores.values():
            store.before_commit = store.after_commit = 0.0002
        for _ in range(rng.choice((0, 1, 3))):
            with trio.move_on_after(rng.random() * 0.004):
                await adopt(cluster, into=rng.choice(("n2", "n3")))
            if rng.random() < 0.4:
                await cluster.start("n1")
                await trio.sleep(rng.random() * 0.01)
                cluster.nodes["n1"].crash()
                await trio.sleep(12)
            if rng.random() < 0.4:
                name = rng.choice(("n2", "n3"))
                cluster.nodes[name].crash()
                await cluster.start(name)
        await adopt(cluster, into=rng.choice(("n2", "n3")))
        if rng.random() < 0.5:
            await cluster.start("n1")
        for user in clients:
            await greeted(await connect(user, "n2", "n3"))
        for user in clients.values():
            user[-1].acks = True
            for client in user:
                for message in list(client.messages):
                    client.ack(message)
        for name in ("n2", "n3"):
            await settled(cluster, name)
        receipted = {receipt.request_id for user in clients.values() for c in user for receipt in c.receipts}
        assert len(receipted) > 100
        for text in receipted:
            user, to = texts[text]
            ids = {message.message_id for c in clients[to] for message in c.messages if message.text == text}
            assert len(ids) == 1, f"{text} from {user} to {to}"
            assert (ids.pop(), to, 200) in {told for c in clients[user] for told in c.told}, f"{user} of {text}"
        assert not await cluster.stores["n1"].movable(0, 9)


async def test_a_node_that_may_not_hold_the_address_adopts_nothing(autojump_clock: object) -> None:
    """It reads the topic before it knows; and when it ends, its new directory goes with it."""
    async with open_cluster("n1", "n2") as cluster:
        await left_behind(cluster, "hello")
        cluster.nodes["n2"].crash()
        cluster.stores["n2"] = MemoryStore("put up anew")
        late = RunningNode(cluster, "n2")
        late.registry.takes = 1.0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_nobody_answers, cluster)
            with pytest.RaisesGroup(AddressTaken, flatten_subgroups=True, allow_unwrapped=True):
                await cluster.nursery.start(late.live)
        assert await late.store.totals() == Totals()
        assert len(await cluster.stores["n1"].movable(0, 9)) == 1
        await trio.sleep(15)
        await cluster.start("n2")
        await adopt(cluster)
        assert await cluster.stores["n2"].totals() == Totals(pending=1, adopted=1)


async def _nobody_answers(cluster: Cluster) -> None:
    with pytest.RaisesGroup(Unreachable, flatten_subgroups=True, allow_unwrapped=True):
        await adopt(cluster)


def reads_late(node: RunningNode, seconds: float) -> None:
    """It reads the topics of others slowly."""
    reads = node.bus.read

    async def slowly(of: Node, topic: Topic) -> list[Record]:
        await trio.sleep(seconds)
        return await reads(of, topic)

    node.bus.read = slowly  # type: ignore[method-assign]


async def test_what_had_come_back_comes_with_the_rows_though_the_adopter_dies(autojump_clock: object) -> None:
    """It has said that the rows are on its disk, and dies before it has read the dead node's topic."""
    async with open_cluster("n1", "n2", "n3") as cluster:
        bob = await cluster.nodes["n3"].login("bob", acks=False)
        await greeted(bob)
        await left_behind(cluster, "hello")
        bob.ack(bob.messages[0])
        await bob.until(lambda bob: bob.ack_statuses == [200])
        bob.leave()
        reads_late(cluster.nodes["n2"], 0.5)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(adopt, cluster)
            await trio.sleep(0.2)
            cluster.nodes["n2"].crash()
            await cluster.start("n2")
        assert (await the_only_row(cluster, "n2")).state == "delivered"


async def test_what_comes_back_when_the_run_has_begun_is_heard_by_the_adopter(autojump_clock: object) -> None:
    """The ack was slow; the recipient has gone."""
    async with open_cluster("n1", "n2", "n3") as cluster:
        bob = await cluster.nodes["n3"].login("bob", acks=False)
        await greeted(bob)
        await left_behind(cluster, "hello")
        reads_late(cluster.nodes["n2"], 3)
        cluster.bus.fate = lambda node, record: (1.0,) if isinstance(record, Acked) else (0.0,)
        bob.ack(bob.messages[0])
        await bob.until(lambda bob: bob.ack_statuses == [200])
        bob.leave()
        await adopt(cluster)
        assert (await the_only_row(cluster, "n2")).state == "pending"
        await trio.sleep(10)
        assert (await the_only_row(cluster, "n2")).state == "delivered"
