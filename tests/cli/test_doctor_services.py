"""`yanchat doctor` with a real Redis and a real Kafka, each set up wrongly on purpose."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType
from confluent_kafka.cimpl import NewTopic

from tests.running import RunningNode, call, environment, wait_until
from tests.services import KafkaBroker, Missing, RedisServer, wrong_clock
from tests.system.test_cluster import settings
from yanchat.backends.redis.health import RedisHealth
from yanchat.cli.checks import services

NOBODY = "127.0.0.1:1"
"""Where no service is."""
WELL = RedisHealth("", "7.0.15", "noeviction", 1, 0, True, 0.0, 0.001)


@pytest.fixture
def file(tmp_path: Path, prefix: str, redis_url: str, kafka_brokers: str) -> Path:
    """The settings of a cluster of this test's own."""
    return settings(tmp_path, prefix, redis_url, kafka_brokers)


@pytest.fixture
def server(redis_url: str) -> Iterator[redis.Redis]:
    """Redis as redis-cli sees it; its settings are put back."""
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        before: Any = client.config_get("maxmemory*")
        yield client
        for key in ("maxmemory", "maxmemory-policy"):
            client.config_set(key, before[key])


def examine(file: Path, *arguments: str, **env: str) -> dict[str, dict[str, str]]:
    """The first finding of each check, and the exit code under its name."""
    done = call("doctor", "--json", "--config", file, *arguments, state=file.parent / "state", env=env)
    assert done.returncode in {0, 10}, done.stderr
    found = {one["check"]: one for one in reversed(json.loads(done.stdout))}
    assert done.returncode == (10 if any(one["status"] == "fail" for one in found.values()) else 0)
    return found


def worse(found: dict[str, dict[str, str]]) -> set[str]:
    """The checks of services that did not go well."""
    return {
        name for name, one in found.items() if one["status"] != "ok" and name.startswith(("redis", "kafka", "clock"))
    }


def test_services_that_are_well(file: Path) -> None:
    """But for one broker alone, which is no failure and worth knowing."""
    with RunningNode(file.parent / "state", "--config", str(file)):
        found = examine(file)
    assert worse(found) == {"kafka.replication"}
    assert found["kafka.replication"]["status"] == "warn"
    assert [name for name in found if name.startswith(("redis", "kafka", "clock"))] == [
        "clock.nodes",
        "kafka.message_size",
        "kafka.retention",
        "kafka.in_sync",
        "kafka.replication",
        "kafka.reachable",
        "clock.redis",
        "redis.eviction",
        "redis.version",
        "redis.reachable",
    ]
    assert "2 topics of our nodes" in found["kafka.reachable"]["detail"]


# -- Redis -------------------------------------------------------------------------------------------------------------
def test_services_that_are_not_there(file: Path) -> None:
    """Each is named with what to look at; whatever else can be looked at still is."""
    found = examine(file, "--redis", f"redis://{NOBODY}/0", "--kafka", NOBODY)
    assert NOBODY in found["redis.reachable"]["detail"]
    assert NOBODY in found["kafka.reachable"]["detail"]
    assert (found["redis.reachable"]["status"], found["kafka.reachable"]["status"]) == ("fail", "fail")
    assert "disk.space" in found


def test_a_redis_that_may_forget(file: Path, server: redis.Redis) -> None:
    """Any eviction policy, whether its memory is bounded by now or not."""
    server.config_set("maxmemory-policy", "allkeys-lru")
    found = examine(file)["redis.eviction"]
    assert (found["status"], "allkeys-lru" in found["detail"]) == ("fail", True)
    assert "CONFIG SET maxmemory-policy noeviction" in found["fix"]


