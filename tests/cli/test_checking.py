"""`servers --check` and `--repair`: what is found, said, asked and mended, in both profiles. No node need run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import pytest
import redis
import trio
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from tests.cli.calls import quick
from tests.cli.terminal import on_terminal
from tests.contracts.examples import ANN, BOB, CID, HERE, THERE, node, session
from tests.running import RunningNode
from tests.system.test_cluster import settings
from yanchat import names
from yanchat.backends.redis.registry import open_registry
from yanchat.backends.sqlite.store import open_store
from yanchat.cli import repair
from yanchat.config import RedisSettings
from yanchat.directory import locked
from yanchat.node import lease

KEYS = ["kind", "node", "openid", "session_id", "topic", "sentence", "mended"]
NOBODY = "127.0.0.1:1"
"""Where no service is."""


def ask(*arguments: str | Path, state: Path | None = None, code: int = 0) -> Any:
    """The JSON document that a command prints."""
    done = quick(*arguments, "--json", state=state)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls in this process look again at once: nobody is coming or going."""
    monkeypatch.setattr(repair, "AGAIN_AFTER", 0.01)


AGAIN_AFTER = repair.AGAIN_AFTER


def test_the_looks_are_further_apart_than_heartbeats() -> None:
    """What a live node puts right by itself is no contradiction."""
    assert lease.HEARTBEAT < AGAIN_AFTER < lease.LEASE


# -- embedded ----------------------------------------------------------------------------------------------------------
def test_nodes_that_share_a_directory(tmp_path: Path) -> None:
    """Found, told, mended when that is agreed to, and then clean; but nobody who can be started again is accused."""
    state = tmp_path / "state"
    with RunningNode(state) as running:
        assert ask("servers", "--check", state=state) == []
        running.kill()
        spoil(state, running.node)
        found = quick("servers", "--check", state=state)
        assert found.returncode == 10
        ghost, holder = found.stdout.splitlines()
        assert "session 10.0.0.9:1_eve_1 of eve is on 10.0.0.9:1, which is not registered" in ghost
        assert "10.0.0.9:1 holds something for eve" in holder
        assert "--repair" in found.stderr

        refused = quick("servers", "--repair", state=state)
        assert (refused.returncode, refused.stdout) == (2, found.stdout)
        assert "2 contradictions to mend; give --yes" in refused.stderr
        assert len(ask("servers", "--check", state=state, code=10)) == 2

        shutil.rmtree(running.directory)
        mended = ask("servers", "--repair", "--yes", state=state)
        assert [list(one) for one in mended] == [KEYS] * 4
        assert sorted(one["kind"] for one in mended) == ["dead", "ghost", "gone_holder", "gone_holder"]
        assert all(one["mended"] for one in mended)
        again = quick("servers", "--check", state=state)
        assert (again.returncode, again.stdout) == (0, "")
        assert "does not contradict itself" in again.stderr
        assert ask("servers", state=state) == []


def spoil(state: Path, dead: str) -> None:
    """The lease of the killed node is over, and it held something; a session and a holder are of one that is gone."""
    with closing(apsw.Connection(str(state / "cluster.db"))) as connection, connection:
        connection.set_busy_timeout(10_000)
        connection.execute("UPDATE nodes SET expires = 0 WHERE node = ?", (dead,))
        connection.execute(
            "INSERT INTO sessions VALUES ('eve', '10.0.0.9:1_eve_1', '10.0.0.9:1', 'x', 'eve', 0, '', 0)"
        )
        connection.execute("INSERT INTO pending VALUES ('eve', '10.0.0.9:1'), ('bob', ?)", (dead,))


# -- Redis, without a node ---------------------------------------------------------------------------------------------
@pytest.fixture
def file(tmp_path: Path, prefix: str, redis_url: str, kafka_brokers: str) -> Path:
    return settings(tmp_path, prefix, redis_url, kafka_brokers)


@pytest.fixture
def server(redis_url: str, prefix: str) -> Iterator[redis.Redis]:
    """Redis as redis-cli sees it. Two nodes and three sessions are registered for longer than the test takes."""

    async def register() -> None:
        async with open_registry(RedisSettings(url=redis_url, key_prefix=prefix), 300.0) as registry:
            there = node(THERE, store="s2", state="draining")
            await registry.join(node())
            await registry.join(there)
            await registry.claim([session(), session(ANN), session(at=there)])
            await registry.enter(HERE, [CID])

    trio.run(register)
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client
        client.delete(*(key for key in client.scan_iter() if key.startswith(prefix)))


