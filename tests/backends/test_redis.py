"""What is peculiar to the registry on Redis: its keys, its URLs, its pipelines, a server that comes, goes, forgets."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
import trio
import trio.lowlevel
from msgspec.structs import replace

from tests.contracts.examples import ANN, BOB, HERE, THERE, node, session
from tests.services import RedisServer
from yanchat.backends.redis.connection import Command, Connection
from yanchat.backends.redis.registry import RedisRegistry, open_registry
from yanchat.backends.redis.servers import connector
from yanchat.config import RedisSettings
from yanchat.errors import AddressTaken, ConfigError, RegistryUnavailable
from yanchat.model import Node, OpenId

LEASE = 10.0
PATIENCE = 30.0


@pytest.fixture
async def registry(redis_server: RedisServer, server: redis.Redis) -> AsyncIterator[RedisRegistry]:
    async with open_registry(RedisSettings(url=redis_server.url), LEASE) as opened:
        yield opened


async def works(registry: RedisRegistry) -> None:
    """Wait until the server serves."""
    with trio.fail_after(PATIENCE):
        while True:
            try:
                await registry.epoch()
                return
            except RegistryUnavailable:
                await trio.sleep(0.05)


# -- keys --------------------------------------------------------------------------------------------------------------
async def test_the_keys_are_those_of_the_protocol(registry: RedisRegistry, server: redis.Redis) -> None:
    """With the names, the types and the fields that a seed user knows."""
    await registry.join(replace(node(), admin="127.0.0.1:9"))
    await registry.claim([session()])
    await registry.enter(HERE, [ANN])
    keys: Any = server.keys()
    types: Any = {key: server.type(key) for key in keys}
    assert types == {
        "yan_websocket_server:127.0.0.1:8001": "hash",
        "yan_websocket_servers": "zset",
        "yan_serverclients_127.0.0.1:8001": "set",
        "yan_client_bob": "hash",
        "yan_pending_ann": "set",
    }
    assert server.hgetall("yan_websocket_server:127.0.0.1:8001") == {
        "incarnation": "i1",
        "store": "s1",
        "state": "up",
        "url": "ws://127.0.0.1:8001/ws",
        "admin": "127.0.0.1:9",
        "startedAt": "1",
        "version": "1.0",
    }
    assert server.zrange("yan_websocket_servers", 0, -1) == [HERE]
    assert server.smembers("yan_serverclients_127.0.0.1:8001") == {session().session_id}
    assert server.smembers("yan_pending_ann") == {HERE}
    entries: Any = server.hgetall("yan_client_bob")
    entry = json.loads(entries[session().session_id])
    assert entry.pop("stamp") > 0
    assert entry == {
        "node": HERE,
        "incarnation": "i1",
        "userName": "Bob",
        "loginStatus": "1",
        "connectedAt": 7,
        "remote": "127.0.0.1:5",
    }


async def test_nothing_stays_behind_a_node_that_leaves(registry: RedisRegistry, server: redis.Redis) -> None:
    await registry.join(node())
    await registry.claim([session(), session(ANN)])
    await registry.leave(node())
    assert server.keys() == []


async def test_another_prefix_is_another_cluster(redis_server: RedisServer, registry: RedisRegistry) -> None:
    await registry.join(node())
    async with open_registry(RedisSettings(url=redis_server.url, key_prefix="other_"), LEASE) as other:
        await other.join(node(store="s2"))
        assert [record.store for record in await registry.nodes()] == ["s1"]


async def test_the_lease_is_the_servers_time_to_live(redis_server: RedisServer, server: redis.Redis) -> None:
    """A node that says nothing is gone when the server says so, without anybody's clock."""
    async with open_registry(RedisSettings(url=redis_server.url), 0.5) as registry:
        await registry.join(node())
        await registry.claim([session()])
        remaining: Any = server.pttl("yan_websocket_server:127.0.0.1:8001")
        assert 0 < remaining <= 500
        with trio.fail_after(PATIENCE):
            while await registry.locate([BOB]) != {BOB: []}:
                await trio.sleep(0.02)
        (record,) = await registry.nodes()
        assert (record.state, record.sessions) == ("dead", 1)
        assert record.age >= 0.5


