"""librdkafka's settings and clients: what we tune, what must not be changed, and what its errors mean for us."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

import structlog
from confluent_kafka import KafkaError, KafkaException

from yanchat.config import KafkaSettings
from yanchat.config.librdkafka import refusal_of
from yanchat.errors import ConfigError

REPEATED_AFTER: Final = 30.0
C = TypeVar("C")
Config = dict[str, Any]

_TUNED: Final[Config] = {
    "socket.keepalive.enable": True,
    "reconnect.backoff.ms": 50,
    "reconnect.backoff.max.ms": 1000,
    "retry.backoff.ms": 50,
    "retry.backoff.max.ms": 1000,
    "topic.metadata.refresh.interval.ms": 30_000,  # partitions may be added to a topic
}
_PRODUCER: Final[Config] = {
    "linger.ms": 0,  # one way 0.9 ms; at 1 it is 2.2 ms, at the default of 5 it is 7.4 ms
    "queue.buffering.max.messages": 100_000,
    "queue.buffering.max.kbytes": 64 << 10,
    # longer than the longest redelivery: so what is due once Kafka is back is still in the queue, and goes at once
    "message.timeout.ms": 360_000,
    # how far records may overtake each other when a broker refuses some for a moment
    "max.in.flight.requests.per.connection": 5,
}
_CONSUMER: Final[Config] = {
    "queued.min.messages": 2000,
    "queued.max.messages.kbytes": 16 << 10,
    "fetch.queue.backoff.ms": 10,
    "fetch.error.backoff.ms": 100,
    "auto.commit.interval.ms": 1000,
}

REFUSALS: Final = frozenset(
    {
        KafkaError._AUTHENTICATION,
        KafkaError.SASL_AUTHENTICATION_FAILED,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.UNSUPPORTED_SASL_MECHANISM,
        KafkaError.POLICY_VIOLATION,
        KafkaError.INVALID_CONFIG,
        KafkaError.INVALID_PARTITIONS,
        KafkaError.TOPIC_EXCEPTION,
    }
)
"""Errors that no waiting mends."""


def producer_config(settings: KafkaSettings, client: str, largest: int) -> Config:
    """Records are known again by their message id, so the producer need not be idempotent.

    It would send no more while five records of a topic are under way, and meanwhile look again and again without a
    pause (`rd_kafka_toppar_producer_serve` of librdkafka 2.16), which takes what the processors have left.
    """
    promises = {"acks": "all", "enable.idempotence": False, "allow.auto.create.topics": False}
    return _config(settings, client, {**_PRODUCER, "message.max.bytes": largest}, promises)


def consumer_config(settings: KafkaSettings, client: str, group: str) -> Config:
    promises = {
        "group.id": group,
        "enable.auto.offset.store": False,
        "enable.auto.commit": True,  # only what we have stored
        "auto.offset.reset": "earliest",
        "allow.auto.create.topics": False,
    }
    return _config(settings, client, _CONSUMER, promises)


def admin_config(settings: KafkaSettings, client: str) -> Config:
    return _config(settings, client, {}, {})


def _config(settings: KafkaSettings, client: str, tuned: Config, promises: Config) -> Config:
    """Ours, then the operator's, then what carries our promises. Raises ConfigError."""
    if refused := refusal_of(settings.librdkafka):
        raise ConfigError(f"kafka.librdkafka: {refused[1]}")
    brokers = ",".join(settings.brokers)
    if not brokers:
        raise ConfigError("kafka.brokers is empty; name at least one broker as HOST:PORT.")
    first = {"bootstrap.servers": brokers, "client.id": client, "logger": _Log()}
    return {**first, **_TUNED, **tuned, **settings.librdkafka, **promises}


def make(kind: Callable[[Config], C], config: Config) -> C:
    """A client of librdkafka. It connects by itself, later. A setting that cannot be: ConfigError."""
    try:
        return kind(config)
    except (KafkaException, TypeError, ValueError) as error:
        reason = error.args[0].str() if isinstance(error, KafkaException) else error
        raise ConfigError(f"kafka.librdkafka: {reason}.") from None


def refusal(error: KafkaError) -> ConfigError | None:
    """The ConfigError for an error that no waiting mends."""
    if error.code() in REFUSALS or (error.code() == KafkaError._SSL and "verify failed" in error.str()):
        return ConfigError(f"Kafka refuses this node: {error.str()}; check [kafka] and [kafka.librdkafka].")
    return None


class Complaints:
    """Errors that librdkafka repeats at every attempt, logged when they are new and every half minute."""

    def __init__(self) -> None:
        self._quiet: dict[int, float] = {}
        """The errors, by their code, and until when they are not said again."""

    def __call__(self, event: str, error: KafkaError) -> None:
        now = time.monotonic()
        if now >= self._quiet.get(error.code(), 0.0):
            self._quiet[error.code()] = now + REPEATED_AFTER
            structlog.get_logger().warning(event, error=error.str())


class _Log:
    """librdkafka's own log lines, for those who debug."""

    def log(self, level: int, form: str, *parts: object) -> None:
        if parts and parts[0] != "CONFWARN":  # a setting of the producer is none of the consumer's: that is no news
            structlog.get_logger().debug("kafka.log", line=form % parts, level_number=level)
