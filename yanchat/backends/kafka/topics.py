"""A node's two topics: made with the settings in [kafka] when they are not there."""

from __future__ import annotations

import time
from typing import Final

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from yanchat.backends.kafka.clients import Config, make
from yanchat.config import KafkaSettings

ASK_SECONDS: Final = 1.5
CREATE_SECONDS: Final = 5.0
KNOWN_WITHIN: Final = 10.0
LONGEST_SEGMENT: Final = 6 * 3600.0
"""Kafka removes whole segments: a record lives for the retention and up to one segment's time."""
RECORD_AT_LEAST: Final = 1 << 20


def largest_record(message_size: int) -> int:
    """What one record may take, in bytes, when a text may take `message_size`: in JSON a character may take six."""
    return max(RECORD_AT_LEAST, 6 * message_size + (64 << 10))


class Topics:
    """`largest` is what one record may take, in bytes."""

    def __init__(self, settings: KafkaSettings, config: Config, largest: int) -> None:
        self._settings, self._config, self._largest = settings, config, largest

    def partitions(self, consumer: Consumer, name: str) -> list[int]:
        """The topic's partitions, after it has been made if need be. Raises KafkaException; blocks."""
        found = find_partitions(consumer, name)
        if found is None:
            self._create(name)
            deadline = time.monotonic() + KNOWN_WITHIN
            while (found := find_partitions(consumer, name)) is None:  # another broker may not know it yet
                if time.monotonic() > deadline:
                    raise KafkaException(KafkaError(KafkaError._UNKNOWN_TOPIC, f"{name} was made and is not there"))
                time.sleep(0.05)
        return found

    def _create(self, name: str) -> None:
        settings = self._settings
        config = {
            "cleanup.policy": "delete",
            "retention.ms": _ms(settings.retention),
            "segment.ms": _ms(max(1.0, min(LONGEST_SEGMENT, settings.retention))),
            "message.timestamp.type": "LogAppendTime",  # the retention goes by the broker's clock alone
            "max.message.bytes": str(self._largest),
        }
        if settings.min_insync_replicas:
            config["min.insync.replicas"] = str(settings.min_insync_replicas)
        topic = NewTopic(name, settings.partitions, settings.replication_factor or -1, config=config)
        admin = make(AdminClient, self._config)  # it has to live until it has answered
        asked = admin.create_topics([topic], request_timeout=CREATE_SECONDS)
        try:
            asked[name].result()
            structlog.get_logger().info("bus.topic_made", topic=name)
        except KafkaException as exception:
            error: KafkaError = exception.args[0]
            if error.code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise _of_topic(name, "cannot be made", error) from None


def find_partitions(consumer: Consumer, name: str) -> list[int] | None:
    """The topic's partitions, None when it is not there. Raises KafkaException; blocks."""
    found = consumer.list_topics(name, timeout=ASK_SECONDS).topics[name]
    if found.error is not None:
        if found.error.code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC):
            return None
        raise _of_topic(name, "cannot be read", found.error)
    return sorted(found.partitions) or None


def _of_topic(name: str, what: str, error: KafkaError) -> KafkaException:
    return KafkaException(KafkaError(error.code(), f"topic {name} {what}: {error.str().strip().rstrip('.')}"))


def _ms(seconds: float) -> str:
    return str(int(seconds * 1000))
