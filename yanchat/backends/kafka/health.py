"""How the brokers and our topics are: facts for `yanchat doctor`, which judges them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final, NamedTuple

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType  # type: ignore[attr-defined]

from yanchat import names
from yanchat.backends.kafka.clients import admin_config, make, refusal
from yanchat.config import KafkaSettings
from yanchat.errors import BusUnavailable, ConfigError

ANSWERED_WITHIN: Final = 5.0
_CLIENT: Final = "yanchat-doctor"


class TopicHealth(NamedTuple):
    """One topic of a node."""

    topic: str
    replicas: int
    """Of the partition that has the fewest."""
    in_sync: int
    """Of the partition that has the fewest."""
    min_in_sync: int
    retention: float
    """Seconds; infinite when it keeps everything."""
    largest: int
    """Bytes that one record may take."""


class KafkaHealth(NamedTuple):
    brokers: int
    topics: list[TopicHealth]
    unknown: list[str]
    """Topics whose settings we may not see."""


def look_at_kafka(settings: KafkaSettings, nodes: Collection[str]) -> KafkaHealth:
    """The brokers, and the topics of these nodes as far as they are there.

    Blocks for some seconds at most. Raises BusUnavailable, ConfigError.
    """
    refused: list[ConfigError] = []

    def on_error(error: KafkaError) -> None:
        if (reason := refusal(error)) is not None:
            refused.append(reason)

    admin = make(AdminClient, {**admin_config(settings, _CLIENT), "error_cb": on_error})
    try:
        there = admin.list_topics(timeout=ANSWERED_WITHIN)
        wanted = {
            name
            for node in nodes
            for name in (
                names.message_topic(node, settings.topic_prefix),
                names.ack_topic(node, settings.ack_topic_prefix),
            )
        }
        ours = {name: topic for name, topic in there.topics.items() if name in wanted}
        told = _settings_of(admin, ours)
    except KafkaException as exception:
        error: KafkaError = exception.args[0]
        on_error(error)
        if refused:
            raise refused[0] from None
        brokers = ",".join(settings.brokers)
        text = f"Kafka does not answer at {brokers}: {error.str()}; look at the brokers, or at kafka.brokers."
        raise BusUnavailable(text) from None
    topics = [_topic(name, topic, told[name]) for name, topic in sorted(ours.items()) if name in told]
    return KafkaHealth(len(there.brokers), topics, sorted(ours.keys() - told.keys()))


def _settings_of(admin: AdminClient, topics: Collection[str]) -> dict[str, dict[str, str]]:
    """The settings of each topic that we may see."""
    if not topics:
        return {}
    asked = admin.describe_configs(
        [ConfigResource(ResourceType.TOPIC, name) for name in topics], request_timeout=ANSWERED_WITHIN
    )
    told = {}
    for resource, future in asked.items():
        try:
            told[resource.name] = {entry.name: entry.value for entry in future.result().values()}
        except KafkaException as exception:
            if exception.args[0].code() != KafkaError.TOPIC_AUTHORIZATION_FAILED:
                raise
    return told


def _topic(name: str, topic: Any, told: Mapping[str, str]) -> TopicHealth:
    retention = float(told["retention.ms"]) / 1000
    return TopicHealth(
        topic=name,
        replicas=min(len(partition.replicas) for partition in topic.partitions.values()),
        in_sync=min(len(partition.isrs) for partition in topic.partitions.values()),
        min_in_sync=int(told["min.insync.replicas"]),
        retention=retention if retention >= 0 else float("inf"),
        largest=int(told["max.message.bytes"]),
    )
