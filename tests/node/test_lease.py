"""A node's place among the others."""

from __future__ import annotations

import pytest
import trio

from tests.node.cluster import open_cluster
from yanchat.errors import AddressTaken


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
