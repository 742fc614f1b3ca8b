"""A node's place among the others."""

from __future__ import annotations

import pytest
import trio

from tests.node.cluster import open_cluster
from yanchat.errors import AddressTaken, RegistryUnavailable
from yanchat.model import NodeRecord


async def test_a_node_that_cannot_be_told_from_a_live_one_refuses_to_start(autojump_clock: object) -> None:
    """Two addresses with one slug would share their topics; when the first has gone, the second may come."""
    async with open_cluster("a.b") as cluster:
        with pytest.RaisesGroup(AddressTaken, flatten_subgroups=True, allow_unwrapped=True):
            async with open_cluster() as other:
                other.registry = cluster.registry
                await other.start("a-b")
        cluster.nodes["a.b"].crash()
        await trio.sleep(11)
        await cluster.start("a-b")


async def test_a_join_whose_answer_is_lost_is_followed_by_the_claims_all_the_same(autojump_clock: object) -> None:
    """The registry has forgotten all; the node's new record stands in it, and the node hears of that only later."""
    async with open_cluster("n1", "n2") as cluster:
        n2 = cluster.nodes["n2"]
        ann, bob = await cluster.nodes["n1"].login("ann"), await n2.login("bob")
        await ann.until(lambda ann: ann.hello is not None)
        await bob.until(lambda bob: bob.hello is not None)
        n2.registry.up = False
        await trio.sleep(5)
        cluster.registry.forget_all()
        n2.registry.up, joined = True, n2.registry.join

        async def join_without_an_answer(record: NodeRecord) -> None:
            n2.registry.join = joined  # type: ignore[method-assign]
            await joined(record)
            raise RegistryUnavailable("The registry has not answered in time.")

        n2.registry.join = join_without_an_answer  # type: ignore[method-assign]
        await trio.sleep(10)
        ann.write("bob", "hello")
        await bob.until(lambda bob: bob.texts == ["hello"], within=5)
