"""The bus on Kafka: two topics for each node, named as the protocol says ("Between nodes"), spelled in `names.py`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import trio

from yanchat import failpoint, names
from yanchat.backends.kafka.clients import Config, admin_config, consumer_config, producer_config
from yanchat.backends.kafka.incoming import Incoming
from yanchat.backends.kafka.outgoing import Outgoing, Sent
from yanchat.backends.kafka.rest import read_rest
from yanchat.backends.kafka.topics import Topics, largest_record
from yanchat.config import KafkaSettings
from yanchat.model import Node
from yanchat.ports import Batch, Bus
from yanchat.protocol import records
from yanchat.protocol.records import Record, Topic
from yanchat.telemetry import Counters


class KafkaBus(Bus):
    """Made by `open_bus`."""

    def __init__(self, settings: KafkaSettings, node: Node, largest: int, counters: Counters) -> None:
        self._settings, self._node, self._counters = settings, node, counters
        self._client = f"yanchat-{names.slug(node)}"
        self._topics = Topics(settings, admin_config(settings, self._client), largest)
        self._incoming: dict[Topic, Incoming] = {}
        self.outgoing = Outgoing(producer_config(settings, self._client, largest), self._count)

    def _count(self, _: str) -> None:
        self._counters.bus_failed += 1

    def publish(self, node: Node, records: Sequence[Record], stored: Callable[[bool], None] | None = None) -> None:
        failpoint.hit("bus-publish")
        self._counters.bus_published += len(records)
        self.outgoing.send(self._encoded(node, records), stored)

    def _encoded(self, node: Node, batch: Sequence[Record]) -> Iterator[Sent]:
        topics = {"message": self._name("message", node), "ack": self._name("ack", node)}
        for record in batch:
            headers, value = records.encode(record, self.incarnation)
            yield topics[records.topic_of(record)], records.key_of(record), value, dict(headers)

    def _name(self, topic: Topic, node: Node) -> str:
        if topic == "message":
            return names.message_topic(node, self._settings.topic_prefix)
        return names.ack_topic(node, self._settings.ack_topic_prefix)

    @asynccontextmanager
    async def subscribe(self, topic: Topic) -> AsyncIterator[AsyncIterator[Batch]]:
        config = self._reader(self._node)
        incoming = Incoming(self._name(topic, self._node), config, self._topics, self._counters)
        self._incoming[topic] = incoming
        try:
            await incoming.assigned()
            yield incoming
        finally:
            del self._incoming[topic]
            await incoming.close()

    async def read(self, node: Node, topic: Topic) -> list[Record]:
        work = partial(read_rest, self._name(topic, node), self._reader(node))
        return await trio.to_thread.run_sync(work, abandon_on_cancel=True)

    def _reader(self, node: Node) -> Config:
        return consumer_config(self._settings, self._client, names.group(node, self._settings.group_prefix))

    async def lag(self) -> dict[Topic, int]:
        return {topic: incoming.lag for topic, incoming in self._incoming.items()}

    async def flush(self) -> None:
        await self.outgoing.idle()

    def lanes(self) -> dict[str, float]:
        readers = {incoming.name: incoming.silent for incoming in self._incoming.values()}
        return {"kafka-producer": self.outgoing.silent, **readers}

    def silent(self) -> float:
        return max((incoming.unheard for incoming in self._incoming.values()), default=0.0)


@asynccontextmanager
async def open_bus(
    settings: KafkaSettings, node: Node, message_size: int, counters: Counters
) -> AsyncIterator[KafkaBus]:
    """This node's bus; `message_size` is what a text may take, in bytes. Kafka may be away: `subscribe` waits for it.

    A setting of librdkafka that cannot be: ConfigError. When the producer cannot be kept alive: BusUnavailable.
    """
    bus = KafkaBus(settings, node, largest_record(message_size), counters)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bus.outgoing.run)
            yield bus
            nursery.cancel_scope.cancel()
    finally:
        await bus.outgoing.close()