async def test_what_another_version_wrote_is_left_alone(registry: RedisRegistry, server: redis.Redis) -> None:
    """An entry that cannot be read counts for nothing, one that says more is read, and both stay."""
    await registry.join(node())
    await registry.claim([session()])
    entries: Any = server.hgetall("yan_client_bob")
    later = json.dumps(json.loads(entries[session().session_id]) | {"mood": "fine", "stamp": 5})
    server.hset("yan_client_bob", mapping={"s-later": later, "s-broken": b"{\xff"})
    found = (await registry.locate([BOB]))[BOB]
    assert {entry.session_id for entry in found} == {session().session_id, "s-later"}
    server.delete("yan_websocket_server:127.0.0.1:8001")
    await registry.reap(found)
    assert server.hkeys("yan_client_bob") == ["s-broken"]


async def test_two_addresses_that_would_share_topics_are_not_both_taken(registry: RedisRegistry) -> None:
    await registry.join(node(Node("a-b.example:1")))
    with pytest.raises(AddressTaken, match=r"a\.b-example:1 and a-b\.example:1"):
        await registry.join(node(Node("a.b-example:1"), store="s2"))


async def test_the_message_path_lists_no_keys(registry: RedisRegistry, server: redis.Redis) -> None:
    """Neither KEYS nor SCAN: both take the longer the more there is."""
    server.config_resetstat()
    await registry.join(node())
    await registry.claim([session()])
    await registry.locate([BOB, ANN])
    await registry.pending([BOB])
    await registry.nodes()
    await registry.sessions()
    used: Any = server.info("commandstats")
    assert "cmdstat_hgetall" in used
    assert not {"cmdstat_keys", "cmdstat_scan", "cmdstat_sscan", "cmdstat_hscan"} & set(used)


# -- pipelines ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many commands each round trip took."""
    taken: list[int] = []
    send = Connection.send

    def counted(connection: Connection, commands: Sequence[Command]) -> list[Any]:
        taken.append(len(commands))
        return send(connection, commands)

    monkeypatch.setattr(Connection, "send", counted)
    return taken


async def test_what_is_asked_at_once_shares_its_round_trips(registry: RedisRegistry, rounds: list[int]) -> None:
    await registry.join(node())
    await registry.claim([session(OpenId(f"u{number}")) for number in range(100)])
    found: list[OpenId] = []

    async def locate(user: OpenId) -> None:
        found.extend(await registry.locate([user]))

    rounds.clear()
    async with trio.open_nursery() as nursery:
        for number in range(100):
            nursery.start_soon(locate, OpenId(f"u{number}"))
    assert len(found) == 100
    assert len(rounds) <= 4  # the first may have left alone; each asks where, then who lives


async def test_a_user_of_a_known_node_takes_one_round_trip(registry: RedisRegistry, rounds: list[int]) -> None:
    await registry.join(node())
    await registry.claim([session()])
    await registry.nodes()
    rounds.clear()
    assert len((await registry.locate([BOB]))[BOB]) == 1
    assert len(rounds) == 1


async def test_a_long_list_does_not_hold_up_the_others(registry: RedisRegistry, rounds: list[int]) -> None:
    await registry.join(node())
    await registry.claim([session(OpenId(f"u{number}")) for number in range(5000)])
    order: list[str] = []

    async def listed() -> None:
        assert len(await registry.sessions()) == 5000
        order.append("list")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listed)
        begun = len(rounds)
        while len(rounds) < begun + 2:
            await trio.lowlevel.checkpoint()
        await registry.locate([BOB])
        order.append("locate")
    assert order == ["locate", "list"]


async def test_the_error_of_one_call_is_not_the_others(registry: RedisRegistry, server: redis.Redis) -> None:
    """A node's key of another type, say, spoils only what needs it, and is named."""
    await registry.join(node())
    await registry.claim([session(ANN)])
    server.set(f"yan_websocket_server:{THERE}", "not a hash")
    failures: list[str] = []
    found: list[OpenId] = []

    async def locate() -> None:
        found.extend(await registry.locate([ANN]))

    async def join() -> None:
        try:
            await registry.join(node(THERE))
        except RegistryUnavailable as error:
            failures.append(str(error))

    async with trio.open_nursery() as nursery:
        for call in (locate, join, locate):
            nursery.start_soon(call)
    assert found == [ANN, ANN]
    assert len(failures) == 1
    assert f"key yan_websocket_server:{THERE}" in failures[0]