def test_nodes_and_sessions_are_read_with_no_node_running(file: Path, server: redis.Redis) -> None:
    """Redis is all that it takes, not even Kafka."""
    shared = ("--config", file, "--kafka", NOBODY)
    found = ask("servers", *shared)
    assert [(one["node"], one["state"], one["sessions"]) for one in found] == [(HERE, "up", 2), (THERE, "draining", 1)]
    assert [(one["openid"], one["node"]) for one in ask("clients", *shared)] == [(ANN, HERE), (BOB, HERE), (BOB, THERE)]
    assert [one["openid"] for one in ask("clients", *shared, "--node", HERE)] == [ANN, BOB]
    assert [one["node"] for one in ask("clients", *shared, "--openid", BOB)] == [HERE, THERE]
    assert ask("servers", "--check", *shared) == []


def test_what_nobody_knows_of_a_dead_node_is_left_out(file: Path, prefix: str, server: redis.Redis) -> None:
    """Its record has lapsed: there is no word of when it was started, so none is made up."""
    server.delete(names.node_key(THERE, prefix))
    (dead,) = (one for one in json.loads(quick("servers", "--json", "--config", file).stdout) if one["node"] == THERE)
    assert (dead["state"], dead["started_at"]) == ("dead", None)
    (row,) = (line for line in quick("servers", "--config", file).stdout.splitlines() if line.startswith(THERE))
    assert row.count("ago") == 1, row


def spoil_redis(server: redis.Redis, prefix: str) -> None:
    """One of each."""
    entry: Any = server.hget(f"{prefix}client_bob", session().session_id)
    early = session(BOB, number=7).session_id
    server.hset(f"{prefix}client_bob", early, entry.replace('"i1"', '"i0"'))
    server.sadd(f"{prefix}serverclients_{HERE}", early)  # of an earlier incarnation
    server.srem(f"{prefix}serverclients_{THERE}", session(at=node(THERE)).session_id)  # an entry without a session
    server.sadd(f"{prefix}serverclients_{HERE}", f"{HERE}_eve_1")  # listed, without an entry
    server.sadd(f"{prefix}serverclients_10.0.0.9:1", "10.0.0.9:1_eve_1")  # a set without a node
    server.zrem(f"{prefix}websocket_servers", HERE)  # in the hash, not in the sorted set
    server.zadd(f"{prefix}websocket_servers", {"10.0.0.8:1": 1})  # the other way round
    server.persist(f"{prefix}websocket_server:{THERE}")  # never lapses
    server.sadd(f"{prefix}pending_cid", "10.0.0.9:1")  # names a node that is gone


KINDS = ["dead", "ghost", "gone_holder", "no_entry", "no_lease", "no_node", "unlisted", "unregistered"]


def test_every_contradiction_is_found_and_mended(file: Path, prefix: str, server: redis.Redis, tmp_path: Path) -> None:
    spoil_redis(server, prefix)
    shared = ("--config", file, "--state-dir", tmp_path / "state")
    found = ask("servers", "--check", *shared, code=10)
    assert sorted(one["kind"] for one in found) == KINDS
    assert [list(one) for one in found] == [KEYS] * len(found)
    assert not any(one["mended"] for one in found)
    told = quick("servers", "--check", *shared)
    assert told.returncode == 10
    assert sorted(told.stdout.splitlines()) == sorted(one["sentence"] for one in found)

    assert quick("servers", "--repair", *shared).returncode == 2
    assert ask("servers", "--check", *shared, code=10) == found
    mended = ask("servers", "--repair", "--yes", *shared)
    assert sorted(one["kind"] for one in mended) == KINDS
    assert all(one["mended"] for one in mended)
    assert ask("servers", "--check", *shared) == []
    assert [(one["node"], one["state"]) for one in ask("servers", *shared)] == [(HERE, "up"), (THERE, "draining")]
    assert [(one["openid"], one["node"]) for one in ask("clients", *shared)] == [(ANN, HERE), (BOB, HERE)]


@pytest.mark.parametrize("name", [f"{'n' * 300}:1", "...", "a/../b:1", "\x00:1"])
def test_a_name_that_is_none_for_a_file(
    name: str, file: Path, prefix: str, server: redis.Redis, tmp_path: Path
) -> None:
    """Whoever has put it there: it is as dead as others, and goes as they do."""
    shared = ("--config", file, "--state-dir", tmp_path / "state")
    (tmp_path / "state" / "nodes").mkdir(parents=True)
    server.zadd(f"{prefix}websocket_servers", {name: 1})
    (found,) = ask("servers", "--check", *shared, code=10)
    assert (found["kind"], found["node"]) == ("dead", name)
    (registry,) = [one for one in ask("doctor", *shared, code=10) if one["check"] == "registry"]
    assert "is dead" in registry["detail"]
    assert [one["mended"] for one in ask("servers", "--repair", "--yes", *shared)] == [True]
    assert server.zscore(f"{prefix}websocket_servers", name) is None


