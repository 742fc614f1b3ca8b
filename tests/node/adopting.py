"""What the tests of adoption do: a node that leaves messages behind, and the run that moves them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from tests.node.cluster import Cluster, greeted
from yanchat.adoption import Moved, Run
from yanchat.model import Node, Row
from yanchat.ports import Bus, RowFilter


@asynccontextmanager
async def in_the_name_of(cluster: Cluster, dead: str) -> AsyncIterator[Bus]:
    async with cluster.bus.connect(Node(f"{dead}:1")) as bus:
        yield bus


async def adopt(cluster: Cluster, dead: str = "n1", into: str = "n2") -> Moved:
    """The run of `redeliver --adopt`."""
    async with in_the_name_of(cluster, dead) as bus:
        store = cluster.stores[dead]
        return await Run(Node(f"{dead}:1"), Node(f"{into}:1"), store, store, cluster.registry.view(), bus).move()


async def left_behind(cluster: Cluster, *texts: str, to: str = "bob") -> None:
    """Ann writes these on n1 and goes; then n1 dies."""
    ann = await cluster.nodes["n1"].login("ann")
    await greeted(ann)
    for text in texts:
        ann.write(to, text)
    await ann.until(lambda ann: len(ann.receipts) == len(texts))
    ann.leave()
    await trio.sleep(1)
    cluster.nodes["n1"].crash()
    await trio.sleep(15)


async def the_only_row(cluster: Cluster, name: str) -> Row:
    (row,) = await cluster.stores[name].search(RowFilter())
    return row


async def settled(cluster: Cluster, name: str) -> None:
    """Wait until a node has nothing to do, in memory and on disk."""
    with trio.fail_after(1000):
        while True:
            totals = await cluster.stores[name].totals()
            if not (totals.pending or totals.untold or cluster.nodes[name].work.mailboxes.items):
                return
            await trio.sleep(1)
