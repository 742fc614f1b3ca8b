"""Contradictions as they stand in Redis, each made on purpose; and a storm of logins, which is none."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import redis
import trio
from msgspec.structs import replace

from tests.contracts.examples import ANN, BOB, CID, HERE, THERE, node, session
from tests.services import RedisServer
from yanchat.backends.redis.registry import RedisRegistry, open_registry
from yanchat.cli.repair import standing
from yanchat.config import RedisSettings
from yanchat.model import Contradiction, Node, NodeRecord, OpenId, SessionId, SessionRecord

LEASE = 60.0
"""Longer than a test takes."""
SESSION = session().session_id


@pytest.fixture
def server(redis_url: str, prefix: str) -> Iterator[redis.Redis]:
    """Redis as redis-cli sees it; nothing of this test's prefix is left behind."""
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client
        client.delete("nothing", *(key for key in client.scan_iter() if key.startswith(prefix)))


@pytest.fixture
async def registry(redis_url: str, prefix: str, server: redis.Redis) -> AsyncIterator[RedisRegistry]:
    """With a node, on which Bob and Ann are, and Cid is waited for."""
    async with open_registry(RedisSettings(url=redis_url, key_prefix=prefix), LEASE) as opened:
        await opened.join(node())
        await opened.claim([session(), session(ANN)])
        await opened.enter(HERE, [CID])
        yield opened


async def made(registry: RedisRegistry, kind: str) -> Contradiction:
    """The only contradiction that there is."""
    (one,) = await registry.contradictions()
    assert one.kind == kind
    return one


async def gone(registry: RedisRegistry, one: Contradiction) -> None:
    """Mend it; it may be mended again, and nothing else has been touched."""
    for _ in range(2):
        await registry.mend([one])
        assert await registry.contradictions() == []
    assert [record.state for record in await registry.nodes()] == ["up"]
    assert await registry.pending([CID]) == {CID: [HERE]}


# -- each on purpose ---------------------------------------------------------------------------------------------------
async def test_an_entry_without_a_session(registry: RedisRegistry, server: redis.Redis, prefix: str) -> None:
    """It would never be reaped, for its node's set does not name it."""
    server.srem(f"{prefix}serverclients_{HERE}", SESSION)
    one = await made(registry, "unlisted")
    assert f"{prefix}client_bob" in one.sentence
    assert f"{prefix}serverclients_{HERE}" in one.sentence
    assert SESSION in one.sentence
    await gone(registry, one)
    assert server.hgetall(f"{prefix}client_bob") == {}
    assert [entry.openid for entry in await registry.sessions()] == [ANN]


async def test_an_entry_that_is_listed_again_is_spared(
    registry: RedisRegistry, server: redis.Redis, prefix: str
) -> None:
    server.srem(f"{prefix}serverclients_{HERE}", SESSION)
    one = await made(registry, "unlisted")
    assert await registry.claim([session()]) == [False]  # as every node does once a minute
    await gone(registry, one)
    assert len(await registry.sessions()) == 2


async def test_a_nodes_set_names_a_session_that_is_nobodys(
    registry: RedisRegistry, server: redis.Redis, prefix: str
) -> None:
    server.hdel(f"{prefix}client_bob", SESSION)
    one = await made(registry, "no_entry")
    assert f"{prefix}client_bob" in one.sentence
    assert f"{prefix}serverclients_{HERE}" in one.sentence
    await gone(registry, one)
    assert server.smembers(f"{prefix}serverclients_{HERE}") == {session(ANN).session_id}


async def test_a_session_that_has_got_its_entry_stays_in_the_set(
    registry: RedisRegistry, server: redis.Redis, prefix: str
) -> None:
    server.hdel(f"{prefix}client_bob", SESSION)
    one = await made(registry, "no_entry")
    await registry.claim([session()])
    await gone(registry, one)
    assert len(await registry.sessions()) == 2


async def test_a_set_of_a_node_that_is_not_there(registry: RedisRegistry, server: redis.Redis, prefix: str) -> None:
    key = f"{prefix}serverclients_{THERE}"
    server.sadd(key, *(f"{THERE}_u{number}_20240102102737" for number in range(3000)))
    one = await made(registry, "no_node")
    assert key in one.sentence
    assert one.node == THERE
    await gone(registry, one)
    assert not server.exists(key)


