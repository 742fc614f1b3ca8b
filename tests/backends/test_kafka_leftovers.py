"""Topics of nodes that are gone: which are found, when they may go, and what is never touched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)
from confluent_kafka.cimpl import NewTopic
from msgspec.structs import replace

from tests.backends.test_kafka import GUEST, PATIENCE, pull, settings, take
from tests.contracts.examples import HERE, THERE
from tests.services import KafkaBroker
from yanchat.backends.kafka.bus import open_bus
from yanchat.backends.kafka.leftovers import Leftover, Leftovers
from yanchat.config import KafkaSettings
from yanchat.errors import BusUnavailable, ConfigError, NotAllowed
from yanchat.model import Node
from yanchat.telemetry import Counters

MESSAGES, ACKS = "websocket-127-0-0-1-8002", "netty-ack-127-0-0-1-8002"


async def lived(wanted: KafkaSettings, node: Node, records: int = 0, taken: int = 0) -> None:
    """A node has been there: its topics are, with so many records, of which it has committed so many."""
    async with open_bus(wanted, node, 1 << 16, Counters()) as bus:
        async with bus.subscribe("ack"), bus.subscribe("message") as batches:
            bus.publish(node, [pull(number) for number in range(taken)])
            await take(batches, taken)
        bus.publish(node, [pull(number) for number in range(taken, records)])
        with trio.fail_after(PATIENCE):
            await bus.flush()


def topics(brokers: str, prefix: str) -> set[str]:
    """Those of this test, without its prefix."""
    found = AdminClient({"bootstrap.servers": brokers}).list_topics(timeout=PATIENCE).topics
    return {name.removeprefix(prefix) for name in found if name.startswith(prefix)}


def make_topics(brokers: str, *names: str) -> None:
    admin = AdminClient({"bootstrap.servers": brokers})
    for one in admin.create_topics([NewTopic(name, 1) for name in names]).values():
        one.result()


async def until(true: Callable[[], bool]) -> None:
    with trio.fail_after(PATIENCE):
        while not true():
            await trio.sleep(0.05)


async def test_the_topics_of_a_node_that_is_gone_are_found_and_removed(kafka_brokers: str, prefix: str) -> None:
    wanted = settings(kafka_brokers, prefix)
    await lived(wanted, HERE)
    await lived(wanted, THERE, records=5, taken=5)
    leftovers = Leftovers(wanted)
    found = leftovers.find([HERE])
    assert found == [Leftover(prefix + name, "127-0-0-1-8002", 0) for name in (ACKS, MESSAGES)]
    for leftover in found:
        assert leftovers.remove(leftover)
    await until(lambda: topics(kafka_brokers, prefix) == {"websocket-127-0-0-1-8001", "netty-ack-127-0-0-1-8001"})
    assert leftovers.find([HERE]) == []
    assert leftovers.remove(found[0])  # it is gone already


async def test_a_topic_in_which_records_wait_stays(kafka_brokers: str, prefix: str) -> None:
    """Those behind the node's last commit; all of them, when it has never committed."""
    wanted = replace(settings(kafka_brokers, prefix), partitions=3)
    await lived(wanted, THERE, records=7, taken=5)
    await lived(wanted, HERE, records=3)
    leftovers = Leftovers(wanted)
    found = {one.topic.removeprefix(prefix): one for one in leftovers.find([])}
    assert {name: one.waiting for name, one in found.items()} == {
        MESSAGES: 2,
        ACKS: 0,
        "websocket-127-0-0-1-8001": 3,
        "netty-ack-127-0-0-1-8001": 0,
    }
    assert not leftovers.remove(found[MESSAGES]._replace(waiting=0))
    assert MESSAGES in topics(kafka_brokers, prefix)


async def test_topics_that_are_none_of_ours_are_not_looked_at(kafka_brokers: str, prefix: str) -> None:
    """Of others who like our prefix, and those that no prefix of ours begins."""
    names = ["websocket-orders", "websocket-orders-v2", "websocket--1", "websocket-a_b-1", "websocket-", "other-a-1"]
    make_topics(kafka_brokers, *(prefix + name for name in names))
    assert Leftovers(settings(kafka_brokers, prefix)).find([]) == []


async def test_a_prefix_may_begin_as_the_other_does(kafka_brokers: str, prefix: str) -> None:
    """The acks of a live node are not taken for the messages of a dead one."""
    wanted = settings(kafka_brokers, prefix, topic_prefix=f"{prefix}n-", ack_topic_prefix=f"{prefix}n-ack-")
    await lived(wanted, HERE)
    await lived(wanted, THERE)
    found = Leftovers(wanted).find([HERE])
    assert [(one.topic.removeprefix(prefix), one.slug) for one in found] == [
        ("n-127-0-0-1-8002", "127-0-0-1-8002"),
        ("n-ack-127-0-0-1-8002", "127-0-0-1-8002"),
    ]


async def test_without_a_broker_that_is_said(prefix: str) -> None:
    with pytest.raises(BusUnavailable, match=r"127\.0\.0\.1:1: .*kafka\.brokers"):
        Leftovers(settings("127.0.0.1:1", prefix)).find([])


async def test_a_wrong_password_is_a_wrong_setting(kafka_broker: KafkaBroker, prefix: str) -> None:
    librdkafka = GUEST | {"sasl.password": "guessed"}
    with pytest.raises(ConfigError, match="Invalid username or password"):
        Leftovers(settings(kafka_broker.sasl_brokers, prefix, librdkafka=librdkafka)).find([])


async def test_who_may_not_remove_topics_is_told(kafka_broker: KafkaBroker, prefix: str) -> None:
    wanted = settings(kafka_broker.brokers, prefix)
    await lived(wanted, THERE)

    def may(what: Any, operation: Any) -> Any:
        rights = (ResourcePatternType.PREFIXED, "User:guest", "*", operation, AclPermissionType.ALLOW)
        return AclBinding(what, prefix, *rights)

    admin = AdminClient({"bootstrap.servers": kafka_broker.brokers})
    rights = [may(ResourceType.TOPIC, AclOperation.READ), may(ResourceType.GROUP, AclOperation.READ)]
    for given in admin.create_acls(rights).values():
        given.result()
    leftovers = Leftovers(settings(kafka_broker.sasl_brokers, prefix, librdkafka=GUEST))
    found = leftovers.find([])
    assert len(found) == 2
    with pytest.raises(NotAllowed, match=f"remove {found[0].topic}"):
        leftovers.remove(found[0])


async def test_a_broker_that_has_just_started_is_waited_for(kafka_broker: KafkaBroker, prefix: str) -> None:
    """It does not know the groups' commits at once, and what it does not know is not taken for nothing."""
    wanted = settings(kafka_broker.brokers, prefix)
    await lived(wanted, THERE, records=4, taken=3)
    kafka_broker.kill()
    kafka_broker.start()
    assert [one.waiting for one in Leftovers(wanted).find([])] == [0, 1]
