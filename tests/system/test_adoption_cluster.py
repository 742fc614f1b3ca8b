"""The same with real Redis and Kafka, each node with a directory of its own: what a dead one had accepted arrives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
import redis
import trio

from tests.running import RunningNode
from tests.system.test_adoption import TEXTS, adopt, hear_all, leave_behind, totals
from tests.system.test_cluster import settings
from yanchat.backends.kafka.bus import open_bus
from yanchat.backends.sqlite.books import FileBooks
from yanchat.backends.sqlite.store import open_store
from yanchat.client import Client, connect
from yanchat.config import KafkaSettings
from yanchat.model import Key, Node, Totals
from yanchat.names import node_key
from yanchat.ports import RowFilter
from yanchat.protocol.client_frames import AckReceipt, Message
from yanchat.protocol.records import Acked
from yanchat.telemetry import Counters


@pytest.fixture
def nodes(tmp_path: Path, prefix: str, redis_url: str, kafka_brokers: str) -> Iterator[list[RunningNode]]:
    """Three, as on three machines."""
    file = settings(tmp_path, prefix, redis_url, kafka_brokers)
    with ExitStack() as stack:
        yield [stack.enter_context(RunningNode(tmp_path / name, "--config", str(file))) for name in "abc"]


async def test_the_messages_of_a_dead_node_arrive_from_another(
    nodes: list[RunningNode], prefix: str, redis_url: str
) -> None:
    """Some acks came when it was dead already: they count. And when it comes back, it sends nothing."""
    dead, _, there = nodes

    def die(node: RunningNode) -> None:
        node.kill()
        with redis.Redis.from_url(redis_url) as client:
            client.delete(node_key(node.node, prefix))

    await leave_behind(dead, lambda node: None)
    async with connect(there.url, "bob") as bob:
        had = [await next_message(bob) for _ in range(20)]
        await trio.to_thread.run_sync(die, dead)
        for message in had:
            await bob.ack(message)
        while not isinstance(await bob.receive(), AckReceipt):
            pass
    moved = await trio.to_thread.run_sync(adopt, dead)
    assert await totals(dead) == Totals(moved=moved)
    await trio.to_thread.run_sync(dead.start)
    async with connect(there.url, "bob") as bob:
        got = {message.text for message in had}
        with trio.fail_after(60):
            while len(got) < len(TEXTS):
                message = await next_message(bob)
                got.add(message.text)
                await bob.ack(message)
    async with connect(nodes[1].url, "ann") as ann:
        await hear_all(ann)
    async with connect(dead.url, "bob") as bob:
        with trio.move_on_after(2):
            raise AssertionError(f"there was more: {await next_message(bob)}")


async def test_acks_that_come_late_are_heard_by_the_adopter(
    nodes: list[RunningNode], prefix: str, redis_url: str, kafka_brokers: str
) -> None:
    """Also by its next life; and from the dead node itself, when that one lives again."""
    dead, adopter, there = nodes
    await leave_behind(dead, RunningNode.kill)
    async with open_store(dead.directory / "node.db") as store:
        keys = [row.envelope.key for row in await store.search(RowFilter(limit=len(TEXTS)))]
    with redis.Redis.from_url(redis_url) as client:
        client.delete(node_key(dead.node, prefix))
    assert await trio.to_thread.run_sync(partial(adopt, dead, adopter)) == len(TEXTS)
    books = FileBooks(adopter.directory / "node.db")
    names = KafkaSettings(
        brokers=(kafka_brokers,),
        topic_prefix=f"{prefix}websocket-",
        ack_topic_prefix=f"{prefix}netty-ack-",
        group_prefix=f"{prefix}group",
    )
    async with open_bus(names, Node(there.node), 1 << 16, Counters()) as bus:

        async def ack(some: Sequence[Key], left: int) -> None:
            bus.publish(Node(dead.node), [Acked(Node(there.node), tuple(some))])
            with trio.fail_after(90):
                while (await books.waits()).pending != left:
                    await trio.sleep(0.5)

        await trio.sleep(5)  # it has been read when the rows came
        await ack(keys[:100], 1000)
        await trio.to_thread.run_sync(adopter.restart)
        await ack(keys[100:200], 900)
        await trio.to_thread.run_sync(dead.start)
        await ack(keys[200:], 0)
    async with connect(there.url, "ann") as ann:
        await hear_all(ann)


async def next_message(client: Client) -> Message:
    while True:
        frame = await client.receive()
        if isinstance(frame, Message):
            return frame
