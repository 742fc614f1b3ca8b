"""What is peculiar to the bus on Kafka: its topics, settings and errors, and a broker that comes and goes."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, NewPartitions, ResourceType
from msgspec.structs import replace

from tests.contracts.examples import BOB, HERE, THERE, message
from tests.services import KafkaBroker
from yanchat.backends.kafka import heard, outgoing
from yanchat.backends.kafka.bus import KafkaBus, open_bus
from yanchat.config import KafkaSettings
from yanchat.errors import BusUnavailable, ConfigError, YanchatError
from yanchat.model import Node, SessionId
from yanchat.ports import Batch
from yanchat.protocol.records import Pull, Push, Record
from yanchat.telemetry import Counters

PATIENCE = 60.0
GUEST: dict[str, str | int | float | bool] = {
    "security.protocol": "SASL_PLAINTEXT",
    "sasl.mechanism": "PLAIN",
    "sasl.username": "guest",
    "sasl.password": "no secret",
}


def settings(brokers: str, prefix: str, **more: Any) -> KafkaSettings:
    return replace(
        KafkaSettings(
            brokers=tuple(brokers.split(",")),
            topic_prefix=f"{prefix}websocket-",
            ack_topic_prefix=f"{prefix}netty-ack-",
            group_prefix=f"{prefix}group",
        ),
        **more,
    )


@asynccontextmanager
async def opened(settings: KafkaSettings, node: Node = HERE) -> AsyncIterator[KafkaBus]:
    """A bus; what goes wrong comes out bare."""
    error: BaseException | None = None
    try:
        async with open_bus(settings, node, 1 << 16, Counters()) as bus:
            yield bus
    except* YanchatError as group:
        error = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
    if error is not None:  # raised in there it would be a group again, before Python 3.11.4
        raise error from None


def pull(number: int) -> Pull:
    return Pull(HERE, BOB, SessionId(f"s{number}"))


async def take(batches: AsyncIterator[Batch], number: int) -> list[Record]:
    found: list[Record] = []
    with trio.fail_after(PATIENCE):
        while len(found) < number:
            batch = await anext(batches)
            found += batch.records
            await batch.commit()
    return found


async def until(true: Callable[[], bool]) -> None:
    with trio.fail_after(PATIENCE):
        while not true():
            await trio.sleep(0.02)


# -- topics ------------------------------------------------------------------------------------------------------------
async def test_a_record_is_what_a_console_consumer_expects(kafka_brokers: str, prefix: str) -> None:
    """Topic, key, headers and JSON are the protocol's, and any Kafka tool reads them."""
    (envelope,) = message(1)
    async with opened(settings(kafka_brokers, prefix)) as bus, bus.subscribe("message"):
        bus.incarnation = "i1"
        bus.publish(HERE, [Push(THERE, envelope, (SessionId("s1"), SessionId("s2")), "first", False)])
        with trio.fail_after(PATIENCE):
            await bus.flush()
    reader = Consumer({"bootstrap.servers": kafka_brokers, "group.id": prefix})
    reader.assign([TopicPartition(f"{prefix}websocket-127-0-0-1-8001", 0, 0)])
    found = reader.poll(PATIENCE)
    reader.close()
    assert found is not None
    assert found.key() == b"bob"
    headers: Any = found.headers()
    assert dict(headers) == {
        "kind": b"message",
        "origin": THERE.encode(),
        "incarnation": b"i1",
        "sessions": b"s1,s2",
        "cause": b"first",
    }
    assert json.loads(found.value() or b"")["msg"]["params"]["message"] == "hello"