async def test_what_somebody_else_wrote_at_one_user_disturbs_no_other(
    registry: RedisRegistry, server: redis.Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    """He counts as nowhere until the key is gone; the log names it, once."""
    await registry.join(node())
    bad = BOB
    for key in (f"yan_client_{bad}", f"yan_pending_{bad}"):
        server.set(key, "garbage")
    for _ in range(2):
        assert await registry.claim([session(bad), session(ANN)])
        await registry.enter(HERE, [bad, ANN])
        found = await registry.locate([bad, ANN])
        assert (list(found.get(bad, ())), len(found[ANN])) == ([], 1)
        assert await registry.pending([bad, ANN]) == {bad: [], ANN: [HERE]}
        await registry.reap([session(bad)])
        await registry.release([session(bad)])
        await registry.leave_pending(HERE, [bad, ANN])
    logged = capsys.readouterr().out
    assert logged.count(f"yan_client_{bad}") == logged.count(f"yan_pending_{bad}") == 1
    server.delete(f"yan_client_{bad}")
    assert await registry.claim([session(bad)]) == [True]


@pytest.mark.parametrize("key", ["yan_serverclients_9.9.9.9:1", "yan_websocket_server:9.9.9.9:1"])
async def test_what_somebody_else_wrote_at_a_node_keeps_no_other_from_its_heartbeat(
    key: str, registry: RedisRegistry, server: redis.Redis
) -> None:
    server.zadd("yan_websocket_servers", {"9.9.9.9:1": 1})
    server.set(key, "garbage")
    await registry.join(node())
    assert await registry.renew(node())
    assert {record.node: record.state for record in await registry.nodes()} == {HERE: "up", "9.9.9.9:1": "dead"}
    await registry.sessions()


@pytest.mark.parametrize("started", ["9" * 5000, "\u00b2", "-1", "soon", ""])
async def test_a_record_that_says_nonsense_is_read_as_far_as_it_goes(
    started: str, registry: RedisRegistry, server: redis.Redis
) -> None:
    server.zadd("yan_websocket_servers", {"9.9.9.9:1": 1})
    server.hset("yan_websocket_server:9.9.9.9:1", mapping={"incarnation": "i", "startedAt": started})
    (record,) = await registry.nodes()
    assert (record.incarnation, record.started_at) == ("i", 0)


# -- a server that comes, goes, forgets --------------------------------------------------------------------------------
async def test_after_flushall_a_node_is_told_to_join_and_claims_are_news(
    registry: RedisRegistry, server: redis.Redis
) -> None:
    await registry.join(node())
    await registry.claim([session()])
    assert await registry.claim([session()]) == [False]
    server.flushall()
    assert not await registry.renew(node())
    await registry.join(node(incarnation="i2"))
    assert await registry.claim([session(at=node(incarnation="i2"))]) == [True]
    assert [entry.incarnation for entry in (await registry.locate([BOB]))[BOB]] == ["i2"]


async def test_another_server_is_another_epoch(registry: RedisRegistry, redis_server: RedisServer) -> None:
    """After a crash calls fail, then succeed by themselves; the epoch says that everything may be forgotten."""
    before = await registry.epoch()
    await registry.join(node())
    redis_server.kill()
    for call in (registry.renew(node()), registry.locate([BOB]), registry.claim([session()]), registry.epoch()):
        with pytest.raises(RegistryUnavailable):
            await call
    redis_server.start()
    await works(registry)
    assert await registry.epoch() != before
    assert not await registry.renew(node())
    await registry.join(node())


async def test_a_server_that_hangs_costs_seconds_and_is_used_again(
    registry: RedisRegistry, redis_server: RedisServer
) -> None:
    """All that is asked meanwhile fails; nothing waits for longer than the timeout."""
    await registry.join(node())
    failed = 0

    async def locate() -> None:
        nonlocal failed
        try:
            await registry.locate([BOB])
        except RegistryUnavailable:
            failed += 1

    redis_server.pause()
    try:
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                for _ in range(50):
                    nursery.start_soon(locate)
        assert failed == 50
    finally:
        redis_server.resume()
    await works(registry)
    assert await registry.renew(node())


async def test_a_server_that_is_away_at_the_start_is_waited_for(redis_server: RedisServer, server: redis.Redis) -> None:
    redis_server.kill()
    async with open_registry(RedisSettings(url=redis_server.url), LEASE) as registry:
        with pytest.raises(RegistryUnavailable):
            await registry.join(node())
        redis_server.start()
        await works(registry)
        await registry.join(node())


# -- who we are --------------------------------------------------------------------------------------------------------
@pytest.fixture
def guarded(redis_server: RedisServer, server: redis.Redis) -> Iterator[str]:
    """A user with a password, and one who may not run scripts; the rest of a URL."""
    server.acl_setuser("node", enabled=True, passwords=["+s3c/et"], keys=["*"], commands=["+@all"])
    server.acl_setuser("weak", enabled=True, passwords=["+weak"], keys=["*"], commands=["+@all", "-eval"])
    yield f"127.0.0.1:{redis_server.port}/0"
    server.acl_deluser("node", "weak")


async def served(settings: RedisSettings) -> None:
    async with open_registry(settings, LEASE) as registry:
        await registry.join(node())


async def test_user_and_password_come_from_the_url_or_from_files(guarded: str, tmp_path: Path) -> None:
    """Those of the settings win, and a secret in a file may end with a newline."""
    secret = tmp_path / "secret"
    secret.write_text("s3c/et\n")
    await served(RedisSettings(url=f"redis://node:s3c%2Fet@{guarded}"))
    await served(RedisSettings(url=f"redis://{guarded}", username="node", password_file=str(secret)))
    await served(RedisSettings(url=f"redis://weak:weak@{guarded}", username="node", password_file=str(secret)))


@pytest.mark.parametrize("user", ["node:guess", "nobody:s3c%2Fet", ":guess", "weak:weak"])
async def test_who_is_refused_at_the_start_has_a_wrong_setting(guarded: str, user: str) -> None:
    """And the sentence says nothing of the password."""
    with pytest.raises(ConfigError, match="Redis refuses this node") as caught:
        await served(RedisSettings(url=f"redis://{user}@{guarded}"))
    assert "s3c" not in str(caught.value)
    assert "guess" not in str(caught.value)


async def test_who_is_refused_later_is_waited_for(guarded: str, server: redis.Redis) -> None:
    """A password that is being changed must not end a node that has clients."""
    async with open_registry(RedisSettings(url=f"redis://node:s3c%2Fet@{guarded}"), LEASE) as registry:
        await registry.join(node())
        server.acl_setuser("node", enabled=True, reset_passwords=True, passwords=["+other"])
        server.client_kill_filter(_type="normal", skipme=True)
        with pytest.raises(RegistryUnavailable):
            await registry.renew(node())
        server.acl_setuser("node", enabled=True, passwords=["+s3c/et"])
        await works(registry)
        assert await registry.renew(node())


async def test_a_database_that_is_not_there_is_a_wrong_setting(redis_server: RedisServer) -> None:
    with pytest.raises(ConfigError, match="redis\\.url"):
        await served(RedisSettings(url=redis_server.url.replace("/0", "/99")))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"url": "http://h"}, "cannot begin with 'http'"),
        ({"url": "redis://h:port/0"}, "redis.url"),
        ({"url": "redis://h/first"}, "'first' is not the number of a database"),
        ({"url": "redis+sentinel://h:26379"}, "the name of the service is missing"),
        ({"url": "redis+sentinel://h:26379/yan/first"}, "redis.url"),
        ({"url": "redis+cluster://h1,:6379"}, "is not HOST:PORT"),
        ({"url": "redis+cluster://h1/3"}, "database 0 only"),
        ({"password_file": "/nowhere"}, "redis.password_file: /nowhere cannot be read"),
        ({"ca_file": __file__}, "asks for no TLS"),
        ({"url": "rediss://h", "ca_file": __file__}, "no certificate"),
    ],
)
def test_a_setting_that_cannot_be_is_named(settings: dict[str, str], reason: str) -> None:
    """Before anything is connected to."""
    with pytest.raises(ConfigError, match=reason):
        connector(RedisSettings(**settings))


