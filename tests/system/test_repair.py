"""`servers --check` beside real nodes under a storm of logins, and `--repair` of what nodes leave in Kafka."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import redis
import trio
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from tests.running import DEADLINE, RunningNode, call, read_line, wait_until
from tests.running import running as started
from tests.system.test_cluster import settings
from yanchat.client import connect
from yanchat.errors import YanchatError


@pytest.fixture
def file(tmp_path: Path, prefix: str, redis_url: str, kafka_brokers: str) -> Path:
    return settings(tmp_path, prefix, redis_url, kafka_brokers)


@contextmanager
def running(file: Path, name: str) -> Iterator[RunningNode]:
    """A node with a state directory of its own, as on a machine of its own."""
    with RunningNode(file.parent / name, "--config", str(file)) as node:
        yield node


def ask(*arguments: str, file: Path, state: Path, code: int = 0) -> Any:
    done = call("servers", *arguments, "--config", file, "--json", state=state)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def topics(brokers: str, prefix: str) -> set[str]:
    """Those of this test, without its prefix."""
    found = AdminClient({"bootstrap.servers": brokers}).list_topics(timeout=DEADLINE).topics
    return {name.removeprefix(prefix) for name in found if name.startswith(prefix)}


def both(*nodes: RunningNode) -> set[str]:
    return {f"{kind}-{node.directory.name}" for node in nodes for kind in ("websocket", "netty-ack")}


async def test_a_storm_of_logins_on_live_nodes_is_never_accused(file: Path) -> None:
    """Sessions come and go all the time; whoever checks meanwhile finds nothing."""

    async def come_and_go(url: str, name: str) -> None:
        nonlocal logins
        while True:
            with suppress(YanchatError):
                async with connect(url, name):
                    logins += 1

    logins = 0
    with running(file, "a") as first, running(file, "b") as second:
        async with trio.open_nursery() as nursery:
            for number in range(30):
                nursery.start_soon(come_and_go, (first.url, second.url)[number % 2], f"user{number}")
            for _ in range(3):
                before = logins
                done = await trio.to_thread.run_sync(
                    lambda: call("servers", "--check", "--config", file, state=first.state)
                )
                assert (done.returncode, done.stdout) == (0, ""), done.stderr
                assert logins > before
            nursery.cancel_scope.cancel()
    assert logins > 100


def test_a_node_that_was_killed_is_forgotten_when_that_is_agreed_to(
    file: Path, kafka_brokers: str, prefix: str, redis_url: str
) -> None:
    """With its sessions, its pending sets and its topics; where its directory is, it may be started again."""
    with running(file, "a") as live, running(file, "b") as dead:
        sent = ("send", "bob", "hello", "--as", "ann", "--wait", "accepted", "--url")
        assert call(*sent, dead.url).returncode == 0
        with redis.Redis.from_url(redis_url, decode_responses=True) as client:
            holders = lambda: client.smembers(f"{prefix}pending_bob")  # noqa: E731
            wait_until(lambda: holders() == {dead.node}, "it holds something for Bob")
            dead.kill()
            client.delete(f"{prefix}websocket_server:{dead.node}")  # its lease is over
            assert ask("--check", file=file, state=dead.state) == []
            (one,) = ask("--check", file=file, state=live.state, code=10)
            assert (one["kind"], one["node"]) == ("dead", dead.node)
            mended = ask("--repair", "--yes", file=file, state=live.state)
            assert [(one["kind"], one["mended"]) for one in mended] == [
                ("dead", True),
                ("gone_holder", True),
                ("topic", True),
                ("topic", True),
            ]
            assert ask("--check", file=file, state=live.state) == []
            assert [one["node"] for one in ask(file=file, state=live.state)] == [live.node]
            assert holders() == set()
            assert topics(kafka_brokers, prefix) == both(live)
            dead.start()
            wait_until(lambda: holders() == {dead.node}, "it has come back, and still holds it")
        assert ask("--check", file=file, state=live.state) == []
        assert topics(kafka_brokers, prefix) == both(live, dead)


def test_topics_that_somebody_may_need_stay(file: Path, kafka_brokers: str, prefix: str) -> None:
    """Of live nodes, with records that wait, and of nodes whose outbox here still holds a message."""
    with running(file, "a") as live, running(file, "a") as addressed, running(file, "a") as owing:
        with running(file, "a") as quiet:
            assert quiet.terminate() == 0
        sent = ("send", "bob", "hello", "--as", "ann", "--wait", "accepted", "--url")
        assert call(*sent, owing.url).returncode == 0
        assert owing.terminate() == 0
        assert addressed.terminate() == 0
        writer = Producer({"bootstrap.servers": kafka_brokers})
        writer.produce(f"{prefix}websocket-{addressed.directory.name}", b"{}", headers={"kind": "pull"})
        assert writer.flush(DEADLINE) == 0

        refused = call("servers", "--repair", "--config", file, state=live.state)
        assert refused.returncode == 2
        assert "3 topics to remove; give --yes" in refused.stderr
        assert topics(kafka_brokers, prefix) == both(live, addressed, owing, quiet)

        found = {
            one["topic"].removeprefix(prefix): one for one in ask("--repair", "--yes", file=file, state=live.state)
        }
        gone = both(quiet) | {f"netty-ack-{addressed.directory.name}"}
        assert found.keys() == both(addressed, owing, quiet)
        assert {name for name, one in found.items() if one["mended"]} == gone
        assert topics(kafka_brokers, prefix) == both(live, addressed, owing, quiet) - gone
        assert "1 record waits in it" in found[f"websocket-{addressed.directory.name}"]["sentence"]
        for name in both(owing):
            assert f"1 message waits in {owing.directory}" in found[name]["sentence"]
        for line in refused.stdout.splitlines():
            assert line in {one["sentence"] for one in found.values()}


def test_a_registry_that_has_just_forgotten_everything_costs_no_topics(
    file: Path, kafka_brokers: str, prefix: str, redis_url: str
) -> None:
    """The nodes come back into it within a lease: before that is over, nothing is removed."""
    with running(file, "a") as first, running(file, "b") as second:
        first.pause()
        second.pause()
        with redis.Redis.from_url(redis_url) as client:
            client.delete(*client.scan_iter(f"{prefix}*"))
        with started("servers", "--repair", "--yes", "--config", file, state=file.parent / "c") as repairing:
            line = read_line(repairing)
            assert "nothing waits in it" in line
            first.resume()
            second.resume()
            _, log = repairing.communicate(timeout=DEADLINE)
            assert repairing.returncode == 0, log
        assert log.count("it is in use again") == 4
        assert topics(kafka_brokers, prefix) == both(first, second)
