"""Acks that come for a dead node when its rows are another's: who has them hears, and the senders are told."""

from __future__ import annotations

from collections import Counter

import pytest
import trio
from msgspec.structs import replace

from tests.node.adopting import adopt, left_behind, the_only_row
from tests.node.cluster import Client, Cluster, greeted, open_cluster
from yanchat.config import RedeliverySettings
from yanchat.errors import BusUnavailable
from yanchat.model import Node, Totals
from yanchat.node.adoption import FOREVER
from yanchat.ports import CAME_FROM
from yanchat.protocol.records import Adopt, Record, Topic


async def _acks_late(cluster: Cluster) -> Client:
    """Bob has the dead node's only message, acks it on n3, from where nothing leaves now, and goes."""
    bob = await cluster.nodes["n3"].login("bob", acks=False)
    await greeted(bob)
    await left_behind(cluster, "hello")
    cluster.nodes["n3"].bus.up = False
    bob.ack(bob.messages[0])
    await bob.until(lambda bob: bob.ack_statuses == [200])
    bob.leave()
    return bob


async def _ann_is_told(cluster: Cluster, name: str = "n2", within: float = 70) -> None:
    """By the node which has the row."""
    ann = await cluster.nodes[name].login("ann")
    await ann.until(lambda ann: [told[1:] for told in ann.told] == [("bob", 200)], within=within)
    assert (await the_only_row(cluster, name)).state == "delivered"


async def test_an_ack_that_leaves_late_reaches_the_adopter(autojump_clock: object) -> None:
    """However late: the dead node's topic is read as long as the row is open."""
    for late in (5, 3_000):
        async with open_cluster("n1", "n2", "n3") as cluster:
            await _acks_late(cluster)
            await adopt(cluster)
            await trio.sleep(late)
            cluster.nodes["n3"].bus.up = True
            await _ann_is_told(cluster)


async def test_also_when_the_adopter_was_started_again(autojump_clock: object) -> None:
    """It knows from its disk whom to hear."""
    async with open_cluster("n1", "n2", "n3") as cluster:
        await _acks_late(cluster)
        await adopt(cluster)
        cluster.nodes["n2"].crash()
        await cluster.start("n2")
        await trio.sleep(100)
        cluster.nodes["n3"].bus.up = True
        await _ann_is_told(cluster)


async def test_also_when_the_node_of_the_recipient_was_started_again(autojump_clock: object) -> None:
    async with open_cluster("n1", "n2", "n3") as cluster:
        await _acks_late(cluster)
        cluster.nodes["n3"].crash()
        await adopt(cluster)
        await trio.sleep(100)
        await cluster.start("n3")
        await _ann_is_told(cluster)


async def test_also_when_the_adopter_has_died_and_another_has_its_rows(autojump_clock: object) -> None:
    """That one hears the topics of both."""
    async with open_cluster("n1", "n2", "n3", "n4") as cluster:
        await _acks_late(cluster)
        await adopt(cluster)
        cluster.nodes["n2"].crash()
        await trio.sleep(15)
        await adopt(cluster, dead="n2", into="n4")
        await trio.sleep(100)
        cluster.nodes["n3"].bus.up = True
        await _ann_is_told(cluster, "n4")


async def test_what_a_node_that_dies_as_well_had_not_sent_reaches_the_adopter(autojump_clock: object) -> None:
    """Its own run sends it, to where it was for; there is no row to move."""
    async with open_cluster("n1", "n2", "n3") as cluster:
        await _acks_late(cluster)
        cluster.nodes["n3"].crash()
        await trio.sleep(15)
        await adopt(cluster)
        await trio.sleep(100)
        assert (await adopt(cluster, dead="n3")).selected == 0
        await _ann_is_told(cluster)


