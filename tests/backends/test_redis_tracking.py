"""Where a user is, is asked once and then remembered, until Redis says that it has changed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import redis
import trio

from tests.contracts.examples import ANN, BOB, HERE, THERE, node, session
from tests.services import RedisServer
from yanchat.backends.redis import tracking
from yanchat.backends.redis.connection import Command, Connection
from yanchat.backends.redis.registry import RedisRegistry, open_registry
from yanchat.config import RedisSettings
from yanchat.errors import RegistryUnavailable

LEASE = 10.0
PATIENCE = 30.0


@pytest.fixture(autouse=True)
def kept_for(monkeypatch: pytest.MonkeyPatch) -> float:
    """For hours: no test passes only because what is known grows old. How long it is otherwise, in seconds."""
    usual = tracking.KEPT_FOR
    monkeypatch.setattr(tracking, "KEPT_FOR", 10_000.0)
    return usual


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Command]:
    """The commands that any registry has sent."""
    sent: list[Command] = []
    send = Connection.send

    def kept(connection: Connection, commands: Sequence[Command]) -> list[Any]:
        sent.extend(commands)
        return send(connection, commands)

    monkeypatch.setattr(Connection, "send", kept)
    return sent


@pytest.fixture
async def registry(redis_server: RedisServer, server: redis.Redis) -> AsyncIterator[RedisRegistry]:
    """Bob has a session; he is known by now."""
    async with open_registry(RedisSettings(url=redis_server.url), LEASE) as opened:
        await opened.join(node())
        await opened.claim([session()])
        await opened.nodes()
        yield opened


@pytest.fixture
async def other(redis_server: RedisServer, server: redis.Redis) -> AsyncIterator[RedisRegistry]:
    async with open_registry(RedisSettings(url=redis_server.url), LEASE) as opened:
        await opened.join(node(THERE))
        yield opened


async def remembered(registry: RedisRegistry, asked: list[Command]) -> None:
    """Wait until Bob is found without anybody being asked."""
    with trio.fail_after(PATIENCE):
        while True:
            assert (await registry.locate([BOB]))[BOB]
            asked.clear()
            await registry.locate([BOB])
            if not asked:
                return
            await trio.sleep(0.01)


async def found(registry: RedisRegistry) -> set[str]:
    return {entry.session_id for entry in (await registry.locate([BOB])).get(BOB, ())}


async def until_found(registry: RedisRegistry, *sessions: str) -> None:
    with trio.fail_after(PATIENCE):
        while await found(registry) != set(sessions):
            await trio.sleep(0.001)


HIS, SECOND = session().session_id, session(number=2).session_id


async def test_who_has_been_asked_for_is_known(registry: RedisRegistry, asked: list[Command]) -> None:
    """Only for those who are not, Redis is asked."""
    await remembered(registry, asked)
    await registry.locate([ANN, BOB])
    assert ("HGETALL", "yan_client_ann") in asked
    assert ("HGETALL", "yan_client_bob") not in asked


async def test_who_is_nowhere_is_asked_for_each_time(registry: RedisRegistry, asked: list[Command]) -> None:
    await remembered(registry, asked)
    for _ in range(3):
        asked.clear()
        assert not (await registry.locate([ANN])).get(ANN)
        assert asked


async def test_what_others_write_is_heard_of(
    registry: RedisRegistry, other: RedisRegistry, asked: list[Command]
) -> None:
    for _ in range(50):
        await registry.locate([BOB])
        await other.claim([session(number=2)])
        await until_found(registry, HIS, SECOND)
        await other.release([session(number=2)])
        await until_found(registry, HIS)
    assert asked


async def test_what_one_has_written_oneself_is_known_at_once(registry: RedisRegistry, asked: list[Command]) -> None:
    await remembered(registry, asked)
    for _ in range(50):
        await registry.locate([BOB])
        await registry.claim([session(number=2)])
        assert await found(registry) == {HIS, SECOND}
        await registry.release([session(number=2)])
        assert await found(registry) == {HIS}


async def test_who_stands_in_a_pending_set_is_asked_for(registry: RedisRegistry, asked: list[Command]) -> None:
    """First into the set, then a look: a login in between is not missed."""
    await remembered(registry, asked)
    for _ in range(50):
        await registry.locate([BOB])
        await registry.enter(HERE, [BOB])
        asked.clear()
        await registry.locate([BOB])
        assert ("HGETALL", "yan_client_bob") in asked


async def test_who_is_said_to_have_come_or_gone_is_asked_for(registry: RedisRegistry, asked: list[Command]) -> None:
    """The word of another node may be quicker than Redis'."""
    await remembered(registry, asked)
    registry.forget([BOB])
    await registry.locate([BOB])
    assert ("HGETALL", "yan_client_bob") in asked


async def test_an_answer_that_was_overtaken_is_not_kept(
    registry: RedisRegistry, other: RedisRegistry, asked: list[Command]
) -> None:
    """A write that comes while the question is under way."""
    await remembered(registry, asked)
    for number in range(2, 52):
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(registry.locate, [BOB])
            nursery.start_soon(other.claim, [session(number=number)])
        await until_found(registry, HIS, *(session(number=one).session_id for one in range(2, number + 1)))


