"""What the books say of a notice that nobody came for."""

from __future__ import annotations

import trio

from tests.node.cluster import open_cluster
from yanchat.config import RedeliverySettings
from yanchat.model import ACKED
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
