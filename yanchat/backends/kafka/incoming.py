"""One topic of this node: the thread that reads it, and its batches for the loop.

The node assigns itself the partitions, so there is no group to balance; the group only keeps the offsets. Where to
begin is asked before the assignment and again after an error, for a broker that has just started may not know it yet.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Final

import trio
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from yanchat import failpoint
from yanchat.backends.kafka import heard
from yanchat.backends.kafka.clients import Complaints, Config, make, refusal
from yanchat.backends.kafka.rest import BATCH, record_of, spans
from yanchat.backends.kafka.topics import Topics
from yanchat.errors import BusUnavailable, ConfigError
from yanchat.ports import Batch
from yanchat.protocol.records import Record
from yanchat.telemetry import Counters

AHEAD: Final = 4
"""Batches that may wait for the loop; then the thread stops reading."""
POLL_SECONDS: Final = 0.2
AGAIN_AFTER: Final = 0.3
FATAL_AT_MOST: Final = 3
_TOPIC_GONE: Final = (KafkaError._UNKNOWN_PARTITION, KafkaError._UNKNOWN_TOPIC, KafkaError.UNKNOWN_TOPIC_OR_PART)
CLOSED_WITHIN: Final = 3.0


class KafkaBatch(Batch):
    """Made by `Incoming`; `ends` are the offsets behind it, by partition."""

    def __init__(self, topic: Incoming, known: list[Record], unreadable: int, ends: dict[int, int], caught_up: bool):
        self._topic, self._ends = topic, ends
        self.records, self.unreadable, self.caught_up = known, unreadable, caught_up

    async def commit(self) -> None:
        if self._ends:
            failpoint.hit("offset-commit")
            self._topic.done(self._ends)


class Incoming(AsyncIterator[Batch]):
    """Made and used on the trio loop; the first batch comes when the partitions are assigned, and is empty."""

    def __init__(self, topic: str, config: Config, topics: Topics, counters: Counters) -> None:
        self._topic, self._topics, self._counters = topic, topics, counters
        self._heard = heard.Heard(topic)
        told = {"stats_cb": self._heard.statistics, "statistics.interval.ms": heard.STATISTICS_MS}
        self._config = {**config, **told, "error_cb": self._on_error}
        self._consumer = make(Consumer, self._config)
        self._next: dict[int, int] = {}
        """The offset of each partition that is handed over next."""
        self._ends: dict[int, int] = {}
        """Where each partition ended at the subscription."""
        self._done: deque[dict[int, int]] = deque()
        """What the loop has done; only the thread touches the consumer, whose calls wait for each other."""
        self._stored: dict[int, int] = {}
        """The highest offsets that librdkafka has been told to commit."""
        self._from: dict[int, int] = {}
        """Where each partition was taken up."""
        self.lag = self._counted_at = 0
        """How many records are not done, as the thread last counted them; when that was, in seconds."""
        self._refused: ConfigError | None = None
        self._lost: KafkaError | None = None
        self._complain = Complaints()
        self._room = threading.Semaphore(AHEAD)
        self._closing = False
        self._token = trio.lowlevel.current_trio_token()
        self._send, self._receive = trio.open_memory_channel[KafkaBatch | Exception](AHEAD + 2)
        self._first: KafkaBatch | Exception | None = None
        self._beat = time.monotonic()
        """When the thread last came round; 0 while it waits for the loop to take what it has read."""
        self.name = f"kafka {topic}"
        self._thread = threading.Thread(target=self._serve, name=self.name, daemon=True)
        self._thread.start()

    async def assigned(self) -> None:
        """Wait until the first batch is there. Raises ConfigError when Kafka refuses this node."""
        self._first = await self._receive.receive()
        if isinstance(self._first, Exception):
            raise self._first

    async def __anext__(self) -> Batch:
        """The next batch; cancelled, none is lost. Raises BusUnavailable when the topic cannot be read any more."""
        batch, self._first = self._first, None
        if batch is None:
            batch = await self._receive.receive()
            self._room.release()
        if isinstance(batch, Exception):
            raise batch
        self._counters.bus_unreadable += batch.unreadable
        return batch

    def done(self, ends: dict[int, int]) -> None:
        """Everything before these offsets need not be read again. The broker hears of it within seconds."""
        self._done.append(ends)

    async def close(self) -> None:
        """Stop reading; what is done is committed, if the broker is there."""
        self._closing = True
        self._room.release()
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._thread.join, CLOSED_WITHIN)

    @property
    def silent(self) -> float:
        """Seconds since the thread last came round; infinite when it has died."""
        if self._closing or not self._thread.is_alive():
            return 0.0 if self._closing else math.inf
        beat = self._beat
        return time.monotonic() - beat if beat else 0.0

    @property
    def unheard(self) -> float:
        """Seconds since the brokers of this topic last answered; 0 while the thread waits for the loop."""
        return 0.0 if self._closing or not self._beat else self._heard.age

    # -- the thread ----------------------------------------------------------------------------------------------------
    def _serve(self) -> None:
        fatal = 0
        while not self._closing:
            self._beat = time.monotonic()
            try:
                self._assign()
                self._read()
            except KafkaException as exception:
                error: KafkaError = exception.args[0]
                self._complain("bus.consumer", error)
                if error.fatal():
                    fatal += 1
                    self._replace()
                if fatal == FATAL_AT_MOST:
                    self._hand(BusUnavailable(f"Kafka's consumer fails again and again: {error.str()}."))
                    break
                time.sleep(AGAIN_AFTER)
            except Exception as error:
                self._hand(error)
                break
        self._store()
        with suppress(KafkaException, RuntimeError):
            self._consumer.close()

    def _assign(self) -> None:
        began = bool(self._ends)
        self._heard.partitions = set()
        try:
            starts = self._starts()
        except KafkaException as exception:
            self._consumer.poll(0)  # for `_on_error`, which knows better why nobody answers
            refused = self._refused or refusal(exception.args[0])
            if refused is not None and not began:
                raise refused from None
            raise
        self._consumer.assign([TopicPartition(self._topic, partition, start) for partition, start in starts.items()])
        self._next, self._from, self._stored = starts, dict(starts), {}
        if not began:
            self._hand(KafkaBatch(self, [], 0, {}, self._caught_up()))

    def _starts(self) -> dict[int, int]:
        partitions = self._topics.partitions(self._consumer, self._topic)
        found = spans(self._consumer, self._topic, partitions, self._next)
        self._ends = self._ends or {partition: span.end for partition, span in found.items()}
        return {partition: span.start for partition, span in found.items()}

    def _read(self) -> None:
        while self._reads():
            began, self._beat = time.monotonic(), 0.0
            self._room.acquire()
            self._heard.not_listened(time.monotonic() - began)
            try:
                messages = self._poll()
            except BaseException:
                self._room.release()
                raise
            batch, error = self._batch(messages)
            self._hand(batch)
            if error is not None:
                raise KafkaException(error)

    def _reads(self) -> bool:
        """Whether this goes on with the partitions that it has: none has been added to the topic."""
        return not self._closing and self._heard.partitions <= self._from.keys()

    def _poll(self) -> list[Message]:
        """What is there; the first is waited for, for the others nobody waits."""
        while self._reads():
            self._beat = time.monotonic()
            self._store()
            self._count()
            first = self._consumer.poll(POLL_SECONDS)
            if self._lost is not None:
                error, self._lost = self._lost, None
                raise KafkaException(error)
            if first is not None:
                return [first, *self._consumer.consume(BATCH - 1, 0)]
        return []

    def _store(self) -> None:
        """Let librdkafka commit what is done, in its own time."""
        news = bool(self._done)
        while self._done:
            for partition, offset in self._done.popleft().items():
                self._stored[partition] = max(offset, self._stored.get(partition, 0))
        if news:
            offsets = [TopicPartition(self._topic, partition, offset) for partition, offset in self._stored.items()]
            with suppress(KafkaException):  # not assigned at this moment: once more with the next
                self._consumer.store_offsets(offsets=offsets)

    def _count(self) -> None:
        """Once a second, out of what librdkafka has learned while it fetched."""
        now = int(time.monotonic())
        if now == self._counted_at:
            return
        self._counted_at, lag = now, 0
        for partition, start in self._from.items():
            marks = self._consumer.get_watermark_offsets(TopicPartition(self._topic, partition), cached=True)
            lag += max(0, (marks[1] if marks else 0) - self._stored.get(partition, start))
        self.lag = lag

    def _batch(self, messages: list[Message]) -> tuple[KafkaBatch, KafkaError | None]:
        """The records among the messages, and the last error: librdkafka reports those in the same way."""
        known, unreadable, ends, last_error = [], 0, {}, None
        for message in messages:
            error, partition, offset = message.error(), message.partition(), message.offset()
            if error is not None:
                last_error = error if error.code() != KafkaError._PARTITION_EOF else last_error
            elif partition is not None and offset is not None:
                record = record_of(message)
                if record is None:
                    unreadable += 1
                else:
                    known.append(record)
                self._next[partition] = ends[partition] = offset + 1
        return KafkaBatch(self, known, unreadable, ends, self._caught_up()), last_error

    def _caught_up(self) -> bool:
        return all(self._next.get(partition, 0) >= end for partition, end in self._ends.items())

    def _replace(self) -> None:
        with suppress(KafkaException, RuntimeError):
            self._consumer.close()
        self._consumer = make(Consumer, self._config)

    def _on_error(self, error: KafkaError) -> None:
        self._refused = self._refused or refusal(error)
        if error.code() in _TOPIC_GONE:
            self._lost = error
        self._complain("bus.consumer", error)

    def _hand(self, item: KafkaBatch | Exception) -> None:
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._put, item)

    def _put(self, item: KafkaBatch | Exception) -> None:
        with suppress(trio.BrokenResourceError):
            self._send.send_nowait(item)
