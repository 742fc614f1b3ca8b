"""A request that is repeated on the recipient's own node, while he acks what came of it from the first node."""

from __future__ import annotations

import trio

from tests.node.cluster import Client, open_cluster
from tests.node.test_rules import greeted


async def test_what_he_has_acked_is_not_pushed_by_his_own_node(autojump_clock: object) -> None:
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


async def test_what_he_has_acked_is_not_read_from_disk_and_pushed_later(autojump_clock: object) -> None:
    """The same when his node has it on disk alone, behind more than it keeps of him in memory."""
    async with open_cluster("n1", "n2") as cluster:
        n2 = cluster.nodes["n2"]
        ann, again = await cluster.nodes["n1"].login("ann"), await n2.login("ann")
        bob = await n2.login("bob", acks=False)
        await greeted(ann, again, bob)
        for number in range(300):
            again.write("bob", str(number))
        ann.write("bob", "hello", "r1")
        again.write("bob", "hello", "r1")
        await bob.until(lambda bob: "hello" in bob.texts and len(bob.texts) > 8)
        bob.ack(next(message for message in bob.messages if message.text == "hello"))
        await trio.sleep(1)
        bob.acks = True
        for message in bob.messages:
            bob.ack(message)
        await told(ann, again)
        await bob.until(lambda bob: len(set(bob.texts)) == 301, within=60)
        assert len(bob.texts) == 301


async def test_what_he_acks_while_the_disk_is_asked_is_not_pushed_by_a_third_node(autojump_clock: object) -> None:
    """The third node's push has come, and the disk has answered that it is new, when his ack goes through."""
    async with open_cluster("n1", "n2", "n3") as cluster:
        ann, again = await cluster.nodes["n1"].login("ann"), await cluster.nodes["n3"].login("ann")
        bob = await cluster.nodes["n2"].login("bob", acks=False)
        await greeted(ann, bob, again)
        ann.write("bob", "hello", "r1")
        await bob.until(lambda bob: bob.texts == ["hello"])
        cluster.stores["n2"].after_read = 0.5
        again.write("bob", "hello", "r1")
        await again.until(lambda again: len(again.receipts) == 1)
        await trio.sleep(0.1)
        bob.ack(bob.messages[0])
        await told(ann, again)
        assert bob.texts == ["hello"]


async def test_what_he_acks_while_it_is_being_stored_is_not_pushed_by_his_own_node(autojump_clock: object) -> None:
    """His ack goes through behind the row, and is answered before the node goes on with that."""
    async with open_cluster("n1", "n2") as cluster:
        n2 = cluster.nodes["n2"]
        ann, again = await cluster.nodes["n1"].login("ann"), await n2.login("ann")
        bob = await n2.login("bob", acks=False)
        await greeted(ann, bob, again)
        ann.write("bob", "hello", "r1")
        await bob.until(lambda bob: bob.texts == ["hello"])
        n2.store.after_commit = 0.5
        again.write("bob", "hello", "r1")
        while not await n2.store.all_rows():
            await trio.sleep(0.01)
        n2.store.after_commit = 0.0
        bob.ack(bob.messages[0])
        await bob.until(lambda bob: bob.ack_statuses == [200])
        assert not again.receipts
        await told(ann, again)
        assert bob.texts == ["hello"]


async def told(*clients: Client) -> None:
    """Wait until each knows that Bob has the message of the request."""
    for client in clients:
        await client.until(lambda client: 200 in [status for _, _, status in client.told])
    await trio.sleep(10)
