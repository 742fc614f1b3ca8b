"""Topics of nodes that are not registered any more: which there are, how much waits in them, and their removal."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Final, NamedTuple, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from yanchat import names
from yanchat.backends.kafka.clients import admin_config, consumer_config, make, refusal
from yanchat.backends.kafka.rest import spans
from yanchat.backends.kafka.topics import ASK_SECONDS, find_partitions
from yanchat.config import KafkaSettings
from yanchat.errors import BusUnavailable, ConfigError, NotAllowed

R = TypeVar("R")
ANSWERED_WITHIN: Final = 10.0
AGAIN_AFTER: Final = 0.3
_CLIENT: Final = "yanchat-servers"
_REFUSED: Final = (
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.TOPIC_DELETION_DISABLED,
    KafkaError.POLICY_VIOLATION,
)
_GONE: Final = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC)


class Leftover(NamedTuple):
    """A topic whose name is one of ours, and whose node is not registered; `waiting`: records behind its commit."""

    topic: str
    slug: str
    waiting: int


class Leftovers:
    """All methods block. They raise BusUnavailable (it cannot be told now), ConfigError and NotAllowed (refused)."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings

    def find(self, registered: Collection[str]) -> list[Leftover]:
        """The topics of all nodes but these."""
        topics = self._ask(_CLIENT, lambda consumer: consumer.list_topics(timeout=ASK_SECONDS).topics)
        kept = {self._message_topic(node) for node in registered} | {self._ack_topic(node) for node in registered}
        found = []
        for topic in sorted(topics.keys() - kept):
            slug = self._slug(topic)
            waiting = self._waiting(topic, slug) if slug else None
            if waiting is not None:
                found.append(Leftover(topic, slug, waiting))
        return found

    def remove(self, leftover: Leftover, *, whatever_waits: bool = False) -> bool:
        """Remove the topic; False: something waits in it meanwhile. It may be gone already."""
        if not whatever_waits and self._waiting(leftover.topic, leftover.slug):
            return False
        admin = make(AdminClient, admin_config(self._settings, _CLIENT))
        try:
            admin.delete_topics([leftover.topic], operation_timeout=ANSWERED_WITHIN)[leftover.topic].result()
        except KafkaException as exception:
            error: KafkaError = exception.args[0]
            if error.code() in _REFUSED:
                reason = error.str().strip().rstrip(".")
                text = f"Kafka does not let this user remove {leftover.topic}: {reason}; ask one who may."
                raise NotAllowed(text) from None
            if error.code() not in _GONE:
                raise BusUnavailable(
                    f"{leftover.topic} cannot be removed now: {error.str()}; run this again."
                ) from None
        return True

    def _slug(self, topic: str) -> str:
        """Whose topic that is by its name; empty when it is none of ours."""
        prefixes = sorted((self._settings.topic_prefix, self._settings.ack_topic_prefix), key=len, reverse=True)
        for prefix in prefixes:  # one may begin with the other
            slug = topic.removeprefix(prefix)
            if topic.startswith(prefix):
                return slug if names.is_slug(slug) else ""
        return ""

    def _waiting(self, topic: str, slug: str) -> int | None:
        """How many records stand behind the commit of the node's group; None when there is no such topic."""

        def work(consumer: Consumer) -> int | None:
            partitions = find_partitions(consumer, topic)
            left = spans(consumer, topic, partitions or (), {}).values()
            return None if partitions is None else sum(span.end - span.start for span in left)

        return self._ask(names.group(slug, self._settings.group_prefix), work)

    def _ask(self, group: str, work: Callable[[Consumer], R]) -> R:
        """Ask until there is an answer: a broker that has just started does not know everything at once."""
        config = consumer_config(self._settings, _CLIENT, group)
        refused: list[ConfigError] = []

        def on_error(error: KafkaError) -> None:
            if (reason := refusal(error)) is not None:
                refused.append(reason)

        consumer = make(Consumer, {**config, "enable.auto.commit": False, "error_cb": on_error})
        deadline = time.monotonic() + ANSWERED_WITHIN
        try:
            while True:
                try:
                    return work(consumer)
                except KafkaException as exception:
                    error: KafkaError = exception.args[0]
                on_error(error)
                consumer.poll(0)  # it hears as well what is behind a timeout
                if refused:
                    raise refused[0]
                if time.monotonic() > deadline:
                    brokers = ",".join(self._settings.brokers)
                    raise BusUnavailable(
                        f"Kafka does not answer at {brokers}: {error.str()}; look at the brokers, or at kafka.brokers."
                    )
                time.sleep(AGAIN_AFTER)
        finally:
            consumer.close()

    def _message_topic(self, node: str) -> str:
        return names.message_topic(node, self._settings.topic_prefix)

    def _ack_topic(self, node: str) -> str:
        return names.ack_topic(node, self._settings.ack_topic_prefix)
