"""How the suites reach Redis and Kafka: names of their own for each test, so that tests cannot see each other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import redis
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from tests.contracts.backends import LEASE, Cluster, until
from tests.contracts.examples import HERE, THERE
from yanchat import names
from yanchat.backends.kafka.bus import open_bus
from yanchat.backends.redis.registry import open_registry
from yanchat.config import KafkaSettings, RedisSettings
from yanchat.model import Node
from yanchat.ports import Bus
from yanchat.telemetry import Counters


@asynccontextmanager
async def redis_cluster(url: str, prefix: str) -> AsyncIterator[Cluster]:
    settings = RedisSettings(url=url, key_prefix=prefix)
    async with open_registry(settings, LEASE) as first, open_registry(settings, LEASE) as second:

        async def lapse() -> None:
            """Nobody waits ten seconds: the server is told that they are over."""
            for record in await second.nodes():
                client.pexpire(names.node_key(record.node, prefix), 1)
            await until(lambda: _all_dead(second))

        async def _all_dead(registry: object) -> bool:
            return all(record.state == "dead" for record in await second.nodes())

        with redis.Redis.from_url(url) as client:
            yield Cluster(first, second, lapse)
            keys = client.keys(f"{prefix}*")
            if keys:
                client.delete(*keys)


class KafkaBuses:
    def __init__(self, brokers: str, prefix: str) -> None:
        self._settings = KafkaSettings(
            brokers=tuple(brokers.split(",")),
            topic_prefix=f"{prefix}websocket-",
            ack_topic_prefix=f"{prefix}netty-ack-",
            group_prefix=f"{prefix}group",
        )
        self._known: set[Node] = set()

    @asynccontextmanager
    async def connect(self, node: Node) -> AsyncIterator[Bus]:
        self._make_topics(node, HERE, THERE)
        async with open_bus(self._settings, node, 1 << 16, Counters()) as bus:
            yield bus

    def _make_topics(self, *nodes: Node) -> None:
        """A node that is down has been up once, and has left its topics behind."""
        new = {node for node in nodes if node not in self._known}
        self._known |= new
        prefixes = self._settings.topic_prefix, self._settings.ack_topic_prefix
        topics = [NewTopic(prefix + names.slug(node), 1) for prefix in prefixes for node in new]
        if topics:
            admin = AdminClient({"bootstrap.servers": ",".join(self._settings.brokers)})
            for made in admin.create_topics(topics).values():
                made.result()