async def test_topics_are_made_as_the_settings_say(kafka_brokers: str, prefix: str) -> None:
    """Both topics of a node, with partitions, retention and min.insync.replicas."""
    wanted = settings(kafka_brokers, prefix, partitions=3, retention=86400.0, min_insync_replicas=1)
    async with opened(wanted) as bus, bus.subscribe("message"), bus.subscribe("ack"):
        pass
    admin = AdminClient({"bootstrap.servers": kafka_brokers})
    topics = admin.list_topics(timeout=10).topics
    for name in (f"{prefix}websocket-127-0-0-1-8001", f"{prefix}netty-ack-127-0-0-1-8001"):
        assert len(topics[name].partitions) == 3
        resource = ConfigResource(ResourceType.TOPIC, name)
        config = admin.describe_configs([resource])[resource].result()
        assert config["retention.ms"].value == "86400000"
        assert config["min.insync.replicas"].value == "1"
        assert config["cleanup.policy"].value == "delete"


async def test_records_of_one_user_keep_their_order_over_several_partitions(kafka_brokers: str, prefix: str) -> None:
    """The key is the user, so his records share a partition; the commit covers all of them."""
    wanted = settings(kafka_brokers, prefix, partitions=3)
    records = [replace(pull(number), openid=f"u{number % 7}") for number in range(500)]
    async with opened(wanted) as bus:
        async with bus.subscribe("message") as batches:
            bus.publish(HERE, records)
            found = await take(batches, 500)
        async with bus.subscribe("message") as batches:
            assert (await anext(batches)).caught_up
    for user in {record.openid for record in records}:
        assert [one for one in found if isinstance(one, Pull) and one.openid == user] == [
            one for one in records if one.openid == user
        ]


