"""The trace that a message was sent in goes with it: to the push, over a restart, and back to the sender."""

from __future__ import annotations

import pytest
import trio

from tests.node.cluster import Client, greeted, open_cluster
from yanchat.protocol import client_frames
from yanchat.protocol.client_frames import Settled

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def write_traced(client: Client, to: str, text: str) -> None:
    client.session.receive(client_frames.send((to,), text, traceparent=TRACE).encode())


def traces(client: Client) -> list[str]:
    """Of the notices that it has."""
    return [frame.traceparent for frame in client.frames if isinstance(frame, Settled)]


@pytest.mark.parametrize("there", ["n1", "n2"])
async def test_a_trace_is_carried_from_the_send_to_the_push_and_the_notice(there: str, autojump_clock: object) -> None:
    async with open_cluster("n1", "n2") as cluster:
        ann, bob = await cluster.nodes["n1"].login("ann"), await cluster.nodes[there].login("bob")
        await greeted(ann, bob)
        write_traced(ann, "bob", "hello")
        ann.write("bob", "untraced")
        await ann.until(lambda ann: len(ann.told) == 2)
        assert [(message.text, message.traceparent) for message in bob.messages] == [("hello", TRACE), ("untraced", "")]
        assert traces(ann) == [TRACE, ""]


async def test_a_trace_is_kept_with_a_message_that_waits(autojump_clock: object) -> None:
    """Over a restart of its node, until its recipient comes."""
    async with open_cluster("n1", "n2") as cluster:
        ann = await cluster.nodes["n1"].login("ann")
        await greeted(ann)
        write_traced(ann, "bob", "hello")
        await ann.until(lambda ann: len(ann.receipts) == 1)
        cluster.nodes["n1"].crash()
        await trio.sleep(1)
        await cluster.start("n1")
        bob = await cluster.nodes["n2"].login("bob")
        await bob.until(lambda bob: len(bob.messages) == 1, within=60)
        ann = await cluster.nodes["n2"].login("ann")
        await ann.until(lambda ann: len(ann.told) == 1, within=60)
        assert bob.messages[0].traceparent == TRACE
        assert traces(ann) == [TRACE]