def test_a_redis_whose_memory_ends(file: Path, server: redis.Redis) -> None:
    """Nearly full it is warned of; full, nothing can be written."""
    used: Any = server.info("memory")
    server.config_set("maxmemory", int(used["used_memory"] * 1.1))
    assert examine(file)["redis.memory"]["status"] == "warn"
    server.config_set("maxmemory", 1 << 20 if used["used_memory"] > 1 << 20 else used["used_memory"] // 2)
    assert "nothing can be written" in examine(file)["redis.reachable"]["detail"]


def test_a_redis_that_is_a_replica(file: Path, tmp_path: Path, redis_server: RedisServer) -> None:
    """It answers, and takes nothing."""
    replica = RedisServer(tmp_path / "replica", more={"replicaof": f"127.0.0.1 {redis_server.port}"})
    replica.start()
    try:
        found = examine(file, "--redis", replica.url)["redis.reachable"]
        assert found["status"] == "fail"
        assert "nothing can be written" in found["detail"]
    finally:
        replica.stop()


def test_a_redis_that_cannot_save(file: Path, tmp_path: Path) -> None:
    """A person sees why it refuses what is written."""
    more = {"save": "3600 1", "dbfilename": "there.rdb"}
    server = RedisServer(tmp_path / "saving", more=more)
    server.start()
    try:
        (server.directory / "there.rdb").mkdir()  # so that nothing can be renamed to it
        with redis.Redis(port=server.port) as client:
            client.bgsave()
            wait_until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err", "it cannot save")
        found = examine(file, "--redis", server.url)
        assert found["redis.persistence"]["status"] == "warn"
        assert "nothing can be written" in found["redis.reachable"]["detail"]
    finally:
        server.stop()


def test_a_clock_that_is_not_that_of_redis(redis_url: str) -> None:
    """Seen from this machine, which may be the one that is wrong."""
    try:
        clock = wrong_clock(90)
    except Missing as missing:
        if os.environ.get("CI"):
            pytest.fail(str(missing), pytrace=False)
        pytest.skip(str(missing))
    looks = f"""
from yanchat.cli.checks.services import look_at_redis
from yanchat.config import RedisSettings, Settings
for one in look_at_redis(Settings(redis=RedisSettings({redis_url!r}))):
    print(*one)
"""
    # without Kafka's client, which waits for ever when its clocks disagree
    done = subprocess.run(
        [sys.executable, "-c", looks], env=environment(**clock), capture_output=True, text=True, check=True
    )
    (found,) = [line for line in done.stdout.splitlines() if line.startswith("clock.redis")]
    assert found.startswith("clock.redis fail the clock of Redis is 90 s behind this machine's")


@pytest.mark.parametrize(("version", "status"), [("4.0.9", "fail"), ("6.0.16", "warn"), ("7.0.15", "ok")])
def test_versions_of_redis(version: str, status: str) -> None:
    """What an old one would say of itself."""
    found = {one.check: one for one in services._judge_redis(WELL._replace(version=version))}
    assert found["redis.version"].status == status


def change(brokers: str, topic: str, settings: dict[str, str]) -> None:
    """Set up a topic otherwise than its node has."""
    resource = ConfigResource(ResourceType.TOPIC, topic)
    for key, value in settings.items():
        resource.add_incremental_config(ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET))
    admin = AdminClient({"bootstrap.servers": brokers})
    admin.incremental_alter_configs([resource])[resource].result()


# -- Kafka -------------------------------------------------------------------------------------------------------------
def test_topics_that_are_not_as_configured(file: Path, prefix: str, kafka_brokers: str) -> None:
    """A topic is made once; settings that are raised later do not change it, and somebody else may have made it."""
    with RunningNode(file.parent / "state", "--config", str(file)) as node:
        name = f"{prefix}websocket-{node.directory.name}"
        change(kafka_brokers, name, {"retention.ms": "60000", "max.message.bytes": "1000"})
        wanted = {"YANCHAT_KAFKA_REPLICATION_FACTOR": "3", "YANCHAT_KAFKA_MIN_INSYNC_REPLICAS": "2"}

        found: dict[str, dict[str, str]] = {}

        def told() -> bool:  # it takes the broker a moment
            found.update(examine(file, **wanted))
            return found["kafka.message_size"]["status"] == "fail"

        wait_until(told, "the broker tells of it")
    assert name in found["kafka.retention"]["detail"]
    assert "7 d (kafka.retention)" in found["kafka.retention"]["detail"]
    assert "retention.ms" in found["kafka.retention"]["fix"]
    assert "max.message.bytes" in found["kafka.message_size"]["fix"]
    assert "on 1 broker(s), not on 3 (kafka.replication_factor)" in found["kafka.replication"]["detail"]
    assert "min.insync.replicas" in found["kafka.in_sync"]["fix"]
    assert {found[check]["status"] for check in ("kafka.retention", "kafka.replication", "kafka.in_sync")} == {"fail"}


def test_more_replicas_than_brokers(file: Path) -> None:
    """Before any node has tried to make its topics."""
    found = examine(file, YANCHAT_KAFKA_REPLICATION_FACTOR="3")["kafka.replication"]
    assert found["status"] == "fail"
    assert "kafka.replication_factor is 3" in found["detail"]


def test_topics_that_take_nothing_now(file: Path, prefix: str, kafka_brokers: str) -> None:
    """More replicas have to be in sync than there are."""
    with RunningNode(file.parent / "state", "--config", str(file)) as node:
        name = f"{prefix}netty-ack-{node.directory.name}"
        change(kafka_brokers, name, {"min.insync.replicas": "2"})
        wait_until(lambda: examine(file)["kafka.in_sync"]["status"] == "fail", "the broker tells of it")


def test_other_topics_are_none_of_ours(file: Path, prefix: str, kafka_brokers: str) -> None:
    """However they are made."""
    topic = NewTopic(f"{prefix}orders", 1, 1, config={"retention.ms": "1000"})
    admin = AdminClient({"bootstrap.servers": kafka_brokers})
    admin.create_topics([topic])[topic.topic].result()
    assert "0 topics of our nodes" in examine(file)["kafka.reachable"]["detail"]


# -- nodes -------------------------------------------------------------------------------------------------------------
def test_a_node_that_is_not_ready_says_why(
    file: Path, tmp_path: Path, redis_server: RedisServer, kafka_broker: KafkaBroker, prefix: str
) -> None:
    """When Redis hangs, Redis is found, and who suffers from it."""
    own = settings(tmp_path, prefix, redis_server.url, kafka_broker.brokers)
    with RunningNode(tmp_path / "state", "--config", str(own)):
        redis_server.pause()
        try:

            def suffers() -> bool:
                found = examine(own)
                assert found["redis.reachable"]["status"] == "fail"
                return (
                    found["nodes.ready"]["status"] == "fail"
                    and "Redis does not serve" in found["nodes.ready"]["detail"]
                )

            wait_until(suffers, "the node is not ready")
        finally:
            redis_server.resume()
