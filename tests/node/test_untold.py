"""What the books say of a notice that nobody came for."""

from __future__ import annotations

import trio

from tests.node.cluster import Client, Cluster, open_cluster
from yanchat.config import LimitSettings, RedeliverySettings
from yanchat.model import ACKED, OpenId, Step
from yanchat.node.tray import TrayRows, held_of
from yanchat.ports import RowFilter


async def test_who_never_came_for_a_notice_was_never_told(autojump_clock: object) -> None:
    """It is kept no longer after its lifetime; no time stands for when its sender was told, as with one who was."""
    redelivery = RedeliverySettings(lifetime=100.0, keep=30 * 86400.0)
    async with open_cluster("n1", "n2", redelivery=redelivery) as cluster:
        ann = await cluster.nodes["n1"].login("ann")
        ann.write("bob", "hello")
        await ann.until(lambda ann: len(ann.receipts) == 1)
        ann.leave()
        cid = await cluster.nodes["n1"].login("cid")
        cid.write("bob", "hello")
        bob = await cluster.nodes["n2"].login("bob")
        await bob.until(lambda bob: len(bob.ack_statuses) == 2)
        await cid.until(lambda cid: len(cid.told) == 1)
        await trio.sleep(150)
        rows = {row.envelope.sender: row for row in await cluster.stores["n1"].search(RowFilter())}
        assert (rows["ann"].rank, rows["ann"].told, rows["ann"].told_at) == (ACKED, ACKED, 0)
        assert rows["cid"].told_at > 0


async def long_texts(cluster: Cluster) -> tuple[Client, Client]:
    """Forty of them, from Ann to Bob, who acks them."""
    ann, bob = await cluster.nodes["n1"].login("ann"), await cluster.nodes["n1"].login("bob")
    for number in range(40):
        ann.write("bob", f"{number:02}" + "x" * 20_000)
    return ann, bob


async def test_notices_of_long_texts_are_no_longer_than_others(autojump_clock: object) -> None:
    """The window holds two of these texts; of their notices, which do not repeat them, it holds all."""
    async with open_cluster("n1", limits=LimitSettings(window=64, window_bytes=40_000)) as cluster:
        ann, bob = await long_texts(cluster)
        await bob.until(lambda bob: len(bob.ack_statuses) == 40)
        await ann.until(lambda ann: len(ann.told) == 40, within=3)
        assert len(bob.texts) == 40


async def test_notices_of_long_texts_that_stand_on_disk_are_all_told(autojump_clock: object) -> None:
    """More than memory holds of texts, read a few at a time, after a crash."""
    async with open_cluster("n1", limits=LimitSettings(window=8, window_bytes=40_000)) as cluster:
        ann, bob = await long_texts(cluster)
        await ann.until(lambda ann: len(ann.receipts) == 40)
        ann.leave()
        await bob.until(lambda bob: len(bob.ack_statuses) == 40)
        cluster.nodes["n1"].crash()
        again = await (await cluster.start("n1")).login("ann")
        await again.until(lambda again: len({told[0] for told in again.told}) == 40, within=60)


async def test_a_message_that_the_disk_has_settled_ahead_of_memory_keeps_its_text(autojump_clock: object) -> None:
    """A load finds the notice, and memory still has the open message, which may be pushed again."""
    async with open_cluster("n1") as cluster:
        n1 = cluster.nodes["n1"]
        ann, bob = await n1.login("ann"), await n1.login("bob", acks=False)
        ann.write("bob", "x" * 20_000)
        await bob.until(lambda bob: len(bob.messages) == 1)
        (item,) = n1.work.mailboxes.items.values()
        n1.store._step(Step(item.envelope.order, ACKED))
        notices = TrayRows(False, held_of(cluster.settings.limits))
        notices.start_load()
        await n1.work.loads._load(OpenId("ann"), "notices", notices, [])
        assert not notices.rows
        assert item.envelope.text == "x" * 20_000