async def test_partitions_that_are_added_are_read(
    kafka_brokers: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a start: whoever publishes spreads users over them as soon as he learns of them."""
    monkeypatch.setattr(heard, "STATISTICS_MS", 100)
    wanted = settings(kafka_brokers, prefix, librdkafka={"topic.metadata.refresh.interval.ms": 200})
    users = [replace(pull(number), openid=f"u{number}") for number in range(50)]
    async with opened(wanted) as bus, bus.subscribe("message") as batches:
        bus.publish(HERE, users)
        assert await take(batches, 50) == users
        admin = AdminClient({"bootstrap.servers": kafka_brokers})
        topic = f"{prefix}websocket-127-0-0-1-8001"
        for added in admin.create_partitions([NewPartitions(topic, 4)]).values():
            added.result()
        async with opened(wanted, THERE) as other:  # it has never known the topic otherwise
            other.publish(HERE, users)
            with trio.fail_after(PATIENCE):
                await other.flush()
        assert {*await take(batches, 50)} == {*users}
        async with bus.subscribe("ack"):
            pass
    async with opened(wanted) as bus, bus.subscribe("message") as batches:
        assert (await anext(batches)).caught_up  # all of them were committed


async def test_what_is_for_a_node_without_topics_is_nobodys(
    kafka_brokers: str, prefix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A node that is gone for good: its acks must not be published again for ever."""
    wanted = settings(kafka_brokers, prefix, librdkafka={"topic.metadata.propagation.max.ms": 100})
    answers: list[bool] = []
    counters = Counters()
    async with open_bus(wanted, HERE, 1 << 16, counters) as bus, bus.subscribe("message") as batches:
        bus.publish(Node("gone:1"), [pull(1)], answers.append)
        await until(lambda: answers == [True])
        bus.publish(HERE, [pull(2)])
        assert await take(batches, 1) == [pull(2)]
    assert counters.bus_failed == 0
    assert "bus.no_topic" in capsys.readouterr().out


async def test_a_topic_that_is_deleted_is_made_again(kafka_brokers: str, prefix: str) -> None:
    """Whoever removes a live node's topic costs it what was in there, no more."""
    wanted = settings(kafka_brokers, prefix, librdkafka={"topic.metadata.propagation.max.ms": 1000})
    async with opened(wanted) as bus, bus.subscribe("message") as batches:
        bus.publish(HERE, [pull(1)])
        assert await take(batches, 1) == [pull(1)]
        admin = AdminClient({"bootstrap.servers": kafka_brokers})
        for deleted in admin.delete_topics([f"{prefix}websocket-127-0-0-1-8001"]).values():
            deleted.result()
        with trio.fail_after(PATIENCE):
            while True:
                bus.publish(HERE, [pull(2)])
                with trio.move_on_after(1):
                    assert pull(2) in (await anext(batches)).records
                    break


async def test_anybody_may_read_what_is_left_for_a_node(kafka_brokers: str, prefix: str) -> None:
    """From its last commit to the end, whole and in order, without taking anything from it."""
    wanted = settings(kafka_brokers, prefix, librdkafka={"enable.partition.eof": True})
    async with opened(wanted, THERE) as there:
        async with there.subscribe("message") as batches:
            there.publish(THERE, [pull(1), pull(2)])
            await take(batches, 2)
        async with opened(wanted) as here:
            assert await here.read(THERE, "message") == []
            here.publish(THERE, [pull(number) for number in range(1200)])
            with trio.fail_after(PATIENCE):
                await here.flush()
            for _ in range(2):
                assert await here.read(THERE, "message") == [pull(number) for number in range(1200)]
            assert await here.read(Node("nobody:1"), "message") == []
        async with there.subscribe("message") as batches:
            assert await take(batches, 1200) == [pull(number) for number in range(1200)]


async def test_what_is_left_cannot_be_told_without_the_broker(prefix: str) -> None:
    with pytest.raises(BusUnavailable, match="cannot be read"):
        async with opened(settings("127.0.0.1:1", prefix)) as bus:
            await bus.read(THERE, "ack")


# -- what others write -------------------------------------------------------------------------------------------------
async def test_what_cannot_be_read_is_ignored_and_counted(kafka_brokers: str, prefix: str) -> None:
    """A record of a later version, or of nobody we know, holds up nothing."""
    counters = Counters()
    writer = Producer({"bootstrap.servers": kafka_brokers})
    topic = f"{prefix}websocket-127-0-0-1-8001"
    async with open_bus(settings(kafka_brokers, prefix), HERE, 1 << 16, counters) as bus:
        async with bus.subscribe("message") as batches:
            writer.produce(topic, b"{}", headers={"kind": "hologram", "origin": "x", "incarnation": "y"})
            writer.produce(topic, b"not JSON", headers={"kind": "pull", "origin": "x", "incarnation": "y"})
            writer.produce(topic, None, headers=[("kind", b"\xff")])
            writer.produce(topic, b"no headers at all")
            assert writer.flush(PATIENCE) == 0
            bus.publish(HERE, [pull(1)])
            assert await take(batches, 1) == [pull(1)]
        async with bus.subscribe("message") as batches:
            assert (await anext(batches)).caught_up
    assert counters.bus_unreadable == 4


# -- settings ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "key",
    ["acks", "enable.idempotence", "enable.auto.commit", "auto.offset.reset", "group.id", "bootstrap.servers"],
)
async def test_what_carries_our_promises_cannot_be_set(key: str) -> None:
    """It is refused by name, with the reason."""
    with pytest.raises(ConfigError, match=rf"{key} cannot be set: \w+"):
        async with opened(KafkaSettings(librdkafka={key: "1"})):
            pass


