"""A request that is repeated on the recipient's own node, while he acks what came of it from the first node."""

from __future__ import annotations

import trio

from tests.node.cluster import Client, open_cluster
from tests.node.test_rules import greeted


async def test_what_he_has_acked_meanwhile_is_not_pushed_by_his_own_node(autojump_clock: object) -> None:
    """His node is still looking for him when his ack of the other node's push comes: one push, and both are told."""
    async with open_cluster("n1", "n2") as cluster:
        n2 = cluster.nodes["n2"]
        ann, bob = await cluster.nodes["n1"].login("ann"), await n2.login("bob", acks=False)
        again = await n2.login("ann")
        await greeted(ann, bob, again)
        ann.write("bob", "hello", "r1")
        await bob.until(lambda bob: bob.texts == ["hello"])
        n2.registry.takes = 0.5
        again.write("bob", "hello", "r1")
        await again.until(lambda again: len(again.receipts) == 1)
        bob.ack(bob.messages[0])
        await told(ann, again)
        assert bob.texts == ["hello"]


async def test_what_he_has_acked_meanwhile_is_not_read_from_disk_and_pushed(autojump_clock: object) -> None:
    """The same when his node has it on disk alone, behind older messages that it is reading for him."""
    async with open_cluster("n1", "n2") as cluster:
        n2 = cluster.nodes["n2"]
        ann, again = await cluster.nodes["n1"].login("ann"), await n2.login("ann")
        await greeted(ann, again)
        again.write("bob", "older")
        ann.write("bob", "hello", "r1")
        await trio.sleep(2)
        n2.store.before_read = 0.5
        bob = await n2.login("bob")
        await trio.sleep(0.1)
        again.write("bob", "hello", "r1")
        await told(ann, again)
        await trio.sleep(10)
        assert sorted(bob.texts) == ["hello", "older"]


async def told(*clients: Client) -> None:
    """Wait until each knows that Bob has the message of the request."""
    for client in clients:
        await client.until(lambda client: 200 in [status for _, _, status in client.told])
    await trio.sleep(10)
