"""Where a node goes on reading in a topic, and what is left in it from there."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, cast

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from yanchat.backends.kafka.clients import Config, make
from yanchat.backends.kafka.topics import ASK_SECONDS, find_partitions
from yanchat.errors import BusUnavailable
from yanchat.protocol import records
from yanchat.protocol.records import Record

BATCH: Final = 500
READ_WITHIN: Final = 30.0
"""Seconds without anything new."""


class Span(NamedTuple):
    """Offsets of one partition: where to go on, and behind the last record."""

    start: int
    end: int


def spans(consumer: Consumer, topic: str, partitions: Sequence[int], known: Mapping[int, int]) -> dict[int, Span]:
    """Go on at the `known` offset, else at the committed one, else at the first. Raises KafkaException; blocks."""
    places = [TopicPartition(topic, partition) for partition in partitions]
    marks: dict[int, tuple[int, int]] = {}
    for place in places:
        mark = consumer.get_watermark_offsets(place, timeout=ASK_SECONDS)
        if mark is None:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT, f"the broker does not say where {topic} ends"))
        marks[place.partition] = mark
    starts = dict(known)
    if not starts.keys() >= set(partitions):
        for place in consumer.committed(places, timeout=ASK_SECONDS):
            if place.error is not None:
                raise KafkaException(place.error)
            starts.setdefault(place.partition, place.offset)
    return {
        partition: Span(starts[partition] if low <= starts[partition] <= high else low, high)
        for partition, (low, high) in marks.items()
    }


def read_rest(topic: str, config: Config) -> list[Record]:
    """What stands there now behind the group's commit; nothing is committed. Raises BusUnavailable; blocks."""
    consumer = make(Consumer, {**config, "enable.auto.commit": False})
    try:
        partitions = find_partitions(consumer, topic)
        left = spans(consumer, topic, partitions, {}) if partitions else {}
        left = {partition: span for partition, span in left.items() if span.start < span.end}
        consumer.assign([TopicPartition(topic, partition, span.start) for partition, span in left.items()])
        found: list[Record] = []
        deadline = time.monotonic() + READ_WITHIN
        while left:
            for message in consumer.consume(BATCH, 0.1):
                if (error := message.error()) is not None:
                    if error.code() == KafkaError._PARTITION_EOF:
                        continue
                    raise KafkaException(error)
                partition, offset = cast(int, message.partition()), cast(int, message.offset())
                record = record_of(message)
                if partition in left and offset < left[partition].end and record is not None:
                    found.append(record)
                if partition in left and offset + 1 >= left[partition].end:
                    del left[partition]
                deadline = time.monotonic() + READ_WITHIN
            if time.monotonic() > deadline:
                raise BusUnavailable(f"Kafka does not hand over the rest of {topic}; look at the brokers.")
        return found
    except KafkaException as exception:
        raise BusUnavailable(f"{topic} cannot be read: {exception.args[0].str()}; look at the brokers.") from None
    finally:
        consumer.close()


def record_of(message: Message) -> Record | None:
    """The record, None for what cannot be read."""
    pairs = cast(list[tuple[str, bytes | None]], message.headers() or [])
    try:
        headers = {key: value.decode() for key, value in pairs if value is not None}
    except UnicodeDecodeError:
        return None
    return records.decode(headers, message.value() or b"")