async def test_a_set_whose_node_has_come_stays(registry: RedisRegistry, server: redis.Redis, prefix: str) -> None:
    there = node(THERE, store="s2")
    server.sadd(f"{prefix}serverclients_{THERE}", session(at=there).session_id)
    one = await made(registry, "no_node")
    await registry.join(there)
    await registry.claim([session(at=there)])
    await registry.mend([one])
    assert await registry.contradictions() == []
    assert len(await registry.sessions(node=THERE)) == 1


async def test_a_node_in_the_hash_but_not_in_the_sorted_set(
    registry: RedisRegistry, server: redis.Redis, prefix: str
) -> None:
    """Nobody would list it, or see it die."""
    server.zrem(f"{prefix}websocket_servers", HERE)
    one = await made(registry, "unregistered")
    assert f"{prefix}websocket_server:{HERE}" in one.sentence
    assert f"{prefix}websocket_servers" in one.sentence
    await gone(registry, one)
    assert [record.age < LEASE for record in await registry.nodes()] == [True]


async def test_a_node_in_the_sorted_set_but_not_in_the_hash(
    registry: RedisRegistry, server: redis.Redis, prefix: str
) -> None:
    server.zadd(f"{prefix}websocket_servers", {THERE: 1})
    one = await made(registry, "dead")
    assert one.node == THERE
    assert f"{prefix}websocket_servers" in one.sentence
    await gone(registry, one)


async def test_a_record_without_a_time_to_live(registry: RedisRegistry, server: redis.Redis, prefix: str) -> None:
    """Such a node would be live for ever."""
    key = f"{prefix}websocket_server:{HERE}"
    server.persist(key)
    one = await made(registry, "no_lease")
    assert key in one.sentence
    await gone(registry, one)
    remaining: Any = server.pttl(key)
    assert 0 < remaining <= LEASE * 1000


async def test_a_pending_set_names_a_node_that_is_gone(
    registry: RedisRegistry, server: redis.Redis, prefix: str
) -> None:
    server.sadd(f"{prefix}pending_{CID}", THERE)
    one = await made(registry, "gone_holder")
    assert f"{prefix}pending_cid" in one.sentence
    assert one.node == THERE
    await gone(registry, one)


async def test_two_live_nodes_of_one_slug(registry: RedisRegistry, server: redis.Redis, prefix: str) -> None:
    """Found, and left to a person; when one has stopped, all is well."""
    server.hset(f"{prefix}websocket_server:127-0.0.1:8001", mapping={"incarnation": "i9", "store": "s9"})
    server.expire(f"{prefix}websocket_server:127-0.0.1:8001", 60)
    server.zadd(f"{prefix}websocket_servers", {"127-0.0.1:8001": 1})
    one = await made(registry, "same_slug")
    assert HERE in one.sentence
    assert "127-0.0.1:8001" in one.sentence
    await registry.mend([one])
    assert await made(registry, "same_slug") == one
    await registry.leave(node(Node("127-0.0.1:8001"), incarnation="i9"))
    assert await registry.contradictions() == []


@pytest.mark.parametrize(
    "key", [f"client_{BOB}", f"pending_{CID}", f"serverclients_{HERE}", f"websocket_server:{HERE}"]
)
async def test_something_else_stands_where_one_of_ours_belongs(
    registry: RedisRegistry, server: redis.Redis, prefix: str, key: str
) -> None:
    """It is named, not removed; nothing else is accused for it, and the rest is mended all the same."""
    server.set(prefix + key, "mine")
    server.sadd(f"{prefix}pending_{ANN}", THERE)
    contradictions = await registry.contradictions()
    assert {one.kind for one in contradictions} == {"gone_holder", "foreign"}
    await registry.mend(contradictions)
    (one,) = await registry.contradictions()
    assert one.kind == "foreign"
    assert prefix + key in one.sentence
    assert "string" in one.sentence
    assert server.get(prefix + key) == "mine"