@pytest.mark.parametrize(
    ("librdkafka", "reason"),
    [
        ({"linger": 5}, '"linger"'),
        ({"socket.timeout.ms": "soon"}, "socket.timeout.ms"),
        ({"max.in.flight": 0}, "max.in.flight"),
        ({"security.protocol": "SSL", "ssl.ca.location": "/nowhere.pem"}, "ssl.ca.location"),
    ],
)
async def test_a_setting_that_librdkafka_refuses_is_named(librdkafka: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        async with opened(KafkaSettings(librdkafka=librdkafka)):
            pass


async def test_other_settings_pass_through(kafka_brokers: str, prefix: str) -> None:
    """And none of the producer's disturbs the consumer, or the other way round."""
    wanted = {"linger.ms": 1, "compression.type": "gzip", "fetch.wait.max.ms": "100", "socket.keepalive.enable": False}
    passed = settings(kafka_brokers, prefix, librdkafka=wanted)
    async with opened(passed) as bus, bus.subscribe("message") as batches:
        bus.publish(HERE, [pull(1)])
        assert await take(batches, 1) == [pull(1)]


async def subscribed(wanted: KafkaSettings) -> None:
    with trio.fail_after(PATIENCE):
        async with opened(wanted) as bus, bus.subscribe("message"):
            pass


async def test_a_wrong_password_is_a_wrong_setting(kafka_broker: KafkaBroker, prefix: str) -> None:
    librdkafka = GUEST | {"sasl.password": "guessed"}
    with pytest.raises(ConfigError, match="Invalid username or password"):
        await subscribed(settings(kafka_broker.sasl_brokers, prefix, librdkafka=librdkafka))


async def test_a_user_who_may_not_make_topics_is_told_which(kafka_broker: KafkaBroker, prefix: str) -> None:
    with pytest.raises(ConfigError, match=f"{prefix}websocket-127-0-0-1-8001.*authorization"):
        await subscribed(settings(kafka_broker.sasl_brokers, prefix, librdkafka=GUEST))


async def test_a_topic_that_the_broker_refuses_is_a_wrong_setting(kafka_brokers: str, prefix: str) -> None:
    long = "x" * 250
    with pytest.raises(ConfigError, match=long):
        await subscribed(settings(kafka_brokers, prefix, topic_prefix=long))


async def test_too_few_brokers_are_waited_for(
    kafka_brokers: str, prefix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others may be on their way; the log says what is missing."""
    with trio.move_on_after(2) as scope:
        async with opened(settings(kafka_brokers, prefix, replication_factor=3)) as bus, bus.subscribe("message"):
            pass
    assert scope.cancelled_caught
    assert "replication factor" in capsys.readouterr().out


# -- a broker that comes and goes --------------------------------------------------------------------------------------
async def test_a_broker_that_is_away_at_the_start_is_waited_for(kafka_broker: KafkaBroker, prefix: str) -> None:
    kafka_broker.kill()
    async with opened(settings(kafka_broker.brokers, prefix)) as bus, trio.open_nursery() as nursery:
        ready = trio.Event()

        async def subscribe() -> None:
            async with bus.subscribe("message") as batches:
                ready.set()
                assert await take(batches, 1) == [pull(1)]

        bus.publish(HERE, [pull(1)])
        nursery.start_soon(subscribe)
        with trio.move_on_after(1):
            await ready.wait()
        assert not ready.is_set()
        kafka_broker.start(wait=False)
        with trio.fail_after(PATIENCE):
            await ready.wait()


async def test_nothing_is_lost_over_a_crash_of_the_broker(kafka_broker: KafkaBroker, prefix: str) -> None:
    """Publishing goes on while it is away and never blocks; every call is answered once. Some may come twice."""
    answers: list[tuple[int, bool]] = []
    async with opened(settings(kafka_broker.brokers, prefix)) as bus, bus.subscribe("message") as batches:
        publish = lambda number: bus.publish(  # noqa: E731
            HERE, [pull(number)], lambda ok, number=number: answers.append((number, ok))
        )
        for number in range(100):
            publish(number)
        assert len(await take(batches, 100)) == 100
        for number in range(100, 200):
            publish(number)
        kafka_broker.kill()
        for number in range(200, 300):
            publish(number)
            await trio.lowlevel.checkpoint()
        async with trio.open_nursery() as nursery:
            kafka_broker.start(wait=False)
            nursery.start_soon(trio.to_thread.run_sync, kafka_broker.wait)
            wanted = {pull(number) for number in range(100, 300)}
            found: set[Record] = set()
            while not found >= wanted:
                found.update(await take(batches, 1))
        assert found == wanted
        with trio.fail_after(PATIENCE):
            await bus.flush()
        assert answers == [(number, True) for number in range(300)]


async def test_everybody_who_flushes_is_answered(kafka_brokers: str, prefix: str) -> None:
    """Two at the same time, too."""
    async with opened(settings(kafka_brokers, prefix)) as bus, bus.subscribe("message"):
        bus.publish(HERE, [pull(1)])
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(bus.flush)
                nursery.start_soon(bus.flush)


async def test_the_queue_is_bounded_while_the_broker_is_away(kafka_broker: KafkaBroker, prefix: str) -> None:
    """What does not fit is said to be not stored, at once; what fits goes out when the broker is back."""
    answers: list[bool] = []
    wanted = settings(kafka_broker.brokers, prefix, librdkafka={"queue.buffering.max.messages": 1000})
    async with opened(wanted) as bus, bus.subscribe("message") as batches:
        kafka_broker.pause()
        try:
            for number in range(1500):
                bus.publish(HERE, [pull(number)], answers.append)
            await until(lambda: len(answers) == 500)
            assert not any(answers)
        finally:
            kafka_broker.resume()
        assert await take(batches, 1000) == [pull(number) for number in range(1000)]
        await until(lambda: len(answers) == 1500)
        assert sum(answers) == 1000


async def test_after_the_message_timeout_a_record_counts_as_lost_and_others_go_on(
    kafka_broker: KafkaBroker, prefix: str
) -> None:
    """As when Kafka is away for longer: the outbox sends it again."""
    answers: list[bool] = []
    wanted = settings(kafka_broker.brokers, prefix, librdkafka={"message.timeout.ms": 1000})
    async with opened(wanted) as bus, bus.subscribe("message") as batches:
        kafka_broker.pause()
        try:
            bus.publish(HERE, [pull(1), pull(2)], answers.append)
            await until(lambda: answers == [False])
        finally:
            kafka_broker.resume()
        while not (answers and answers[-1]):
            bus.publish(HERE, [pull(3)], answers.append)
            told = len(answers)
            await until(lambda: len(answers) > told)  # noqa: B023 - awaited here
        with trio.fail_after(PATIENCE):
            while pull(3) not in (await anext(batches)).records:
                pass


async def test_brokers_that_say_nothing_are_counted_long_before_a_record_is_given_up(
    kafka_broker: KafkaBroker, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So somebody is woken while it lasts; the record is stored all the same when they are back."""
    monkeypatch.setattr(outgoing, "SILENT_AFTER", 0.5)
    answers: list[bool] = []
    counters = Counters()
    wanted = settings(kafka_broker.brokers, prefix)
    async with open_bus(wanted, HERE, 1 << 16, counters) as bus, bus.subscribe("message"):
        kafka_broker.pause()
        try:
            bus.publish(HERE, [pull(1)], answers.append)
            await until(lambda: counters.bus_failed >= 2)
            assert not answers
        finally:
            kafka_broker.resume()
        await until(lambda: answers == [True])


@pytest.mark.parametrize("lost", ["it hangs", "it is gone"])
async def test_brokers_that_say_nothing_are_noticed_when_nobody_has_anything_to_say(
    kafka_broker: KafkaBroker, prefix: str, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """A consumer alone notices it; and while they answer, a topic in which nothing comes is not silent."""
    monkeypatch.setattr(heard, "STATISTICS_MS", 200)
    wanted = settings(kafka_broker.brokers, prefix)
    async with opened(wanted) as bus, bus.subscribe("message"), bus.subscribe("ack"):
        born = trio.current_time()
        await until(lambda: trio.current_time() - born > 2.5 and bus.silent() < 2)
        (kafka_broker.pause if lost == "it hangs" else kafka_broker.kill)()
        try:
            await until(lambda: bus.silent() > 3)
        finally:
            if lost == "it hangs":
                kafka_broker.resume()
            else:
                await trio.to_thread.run_sync(kafka_broker.start)
        await until(lambda: bus.silent() < 2)


async def test_a_loop_that_takes_nothing_is_not_taken_for_a_silent_broker(kafka_brokers: str, prefix: str) -> None:
    """Its thread does not listen then, and what it has not heard meanwhile is nobody's fault."""
    silence = heard.Heard("t")
    silence.not_listened(-100.0)
    assert silence.age >= 100.0
    async with opened(settings(kafka_brokers, prefix)) as bus, bus.subscribe("message") as batches:
        published = 0
        while bus.silent():
            bus.publish(HERE, [pull(1)])
            published += 1
            with trio.fail_after(PATIENCE):
                await bus.flush()
        await take(batches, published)
        await until(lambda: bus.silent() > 0)


async def test_who_may_not_write_is_told_so_and_writes_once_he_may(
    kafka_broker: KafkaBroker, prefix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A node that has clients goes on: what it could not publish is published again when it is due."""
    from confluent_kafka.admin import AclBinding, AclOperation, AclPermissionType, ResourcePatternType

    admin = AdminClient({"bootstrap.servers": kafka_broker.brokers})

    def allow(what: Any, operation: Any) -> None:
        rule = AclBinding(
            what, prefix, ResourcePatternType.PREFIXED, "User:guest", "*", operation, AclPermissionType.ALLOW
        )
        for given in admin.create_acls([rule]).values():
            given.result()

    allow(ResourceType.TOPIC, AclOperation.CREATE)
    allow(ResourceType.TOPIC, AclOperation.READ)
    allow(ResourceType.GROUP, AclOperation.READ)
    answers: list[bool] = []
    wanted = settings(kafka_broker.sasl_brokers, prefix, librdkafka=GUEST)
    async with opened(wanted) as bus, bus.subscribe("message") as batches:
        bus.publish(HERE, [pull(1)], answers.append)
        await until(lambda: answers == [False])
        assert "Topic authorization failed" in capsys.readouterr().out
        allow(ResourceType.TOPIC, AclOperation.WRITE)
        while answers[-1] is False:  # the broker may learn of it a moment later
            bus.publish(HERE, [pull(2)], answers.append)
            with trio.fail_after(PATIENCE):
                await bus.flush()
        assert await take(batches, 1) == [pull(2)]


async def test_a_broker_that_stands_still_costs_no_processor_time(kafka_broker: KafkaBroker, prefix: str) -> None:
    """However much is under way: an idempotent producer would look again and again whether it may send the next."""
    async with opened(settings(kafka_broker.brokers, prefix)) as bus, bus.subscribe("message") as batches:
        bus.publish(HERE, [pull(0)])
        assert await take(batches, 1) == [pull(0)]
        kafka_broker.pause()
        try:
            for number in range(1, 50):
                bus.publish(HERE, [pull(number)])
                await trio.sleep(0.01)
            began, spent = time.monotonic(), time.process_time()
            await trio.sleep(2)
            share = (time.process_time() - spent) / (time.monotonic() - began)
        finally:
            kafka_broker.resume()
        assert await take(batches, 49) == [pull(number) for number in range(1, 50)]
    assert share < 0.3  # of one processor


async def test_a_long_text_fits_into_a_record(kafka_brokers: str, prefix: str) -> None:
    """The topics take what limits.message_size allows, however its characters are written in JSON."""
    (envelope,) = message(1, text="\0" * (1 << 20))
    push = Push(HERE, envelope, (SessionId("s1"),), "first", False)
    wanted = settings(kafka_brokers, prefix)
    async with open_bus(wanted, HERE, 1 << 20, Counters()) as bus, bus.subscribe("message") as batches:
        bus.publish(HERE, [push])
        assert await take(batches, 1) == [push]


async def test_the_threads_of_the_bus_are_known_by_name(kafka_brokers: str, prefix: str) -> None:
    """A watchdog that stops says which of them is stuck: the producer's, and one for each topic."""
    async with opened(settings(kafka_brokers, prefix)) as bus, bus.subscribe("message"), bus.subscribe("ack"):
        producer, *topics = sorted(bus.lanes(), key=lambda name: prefix in name)
    assert producer == "kafka-producer"
    assert len(topics) == 2
    assert all(name.startswith(f"kafka {prefix}") for name in topics)
