"""The nodes of one directory: doorbells, leases by the boot clock, and a `cluster.db` that is locked or odd."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import apsw
import pytest
import structlog
import trio

from tests.contracts.backends import until
from tests.contracts.examples import BOB, HERE, THERE, node, session
from yanchat.backends.sqlite import bus as bus_module
from yanchat.backends.sqlite import database
from yanchat.backends.sqlite.bus import SqliteBus, doorbell_path, open_bus
from yanchat.backends.sqlite.cluster import boot_clock, open_cluster
from yanchat.backends.sqlite.database import Reader
from yanchat.backends.sqlite.registry import SqliteRegistry
from yanchat.config import BUS_RETENTION
from yanchat.errors import ConfigError, RegistryUnavailable
from yanchat.model import Node, SessionId
from yanchat.ports import Batch
from yanchat.protocol.records import Pull
from yanchat.telemetry import Counters

PATIENCE = 30.0


def pull(number: int) -> Pull:
    return Pull(HERE, BOB, SessionId(f"s{number}"))


@asynccontextmanager
async def connect(state: Path, name: Node, counters: Counters | None = None) -> AsyncIterator[SqliteBus]:
    doorbell_path(state, name).parent.mkdir(parents=True, exist_ok=True)
    async with open_cluster(state, 10.0) as (lane, _), open_bus(lane, state, name, counters or Counters()) as bus:
        yield bus


@contextmanager
def outsider(state: Path) -> Iterator[apsw.Connection]:
    """Somebody else with the file open."""
    connection = apsw.Connection(str(state / "cluster.db"))
    connection.set_busy_timeout(10_000)
    try:
        yield connection
    finally:
        connection.close()


@contextmanager
def locked(state: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with outsider(state) as other, monkeypatch.context() as patch:
        patch.setattr(database, "BUSY_SECONDS", 0.05)
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


async def numbers(batches: AsyncIterator[Batch]) -> list[int]:
    """Of the records in the next batch."""
    with trio.fail_after(PATIENCE):
        batch = await anext(batches)
    found = [int(record.session_id[1:]) for record in batch.records if isinstance(record, Pull)]
    assert len(found) == len(batch.records)
    return found


# -- the directory -----------------------------------------------------------------------------------------------------
async def test_a_state_directory_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file cannot be used: File exists; choose another --state-dir"):
        async with open_cluster(tmp_path / "file", 10.0):
            pass


async def test_a_doorbell_path_that_is_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    state = tmp_path / ("x" * 100)
    with pytest.raises(ConfigError, match="too long for a Unix socket; choose a shorter state directory"):
        async with connect(state, HERE):
            pass


async def test_a_doorbell_that_a_killed_node_left_is_replaced(tmp_path: Path) -> None:
    async with connect(tmp_path, HERE):
        pass
    assert not doorbell_path(tmp_path, HERE).exists()
    doorbell_path(tmp_path, HERE).touch()
    async with connect(tmp_path, HERE):
        assert doorbell_path(tmp_path, HERE).is_socket()


# -- doorbells ---------------------------------------------------------------------------------------------------------
async def test_the_doorbell_wakes_the_receiver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus_module, "POLL_SECONDS", 1e6)
    async with (
        connect(tmp_path, HERE) as here,
        connect(tmp_path, THERE) as there,
        there.subscribe("message") as batches,
    ):
        assert await numbers(batches) == []
        for number in range(5):
            here.publish(THERE, [pull(number)])
            assert await numbers(batches) == [number]


async def test_without_a_bell_records_are_found_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus_module, "POLL_SECONDS", 0.05)
    async with (
        connect(tmp_path, HERE) as here,
        connect(tmp_path, THERE) as there,
        there.subscribe("message") as batches,
    ):
        assert await numbers(batches) == []
        doorbell_path(tmp_path, THERE).unlink()
        here.publish(THERE, [pull(1)])
        assert await numbers(batches) == [1]


# -- the file ----------------------------------------------------------------------------------------------------------
async def test_what_is_committed_leaves_the_file(tmp_path: Path) -> None:
    async with connect(tmp_path, HERE) as here, here.subscribe("message") as batches:
        here.publish(HERE, [pull(number) for number in range(10)])
        await here.flush()
        while True:
            with trio.fail_after(PATIENCE):
                batch = await anext(batches)
            await batch.commit()
            if batch.records:
                break
        with outsider(tmp_path) as other:
            assert other.execute("SELECT count(*) FROM bus").fetchone() == (0,)


async def test_records_older_than_their_retention_are_removed(tmp_path: Path) -> None:
    async with connect(tmp_path, HERE) as here:
        here.publish(THERE, [pull(number) for number in range(1200)])
        await here.flush()
    with outsider(tmp_path) as other:
        other.execute("UPDATE bus SET at = at - ? WHERE place <= 1100", (int(BUS_RETENTION) + 60,))
    async with connect(tmp_path, HERE):
        with outsider(tmp_path) as other:

            async def purged() -> bool:
                return other.execute("SELECT count(*) FROM bus").fetchone() == (100,)

            await until(purged)
    async with connect(tmp_path, THERE) as there, there.subscribe("message") as batches:
        assert await numbers(batches) == list(range(1100, 1200))


async def test_a_record_that_is_not_understood_is_counted_and_passed_over(tmp_path: Path) -> None:
    counters = Counters()
    async with connect(tmp_path, HERE, counters) as here:
        here.publish(HERE, [pull(1)])
        await here.flush()
        with outsider(tmp_path) as other:
            new = """INSERT INTO bus (topic, at, headers, value) SELECT topic, at, '{"kind": "new"}', value FROM bus"""
            other.execute(new)
        here.publish(HERE, [pull(2)])
        await here.flush()
        async with here.subscribe("message") as batches:
            assert await numbers(batches) == [1, 2]
    assert counters.bus_unreadable == 1


@pytest.mark.plain
async def test_what_cannot_be_stored_is_told_and_the_next_goes_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counters, answers = Counters(), list[bool]()
    async with connect(tmp_path, HERE, counters) as here:
        with locked(tmp_path, monkeypatch):
            here.publish(HERE, [pull(1)], answers.append)
            await here.flush()
            assert answers == [False]
        here.publish(HERE, [pull(2)], answers.append)
        await here.flush()
        assert answers == [False, True]
        async with here.subscribe("message") as batches:
            assert await numbers(batches) == [2]
    assert counters.bus_failed == 1


async def test_the_queue_is_bounded_and_publish_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus_module, "MAX_QUEUED", 3)
    answers: list[tuple[int, bool]] = []

    def stored(number: int) -> Callable[[bool], None]:
        return lambda ok: answers.append((number, ok))

    async with connect(tmp_path, HERE) as here:
        here.publish(HERE, [pull(1), pull(2)], stored(1))
        here.publish(HERE, [pull(3), pull(4)], stored(2))
        here.publish(HERE, [pull(5)], stored(3))
        await here.flush()
        assert sorted(answers) == [(1, True), (2, False), (3, True)]
        here.publish(HERE, [pull(6), pull(7), pull(8)], stored(4))
        await here.flush()
        assert answers[-1] == (4, True)


async def test_a_subscription_outlives_a_file_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bus_module, "POLL_SECONDS", 0.05)
    found: list[list[int]] = []
    async with connect(tmp_path, HERE) as here, here.subscribe("message") as batches:

        async def read() -> None:
            while [1] not in found:
                found.append(await numbers(batches))

        with outsider(tmp_path) as other, structlog.testing.capture_logs() as logs:
            other.execute("ALTER TABLE bus RENAME TO hidden")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)

                async def failed() -> bool:
                    return any(line["event"] == "bus.read_failed" for line in logs)

                await until(failed)
                assert found == []
                other.execute("ALTER TABLE hidden RENAME TO bus")
                here.publish(HERE, [pull(1)])
    assert found in ([[1]], [[], [1]])


# -- leases ------------------------------------------------------------------------------------------------------------
async def test_leases_lapse_by_the_boot_clock(tmp_path: Path) -> None:
    async with open_cluster(tmp_path, 0.3) as (_, registry):
        await registry.join(node())
        before = boot_clock()

        async def dead() -> bool:
            return [record.state for record in await registry.nodes()] == ["dead"]

        await until(dead)
        assert boot_clock() - before >= 290


async def test_nothing_outlives_a_restart_of_the_machine(tmp_path: Path) -> None:
    async with open_cluster(tmp_path, 10.0) as (lane, registry):
        await registry.join(node())
        await registry.claim([session()])
        await registry.enter(HERE, [BOB])
        reader = Reader(tmp_path / "cluster.db")
        after = SqliteRegistry(lane, reader, "another-boot", lambda: 5000, 10.0)
        (record,) = await after.nodes()
        assert (record.state, record.age) == ("dead", 5.0)
        assert not await after.locate([BOB])
        assert not await after.pending([BOB])
        await after.join(node(incarnation="i2", store="s2"))  # nobody is live
        await after.reap(await after.sessions())
        assert await after.sessions() == []
        reader.close()


@pytest.mark.plain
async def test_a_locked_file_is_a_registry_that_cannot_be_reached_but_can_be_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_cluster(tmp_path, 10.0) as (_, registry):
        await registry.join(node())
        await registry.claim([session()])
        with locked(tmp_path, monkeypatch):
            with pytest.raises(RegistryUnavailable, match=r"cluster\.db cannot be used"):
                await registry.claim([session(number=2)])
            assert len((await registry.locate([BOB]))[BOB]) == 1
        assert await registry.claim([session(number=2)]) == [True]