def test_what_only_a_person_can_mend_stays(file: Path, prefix: str, server: redis.Redis) -> None:
    """Two live nodes of one slug: exit code 10 until one of them is stopped, and nobody is asked for that."""
    twin = f"{prefix}websocket_server:127-0.0.1:8001"
    server.hset(twin, mapping={"incarnation": "i9", "store": "s9"})
    server.expire(twin, 300)
    server.zadd(f"{prefix}websocket_servers", {"127-0.0.1:8001": 1})
    for arguments in (["--check"], ["--repair"], ["--repair", "--yes"]):
        done = quick("servers", *arguments, "--config", file)
        assert done.returncode == 10, done.stderr
        assert f"127-0.0.1:8001 and {HERE} are live" in done.stdout
        assert "stop all but one" in done.stdout
    server.delete(twin)
    server.zrem(f"{prefix}websocket_servers", "127-0.0.1:8001")
    assert ask("servers", "--check", "--config", file) == []


def test_repair_asks_on_a_terminal(file: Path, prefix: str, server: redis.Redis) -> None:
    """What it would mend is said before; without a yes nothing is done."""
    server.zadd(f"{prefix}websocket_servers", {"10.0.0.8:1": 1})
    code, shown = on_terminal("servers", "--repair", "--config", file, after="[y/N]", typed="n\n")
    assert shown.index("10.0.0.8:1 is dead") < shown.index("1 contradiction to mend. Do it now? [y/N]")
    assert "Nothing was done." in shown
    assert code == 10
    code, shown = on_terminal("servers", "--repair", "--config", file, after="[y/N]", typed="\x03")
    assert code == 130
    assert server.zscore(f"{prefix}websocket_servers", "10.0.0.8:1") is not None
    code, shown = on_terminal("servers", "--repair", "--config", file, after="[y/N]", typed="y\n")
    assert "1 contradiction mended." in shown
    assert code == 0
    assert server.zscore(f"{prefix}websocket_servers", "10.0.0.8:1") is None
    assert "[y/N]" not in on_terminal("servers", "--repair", "--config", file)[1]


def test_many_of_a_kind_are_counted_for_people_and_listed_for_programs(
    file: Path, prefix: str, server: redis.Redis
) -> None:
    server.sadd(f"{prefix}serverclients_{HERE}", *(f"{HERE}_u{number}_1" for number in range(100)))
    told = quick("servers", "--check", "--config", file)
    assert len(told.stdout.splitlines()) == repair.SHOWN + 1
    assert f"{100 - repair.SHOWN} more of the kind no_entry" in told.stdout
    assert len(ask("servers", "--check", "--config", file, code=10)) == 100


def test_a_service_that_is_away_is_said(file: Path, prefix: str, server: redis.Redis) -> None:
    """Exit code 4 and one sentence. Without Kafka the registry is mended all the same."""
    for arguments in (["servers"], ["clients"], ["servers", "--check"], ["servers", "--repair", "--yes"]):
        done = quick(*arguments, "--config", file, "--redis", f"redis://{NOBODY}")
        assert done.returncode == 4
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1
        assert "redis.url" in done.stderr
    server.zadd(f"{prefix}websocket_servers", {"10.0.0.8:1": 1})
    done = quick("servers", "--repair", "--yes", "--config", file, "--kafka", NOBODY, "--json")
    assert done.returncode == 4
    assert "Kafka does not answer" in done.stderr
    assert [one["mended"] for one in json.loads(done.stdout)] == [True]
    assert server.zscore(f"{prefix}websocket_servers", "10.0.0.8:1") is None


def test_yes_answers_nothing_but_repair() -> None:
    done = quick("servers", "--check", "--yes")
    assert done.returncode == 2
    assert "--repair" in done.stderr


def test_a_directory_that_cannot_be_looked_into_keeps_its_topics(
    file: Path, prefix: str, kafka_brokers: str, tmp_path: Path
) -> None:
    """A process holds it, which may be cut off from the registry; or its message table cannot be read."""
    directory = tmp_path / "state" / "nodes" / "10-0-0-7-1"
    directory.mkdir(parents=True)

    async def make_table() -> None:
        async with open_store(directory / "node.db"):
            pass

    trio.run(make_table)
    admin = AdminClient({"bootstrap.servers": kafka_brokers})
    for made in admin.create_topics([NewTopic(f"{prefix}websocket-10-0-0-7-1", 1)]).values():
        made.result()
    look = ("servers", "--repair", "--config", file)
    assert "1 topic to remove" in quick(*look, state=tmp_path / "state").stderr
    with locked(directory, ""):
        held = quick(*look, state=tmp_path / "state")
    (directory / "node.db").write_bytes(b"spoilt" * 1000)
    spoilt = quick(*look, state=tmp_path / "state")
    assert (held.returncode, spoilt.returncode) == (0, 0)
    assert f"a process holds {directory}" in held.stdout
    assert "node.db cannot be opened" in spoilt.stdout