async def test_an_answer_is_kept_only_if_nothing_was_heard_since_it_was_asked_for() -> None:
    """Each step at its place, without a server: a race would meet it once in a thousand."""
    known = tracking.Tracking(redis.Redis, "yan_client_")
    known.close()  # its thread ends when it is started
    known._turn(on=True)
    answer = {BOB: [session()], ANN: [session(ANN)]}
    first = known.ask([BOB, ANN])
    known._heard(["invalidate", ["yan_client_bob"]])
    known.keep(first, [BOB, ANN], answer)
    assert known.known([BOB, ANN]) == {ANN: [session(ANN)]}
    second = known.ask([BOB])
    known._turn(on=False)
    known.keep(second, [BOB], answer)
    third = known.ask([BOB])
    known._turn(on=True)
    known.keep(third, [BOB], answer)
    assert known.known([BOB, ANN]) == {}


async def test_after_flushall_nothing_is_known(
    registry: RedisRegistry, server: redis.Redis, asked: list[Command]
) -> None:
    await remembered(registry, asked)
    server.flushall()
    await until_found(registry)


async def test_a_node_that_is_found_dead_has_nobody_any_more(
    registry: RedisRegistry, other: RedisRegistry, server: redis.Redis, asked: list[Command]
) -> None:
    await other.claim([session(number=2, at=node(THERE))])
    await registry.nodes()
    await remembered(registry, asked)
    server.delete(f"yan_websocket_server:{THERE}")
    await registry.nodes()
    assert await found(registry) == {HIS}


async def test_a_lease_that_lapses_is_noticed_by_itself(
    registry: RedisRegistry, server: redis.Redis, asked: list[Command], monkeypatch: pytest.MonkeyPatch, kept_for: float
) -> None:
    """No key of the user changes by it, so what is known grows old."""
    await remembered(registry, asked)
    monkeypatch.setattr(tracking, "KEPT_FOR", kept_for)
    server.delete(f"yan_websocket_server:{HERE}")
    await until_found(registry)


async def test_without_the_connection_everybody_is_asked_for(
    registry: RedisRegistry, server: redis.Redis, asked: list[Command]
) -> None:
    """It is lost with what it would have said; a second later it is there again."""
    await remembered(registry, asked)
    entries: Any = server.hgetall("yan_client_bob")
    for number in range(3):
        clients: Any = server.client_list()
        (listening,) = [one for one in clients if "t" in one["flags"]]
        server.client_kill_filter(_id=listening["id"])
        server.hset("yan_client_bob", f"{HIS}-{number}", entries[HIS])
        await until_found(registry, HIS, *(f"{HIS}-{one}" for one in range(number + 1)))
        await remembered(registry, asked)


async def test_a_server_that_stands_still_is_known_no_more(
    registry: RedisRegistry, redis_server: RedisServer, asked: list[Command]
) -> None:
    """What is remembered serves for a moment; then calls fail, as without it, and it comes again by itself."""
    await remembered(registry, asked)
    redis_server.pause()
    try:
        with trio.fail_after(PATIENCE), pytest.raises(RegistryUnavailable):
            while True:
                await registry.locate([BOB])
                await trio.sleep(0.05)
    finally:
        redis_server.resume()
    with trio.fail_after(PATIENCE):
        while not await _serves(registry):
            await trio.sleep(0.05)
    await remembered(registry, asked)


async def _serves(registry: RedisRegistry) -> bool:
    try:
        await registry.epoch()
    except RegistryUnavailable:
        return False
    return True


async def test_whom_redis_does_not_tell_asks_each_time(
    registry: RedisRegistry,
    redis_server: RedisServer,
    server: redis.Redis,
    asked: list[Command],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A user without the right to it is served like any other."""
    server.acl_setuser("quiet", enabled=True, passwords=["+q"], keys=["*"], commands=["+@all", "-client|tracking"])
    settings = RedisSettings(url=f"redis://quiet:q@127.0.0.1:{redis_server.port}/0")
    try:
        async with open_registry(settings, LEASE) as opened:
            await opened.join(node(THERE))
            await opened.locate([BOB])
            with trio.fail_after(PATIENCE):
                while "registry.not_tracked" not in capsys.readouterr().out:
                    await trio.sleep(0.01)
            for _ in range(10):
                asked.clear()
                assert await found(opened) == {HIS}
                assert asked
    finally:
        server.acl_deluser("quiet")


async def test_users_of_another_prefix_are_others(
    registry: RedisRegistry, redis_server: RedisServer, asked: list[Command]
) -> None:
    """Also where one prefix begins with the other."""
    await remembered(registry, asked)
    async with open_registry(RedisSettings(url=redis_server.url, key_prefix="yan_client_"), LEASE) as opened:
        await opened.join(node())
        await opened.claim([session(number=7)])
        assert await found(opened) == {session(number=7).session_id}
    assert await found(registry) == {HIS}