async def test_an_ack_that_the_node_hears_itself_when_it_lives_again_reaches_the_adopter(
    autojump_clock: object,
) -> None:
    """Also when the adopter is down at that moment, and the node dies before it could pass on the ack."""
    async with open_cluster("n1", "n2", "n3") as cluster:
        await _acks_late(cluster)
        await adopt(cluster)
        cluster.nodes["n2"].crash()
        await cluster.start("n1")
        cluster.nodes["n1"].bus.up = False
        cluster.nodes["n3"].bus.up = True
        await trio.sleep(10)
        assert cluster.bus.committed[Node("n1:1"), "ack"] == cluster.bus.end((Node("n1:1"), "ack"))
        cluster.nodes["n1"].crash()
        await cluster.start("n1")
        await trio.sleep(10)
        await cluster.start("n2")
        await _ann_is_told(cluster, within=3)
        assert await cluster.stores["n1"].totals() == Totals(moved=1)


async def test_an_ack_does_not_go_to_and_fro_between_nodes_that_have_adopted_from_one_another(
    autojump_clock: object,
) -> None:
    """The row went to n2, and back, and to n4; all live again, and each had rows from the other."""
    async with open_cluster("n1", "n2", "n3", "n4") as cluster:
        await _acks_late(cluster)
        for dead, into in (("n1", "n2"), ("n2", "n1"), ("n1", "n4")):
            if not cluster.nodes[dead].gone:
                cluster.nodes[dead].crash()
            if cluster.nodes[into].gone:
                await cluster.start(into)
            await trio.sleep(15)
            await adopt(cluster, dead=dead, into=into)
        await cluster.start("n1")
        await cluster.start("n2")
        cluster.nodes["n3"].bus.up = True
        await _ann_is_told(cluster, "n4", within=3)
        await trio.sleep(3)
        acks = Counter(
            node for (node, _), log in cluster.bus.logs.items() for headers, _ in log if headers["kind"] == "ack"
        )
        assert max(acks.values()) <= 2
        assert sum(acks.values()) <= 6


async def test_whatever_time_of_acceptance_a_record_names_it_is_one_that_a_table_can_hold(
    autojump_clock: object,
) -> None:
    """And a record without rows changes nothing."""
    async with open_cluster("n1", "n2") as cluster:
        await left_behind(cluster, "hello")
        (row,) = await cluster.stores["n1"].movable(0, 9)
        never = replace(row, envelope=replace(row.envelope, accepted_at=2**63 - 1))
        for rows in ((), (never,)):
            cluster.bus.store(Node("n2:1"), Adopt(Node("n1:1"), "r", Node("n1:1"), rows), "i")
        await trio.sleep(1)
        assert await cluster.stores["n2"].totals() == Totals(pending=1, adopted=1)
        assert await cluster.stores["n2"].marks(CAME_FROM) == {"n1:1": FOREVER}


def _count_reads(cluster: Cluster, name: str) -> list[float]:
    """When this node has read another's topic, in this life."""
    bus, when = cluster.nodes[name].bus, list[float]()
    reads = bus.read

    async def read(of: Node, topic: Topic) -> list[Record]:
        when.append(trio.current_time())
        return await reads(of, topic)

    bus.read = read  # type: ignore[method-assign]
    return when


async def test_a_topic_is_read_less_and_less_often_and_not_when_nothing_is_open(autojump_clock: object) -> None:
    """Also by the next life of the adopter."""
    async with open_cluster("n1", "n2", "n3") as cluster:
        await left_behind(cluster, "hello")
        when = _count_reads(cluster, "n2")
        began = trio.current_time()
        await adopt(cluster)
        await trio.sleep(3600)
        assert [round(at - began) for at in when[:7]] == [0, 3, 9, 21, 45, 93, 153]
        assert 60 <= len(when) <= 70
        bob = await cluster.nodes["n3"].login("bob")
        await bob.until(lambda bob: bob.texts == ["hello"])
        await _ann_is_told(cluster)
        await trio.sleep(60)
        when.clear()
        await trio.sleep(3600)
        assert when == []
        cluster.nodes["n2"].crash()
        await cluster.start("n2")
        again = _count_reads(cluster, "n2")
        await trio.sleep(3600)
        assert again == []


