"""Redis and Kafka: whether they answer, and whether they are set up so that what we promise can hold."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Final

from yanchat.cli.checks import Finding, failure, ok, warning
from yanchat.cli.checks.machine import numbers, size
from yanchat.cli.render import span
from yanchat.errors import YanchatError

if TYPE_CHECKING:
    from yanchat.backends.kafka.health import TopicHealth
    from yanchat.backends.redis.health import RedisHealth
    from yanchat.config import KafkaSettings, Settings

OLDEST_REDIS: Final = "5.0"
"""Before it a script that has asked for the time may not write."""
SUPPORTED_REDIS: Final = "6.2"
NEARLY: Final = 0.8
SKEW_WARN, SKEW_FAIL = 1.0, 5.0
"""Seconds; machines that keep their time by NTP are a few milliseconds apart."""


# -- Redis -------------------------------------------------------------------------------------------------------------
def look_at_redis(settings: Settings) -> list[Finding]:
    """Blocks for some seconds at most."""
    from yanchat.backends.redis.health import look_at_redis as look

    try:
        servers, refusal = look(settings.redis)
    except YanchatError as error:
        return [failure("redis.reachable", str(error), "start it, or correct [redis]")]
    found = [finding for server in servers for finding in _judge_redis(server)]
    if refusal is not None:
        fix = "see its log; a replica, a full memory or disk, or a user without rights takes nothing"
        return [failure("redis.reachable", f"it answers, but nothing can be written: {refusal}", fix), *found]
    return [ok("redis.reachable", "it answers, and takes what is written"), *found]


def _judge_redis(server: RedisHealth) -> Iterator[Finding]:
    of = f"{server.server}: " if server.server else ""
    if numbers(server.version) < numbers(OLDEST_REDIS):
        yield failure("redis.version", f"{of}Redis {server.version} is too old for our scripts", "run 6.2 or later")
    elif numbers(server.version) < numbers(SUPPORTED_REDIS):
        yield warning("redis.version", f"{of}Redis {server.version} is no longer maintained", "run 6.2 or later")
    else:
        yield ok("redis.version", f"{of}Redis {server.version}")
    if server.policy != "noeviction":
        yield failure(
            "redis.eviction",
            f"{of}maxmemory-policy is {server.policy}: Redis may forget where users are, and who waits for them",
            "CONFIG SET maxmemory-policy noeviction, and the same in redis.conf",
        )
    else:
        yield ok("redis.eviction", f"{of}maxmemory-policy is noeviction")
    if server.most and server.used > NEARLY * server.most:
        yield warning(
            "redis.memory",
            f"{of}{size(server.used)} of {size(server.most)} are used; when it is full, nobody can log in",
            "raise maxmemory",
        )
    if not server.saved:
        yield warning(
            "redis.persistence",
            f"{of}its last attempt to save has failed; by default it then takes nothing more",
            "make room on its disk; yanchat needs nothing saved: nodes write again what Redis forgets",
        )
    yield skew("clock.redis", f"{of}Redis", server.ahead - server.within, server.ahead + server.within)


def skew(check: str, who: str, least: float, most: float) -> Finding:
    """How far a clock is ahead of ours: between `least` and `most` seconds."""
    sure = max(least, -most, 0.0)
    detail = f"the clock of {who} is {span(sure)} {'ahead of' if least > 0 else 'behind'} this machine's"
    fix = "keep both by NTP (timedatectl set-ntp true): tokens end, and messages expire, by these clocks"
    if sure >= SKEW_FAIL:
        return failure(check, detail, fix)
    if sure >= SKEW_WARN:
        return warning(check, detail, fix)
    return ok(check, f"the clock of {who} agrees with this machine's")


# -- Kafka -------------------------------------------------------------------------------------------------------------
def look_at_kafka(settings: Settings, nodes: Collection[str]) -> list[Finding]:
    """The brokers and the topics of these nodes. Blocks for some seconds at most."""
    from yanchat.backends.kafka.health import look_at_kafka as look
    from yanchat.backends.kafka.topics import largest_record

    kafka = settings.kafka
    try:
        it = look(kafka, nodes)
    except YanchatError as error:
        return [failure("kafka.reachable", str(error), "start it, or correct [kafka]")]
    brokers = f"{it.brokers} broker{'s' * (it.brokers != 1)}"
    found = [ok("kafka.reachable", f"{brokers}, {len(it.topics)} topics of our nodes")]
    if it.unknown:
        found.append(
            warning("kafka.topics", f"the settings of {_some(it.unknown)} may not be seen", "allow DESCRIBE_CONFIGS")
        )
    found.append(_replication(kafka, it.brokers, it.topics))
    found.append(_in_sync(kafka, it.topics))
    least = kafka.retention
    short = [one for one in it.topics if one.retention < least]
    found.append(
        _fewer("kafka.retention", short, f"keep records shorter than {span(least)} (kafka.retention)", "retention.ms")
        or ok("kafka.retention", f"at least {span(min((one.retention for one in it.topics), default=least))}")
    )
    largest = largest_record(settings.limits.message_size)
    small = [one for one in it.topics if one.largest < largest]
    found.append(
        _fewer(
            "kafka.message_size",
            small,
            f"refuse records of {largest} bytes, which a message of limits.message_size may take",
            "max.message.bytes",
        )
        or ok("kafka.message_size", f"records of {size(largest)} are taken")
    )
    return found


def _replication(kafka: KafkaSettings, brokers: int, topics: Collection[TopicHealth]) -> Finding:
    wanted = kafka.replication_factor
    few = [one for one in topics if one.replicas < wanted]
    if few:
        return failure(
            "kafka.replication",
            f"{_some([one.topic for one in few])}: a record is on {min(one.replicas for one in few)} broker(s), not on"
            f" {wanted} (kafka.replication_factor)",
            "kafka-reassign-partitions.sh; or stop the node, delete its topics and start it: outboxes have everything",
        )
    if wanted > brokers:
        detail = f"kafka.replication_factor is {wanted}, and there are fewer brokers: {brokers}"
        return failure("kafka.replication", detail, "start more, or lower it: else no node can make its topics")
    least = min((one.replicas for one in topics), default=wanted)
    if least == 1 and not wanted:
        more = "" if brokers > 1 else ", and there is one broker"
        return warning(
            "kafka.replication",
            f"each record is on one broker{more}: when it fails, messages wait until it is back",
            "run three brokers, with default.replication.factor=3 or kafka.replication_factor = 3",
        )
    return ok("kafka.replication", f"each record is on {least} broker(s)" if topics else "there are no topics yet")


def _in_sync(kafka: KafkaSettings, topics: Collection[TopicHealth]) -> Finding:
    check, wanted = "kafka.in_sync", kafka.min_insync_replicas
    if lost := [one for one in topics if one.in_sync < one.min_in_sync]:
        detail = f"{_some([one.topic for one in lost])}: fewer replicas are in sync than min.insync.replicas asks for"
        return failure(check, f"{detail}, so nothing is taken", "bring the brokers that are down back")
    few = [one for one in topics if one.min_in_sync < wanted]
    text = f"count a record as stored on fewer than {wanted} brokers (kafka.min_insync_replicas)"
    if finding := _fewer(check, few, text, "min.insync.replicas"):
        return finding
    if behind := [one for one in topics if one.in_sync < one.replicas]:
        detail = f"{_some([one.topic for one in behind])}: not all replicas are in sync"
        return warning(check, detail, "look at the brokers that are down or behind")
    return ok(check, "all replicas are in sync" if topics else "there are no topics yet")


def _fewer(check: str, topics: Collection[TopicHealth], text: str, key: str) -> Finding | None:
    if not topics:
        return None
    first = next(iter(topics)).topic
    fix = f"kafka-configs.sh --alter --topic {first} --add-config {key}=…, and the same for each of them"
    return failure(check, f"{_some([one.topic for one in topics])} {text}", fix)


def _some(names: Collection[str]) -> str:
    first = next(iter(names))
    return first if len(names) == 1 else f"{first} and {len(names) - 1} more"