async def test_a_unix_socket_serves_as_well(redis_server: RedisServer, server: redis.Redis) -> None:
    await served(RedisSettings(url=f"unix://{redis_server.directory}/socket?db=3"))
    with redis.Redis(port=redis_server.port, db=3) as third:
        assert third.dbsize() == 2


# -- more than one server ----------------------------------------------------------------------------------------------
@asynccontextmanager
async def started(*servers: RedisServer) -> AsyncIterator[None]:
    try:
        for server in servers:
            server.start()
        yield
    finally:
        for server in servers:
            server.stop()


async def test_a_redis_cluster_serves(redis_server: RedisServer, tmp_path: Path) -> None:
    """Every command names one key, so it does not matter which of the servers has it."""
    first, second = (RedisServer(tmp_path / name, more={"cluster-enabled": "yes"}) for name in "ab")
    async with started(first, second):
        with redis.Redis(port=first.port) as one, redis.Redis(port=second.port) as two:
            one.execute_command("CLUSTER ADDSLOTSRANGE", 0, 8191)
            two.execute_command("CLUSTER ADDSLOTSRANGE", 8192, 16383)
            two.execute_command("CLUSTER SET-CONFIG-EPOCH", 2)
            one.execute_command("CLUSTER MEET", "127.0.0.1", second.port)
        url = f"redis+cluster://127.0.0.1:1,127.0.0.1:{first.port}"
        async with open_registry(RedisSettings(url=url), LEASE) as registry:
            await works(registry)
            with trio.fail_after(PATIENCE):
                while True:
                    try:
                        await registry.join(node())
                        break
                    except RegistryUnavailable:  # the two are still getting to know each other
                        await trio.sleep(0.1)
            users = [OpenId(f"u{number}") for number in range(50)]
            assert all(await registry.claim([session(user) for user in users]))
            await registry.enter(HERE, users)
            assert all(len(found) == 1 for found in (await registry.locate(users)).values())
            assert all(nodes == [HERE] for nodes in (await registry.pending(users)).values())
            assert len(await registry.sessions()) == 50
            assert await registry.contradictions() == []
            await registry.enter(THERE, users)
            contradictions = await registry.contradictions()
            assert {(one.kind, one.openid) for one in contradictions} == {("gone_holder", user) for user in users}
            await registry.mend(contradictions)
            assert await registry.contradictions() == []
            assert (await registry.epoch()).count(",") == 1
            assert await registry.renew(node())
            await registry.release([session(user) for user in users])
            await registry.leave(node())
            assert await registry.nodes() == []


async def test_sentinels_lead_to_the_next_master(redis_server: RedisServer, tmp_path: Path) -> None:
    """A fail-over to a replica that has missed everything: the epoch says so, and a node is told to join again."""
    master = RedisServer(tmp_path / "master")
    async with started(master):
        replica = RedisServer(tmp_path / "replica")
        sentinel = RedisServer(tmp_path / "sentinel", sentinel_of=master)
        async with started(replica, sentinel):
            url = f"redis+sentinel://127.0.0.1:1,127.0.0.1:{sentinel.port}/yan/0"
            async with open_registry(RedisSettings(url=url), LEASE) as registry:
                await works(registry)
                before = await registry.epoch()
                await registry.join(node())
                await registry.join(node(THERE))
                with redis.Redis(port=sentinel.port) as guard:
                    guard.execute_command("SENTINEL REMOVE", "yan")
                    guard.execute_command("SENTINEL MONITOR", "yan", "127.0.0.1", replica.port, 1)
                master.kill()
                await works(registry)
                assert await registry.epoch() != before
                assert not await registry.renew(node())
                await registry.join(node())
