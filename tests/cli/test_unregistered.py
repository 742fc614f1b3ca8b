"""Calls that get nothing from the registry: Redis refuses them, or they have the settings of another profile.

The nodes of this machine still answer, and nothing is said that is not so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from tests.cli.calls import quick
from tests.running import RunningNode, call, wait_until
from tests.services import RedisServer
from tests.system.test_cluster import settings

FALSE = ("start one with", "no node is registered", "has its state here")
"""What is said where there is no node."""


@pytest.fixture
def file(tmp_path: Path, prefix: str, redis_server: RedisServer, kafka_brokers: str) -> Path:
    return settings(tmp_path, prefix, redis_server.url, kafka_brokers)


@pytest.fixture
def node(file: Path) -> Iterator[RunningNode]:
    """One of the profile cluster."""
    with RunningNode(file.parent / "state", "--config", str(file)) as running_node:
        yield running_node


@contextmanager
def password(url: str) -> Iterator[None]:
    """Redis asks for one from now on, those too who are connected."""
    with redis.Redis.from_url(url) as first:
        first.config_set("requirepass", "geheim")
        with redis.Redis.from_url(url, password="geheim") as admin:
            try:
                admin.client_kill_filter(_type="normal", skipme=True)
                yield
            finally:
                admin.config_set("requirepass", "")


# -- Redis refuses us --------------------------------------------------------------------------------------------------
def test_nodes_of_this_machine_answer_while_redis_asks_for_a_password(
    node: RunningNode, file: Path, redis_server: RedisServer
) -> None:
    """As while Redis is away: at 3 a.m. that makes no difference."""
    shared = ("--config", file)
    sent = quick("send", "bob", "hello", "--wait", "accepted", "--url", node.url, "--json", *shared, state=node.state)
    (row,) = json.loads(sent.stdout)
    with password(redis_server.url):
        assert row["message_id"] in quick("outbox", *shared, state=node.state).stdout
        assert "bob: waits on" in quick("trace", row["message_id"], *shared, state=node.state).stderr
        assert quick("redeliver", "--all", "--yes", *shared, state=node.state).returncode == 0
        assert "1 up" not in quick("top", "--json", "--interval", "0.2", *shared, state=node.state).stdout

        audit = quick("audit", "--json", *shared, state=node.state)
        assert audit.returncode == 4
        assert (json.loads(audit.stdout)["balanced"], json.loads(audit.stdout)["complete"]) == (True, False)
        assert "Nodes of other machines are not known: Redis refuses this node" in audit.stderr

        elsewhere = quick("drain", "--node", "10.0.0.7:8084", *shared, state=node.state)
        assert (elsewhere.returncode, "Redis refuses" in elsewhere.stderr) == (78, True)
        assert quick("drain", *shared, state=node.state).stdout == f"{node.node} has stopped.\n"
        assert node.wait() == 0


def test_a_session_is_closed_by_the_node_that_holds_it_or_the_node_says_why_not(
    node: RunningNode, file: Path, redis_server: RedisServer
) -> None:
    """It is the node that answers, not the call that gives up."""
    with password(redis_server.url):
        done = quick("kick", "--openid", "bob", "--config", file, state=node.state)
    assert done.returncode != 78
    assert "Redis does not serve" in done.stderr
    assert "password" in done.stderr


def test_a_node_that_is_refused_says_that_it_is_the_password(node: RunningNode, redis_server: RedisServer) -> None:
    """Redis 7 itself says `unauthenticated multibulk length`; and the node that had served goes on trying."""
    with password(redis_server.url):
        wait_until(lambda: "multibulk" in node.log.read_text(), "a heartbeat has failed")
        lines = [line for line in node.log.read_text().splitlines() if "Redis does not serve" in line]
        assert [line for line in lines if "multibulk" in line and "password" not in line] == []


def test_doctor_finds_what_is_here_and_that_redis_refuses(
    node: RunningNode, file: Path, redis_server: RedisServer, tmp_path: Path
) -> None:
    """Nobody is sent to another user, or told to start what runs."""

    def examine(state: Path) -> tuple[dict[str, str], str]:
        done = call("doctor", "--json", "--config", file, state=state, env={"YANCHAT_LIMITS_CONNECTIONS": "100"})
        assert done.returncode == 10
        return {one["check"]: one["detail"] for one in json.loads(done.stdout)}, done.stdout

    with password(redis_server.url):
        found, said = examine(node.state)
        assert node.node in found["nodes.ready"]
        nothing, said_there = examine(tmp_path / "none")
    for all_said in (said, said_there):
        assert "Redis refuses this node" in all_said
        assert "call this as the user" not in all_said
        assert not any(words in all_said for words in FALSE)
    assert "which are registered is not known" in nothing["nodes"]


# -- a call without the settings of the nodes --------------------------------------------------------------------------
def test_a_call_of_another_profile_is_told_of_it(node: RunningNode) -> None:
    """Whoever starts a first node with --profile cluster, and asks without."""
    for arguments in (("servers",), ("clients",), ("send", "bob", "hello"), ("servers", "--check")):
        done = quick(*arguments, state=node.state)
        assert done.returncode == 4
        assert f"The nodes in {node.state} are of the profile cluster" in done.stderr
        assert "--profile" in done.stderr
        assert done.stderr.count("\n") == 1
    assert quick("outbox", state=node.state).returncode == 0  # whose socket answers anyway
    found = call("doctor", state=node.state, env={"YANCHAT_LIMITS_CONNECTIONS": "100"})
    assert found.returncode == 10
    assert "profile cluster" in found.stdout
    assert f"{node.directory.name} is ready" in found.stdout or f"{node.node} is ready" in found.stdout
    assert not any(words in found.stdout for words in FALSE)


def test_where_no_node_has_been_it_says_how_to_begin(tmp_path: Path) -> None:
    begin = f"No node runs in {tmp_path / 'none'}; start one with `yanchat serve`, or say another --state-dir."
    for arguments in (
        ("servers",),
        ("outbox",),
        ("audit",),
        ("drain",),
        ("kick", "--openid", "bob"),
        ("top", "--json"),
    ):
        done = quick(*arguments, state=tmp_path / "none")
        assert (done.returncode, done.stderr) == (4, f"yanchat: {begin}\n")