async def test_a_slow_bus_is_read_for_a_tenth_of_the_time(autojump_clock: object) -> None:
    async with open_cluster("n1", "n2", "n3") as cluster:
        await left_behind(cluster, "hello")
        when = _count_reads(cluster, "n2")
        counted = cluster.nodes["n2"].bus.read

        async def slowly(of: Node, topic: Topic) -> list[Record]:
            await trio.sleep(20)
            return await counted(of, topic)

        cluster.nodes["n2"].bus.read = slowly  # type: ignore[method-assign]
        await adopt(cluster)
        await trio.sleep(2000)
        assert 9 <= len(when) <= 10


async def test_before_an_adopted_row_is_given_up_the_topic_is_read_once_more(autojump_clock: object) -> None:
    """The ack has come a moment ago."""
    redelivery = RedeliverySettings(lifetime=1000.0)
    async with open_cluster("n1", "n2", "n3", redelivery=redelivery) as cluster:
        began = trio.current_time()
        await _acks_late(cluster)
        await adopt(cluster)
        when = _count_reads(cluster, "n2")
        await trio.sleep_until(began + 990)
        while trio.current_time() - when[-1] > 0.5:
            await trio.sleep(0.1)
        await trio.sleep(0.5)
        cluster.nodes["n3"].bus.up = True
        await trio.sleep(100)
        await _ann_is_told(cluster)


def _unreadable(cluster: Cluster, reader: str, dead: str) -> None:
    """The dead machine had the only replica of its topic, say."""
    bus = cluster.nodes[reader].bus
    read = bus.read

    async def fails(node: Node, topic: Topic) -> list[Record]:
        if node == Node(dead):
            raise BusUnavailable(f"{dead}'s topic has no leader.")
        return await read(node, topic)

    bus.read = fails  # type: ignore[method-assign]


async def test_a_topic_that_cannot_be_read_keeps_its_own_rows_only(
    autojump_clock: object, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other messages are given up and purged in their time; its own when it can be read, which the log says."""
    async with open_cluster("n1", "n2", "n3", redelivery=RedeliverySettings(lifetime=1000.0, keep=2000.0)) as cluster:
        n2 = cluster.nodes["n2"]
        await left_behind(cluster, "hello", to="nobody")
        await adopt(cluster)
        _unreadable(cluster, "n2", "n1:1")
        ann = await n2.login("ann")
        await greeted(ann)
        ann.write("cid", "own")
        await trio.sleep(10_000)
        assert [told[1:] for told in ann.told] == [("cid", 410)]
        assert (await the_only_row(cluster, "n2")).state == "pending"
        assert "its messages are given up only when its ack topic can be read" in capsys.readouterr().out
        del n2.bus.read  # type: ignore[method-assign]
        await ann.until(lambda ann: [told[1:] for told in ann.told] == [("cid", 410), ("nobody", 410)], within=200)


async def test_a_topic_that_cannot_be_read_silences_no_other(autojump_clock: object) -> None:
    async with open_cluster("n1", "n2", "n3", "n4") as cluster:
        bob = await cluster.nodes["n3"].login("bob", acks=False)
        ann = await cluster.nodes["n4"].login("ann")
        await greeted(bob, ann)
        ann.write("bob", "from n4")
        await bob.until(lambda bob: len(bob.messages) == 1)
        ann.leave()
        await trio.sleep(1)
        cluster.nodes["n4"].crash()
        await left_behind(cluster, "from n1", to="nobody")
        cluster.nodes["n3"].bus.up = False
        bob.ack(bob.messages[0])
        await bob.until(lambda bob: bob.ack_statuses == [200])
        bob.leave()
        await adopt(cluster, "n1", "n2")
        await adopt(cluster, "n4", "n2")
        _unreadable(cluster, "n2", "n1:1")
        await trio.sleep(10)
        cluster.nodes["n3"].bus.up = True
        ann = await cluster.nodes["n2"].login("ann")
        await ann.until(lambda ann: [told[1:] for told in ann.told] == [("bob", 200)], within=200)