async def test_a_session_under_another_users_name_leaves_nothing_behind(
    registry: RedisRegistry, server: redis.Redis, prefix: str
) -> None:
    """Mending one contradiction bares the next, until there is none."""
    entry: Any = server.hget(f"{prefix}client_bob", SESSION)
    server.hset(f"{prefix}client_eve", SESSION, entry)
    server.hdel(f"{prefix}client_bob", SESSION)
    for _ in range(2):
        await registry.mend(await registry.contradictions())
    assert await registry.contradictions() == []
    assert not server.exists(f"{prefix}client_eve")


# -- what is none ------------------------------------------------------------------------------------------------------
async def test_what_another_version_wrote_is_not_accused(
    registry: RedisRegistry, server: redis.Redis, prefix: str
) -> None:
    entries: Any = server.hgetall(f"{prefix}client_bob")
    later = json.dumps(json.loads(entries[SESSION]) | {"mood": "fine"})
    server.hset(f"{prefix}client_bob", mapping={SESSION: later, f"{HERE}_bob_1": "{"})
    server.sadd(f"{prefix}serverclients_{HERE}", f"{HERE}_bob_1")
    server.hset(f"{prefix}websocket_server:{HERE}", "mood", "fine")
    assert await registry.contradictions() == []


@pytest.mark.parametrize("prefix", ["t[a]*?-", "t\\"])
async def test_only_keys_of_our_prefix_are_looked_at(
    registry: RedisRegistry, server: redis.Redis, redis_url: str, prefix: str
) -> None:
    """However it is spelled: SCAN takes a pattern, and a prefix is none."""
    server.sadd("taaa-serverclients_x:1", "x:1_bob_1")
    server.srem(f"{prefix}serverclients_{HERE}", SESSION)
    await gone(registry, await made(registry, "unlisted"))
    assert server.delete("taaa-serverclients_x:1") == 1


async def test_keys_are_scanned_and_never_listed_at_once(redis_server: RedisServer) -> None:
    """KEYS holds up everybody else for as long as it takes."""
    async with open_registry(RedisSettings(url=redis_server.url, key_prefix="few-"), LEASE) as registry:
        with redis.Redis(port=redis_server.port) as client:
            client.config_resetstat()
            assert await registry.contradictions() == []
            used: Any = client.info("commandstats")
    assert "cmdstat_scan" in used
    assert "cmdstat_keys" not in used


async def test_a_storm_of_logins_and_restarts_is_never_accused(
    registry: RedisRegistry, redis_url: str, prefix: str
) -> None:
    """One hasty look sees sessions that are half claimed or half released; whoever looks again accuses nobody."""
    settings = RedisSettings(url=redis_url, key_prefix=prefix)
    numbers = iter(range(1, 1_000_000))

    async def log_in_and_out(own: RedisRegistry, record: Callable[[], NodeRecord]) -> None:
        """Always in this order for one session, as a node does it."""
        stay: list[SessionRecord] = []
        while True:
            users = [OpenId(f"u{next(numbers)}") for _ in range(40)]
            stay += [session(user, at=record(), number=next(numbers)) for user in users]
            await own.claim([replace(one, incarnation=record().incarnation) for one in stay])
            await own.release(stay[:40])
            del stay[:40]

    async def restart(own: RedisRegistry) -> None:
        nonlocal restarted
        while True:
            await trio.sleep(0.2)
            restarted = node(THERE, incarnation=f"i{next(numbers)}", store="s2")
            await own.join(restarted)

    restarted = node(THERE, store="s2")
    async with open_registry(settings, LEASE) as here, open_registry(settings, LEASE) as there:
        await there.join(restarted)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(log_in_and_out, here, node)
            nursery.start_soon(log_in_and_out, there, lambda: restarted)
            nursery.start_soon(restart, there)
            for _ in range(10):
                assert await standing(registry, 0.5) == []
            hasty: list[Contradiction] = []
            with trio.fail_after(30):
                while not hasty:
                    hasty = await registry.contradictions()
            nursery.cancel_scope.cancel()


async def test_a_session_id_of_any_form_is_looked_at(registry: RedisRegistry, server: redis.Redis, prefix: str) -> None:
    """Also one that no node would give."""
    for session_id in ("", "x", "_", f"{HERE}_", "[::1]:1_bob_1"):
        server.sadd(f"{prefix}serverclients_{HERE}", session_id)
        one = await made(registry, "no_entry")
        assert one.session_id == SessionId(session_id)
        await gone(registry, one)
