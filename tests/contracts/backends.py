"""How the suites make each backend, let time pass on it, and fill its disk."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Protocol

import trio

from yanchat.backends.memory import MemoryBus, MemoryRegistry, MemoryStore
from yanchat.backends.sqlite.bus import doorbell_path, open_bus
from yanchat.backends.sqlite.cluster import open_cluster
from yanchat.backends.sqlite.store import open_store
from yanchat.model import Node
from yanchat.ports import Bus, Inbox, Outbox, Registry
from yanchat.telemetry import Counters

LEASE = 10.0


class Store(Outbox, Inbox):
    """One message table."""


class Table(Protocol):
    """A message table whose node may be restarted, and whose disk may fill up."""

    def open(self) -> AbstractAsyncContextManager[Store]: ...
    async def fill(self, store: Store) -> None:
        """From now on the store can take nothing more."""

    async def make_room(self, store: Store) -> None: ...


class Cluster:
    """A registry as two nodes see it, and the passing of time."""

    def __init__(self, first: Registry, second: Registry, lapse: Callable[[], Awaitable[None]]) -> None:
        self.first, self.second = first, second
        self.lapse = lapse
        """Lets every lease lapse that stands now; by a clock of the test's, or, with a short one, by waiting."""


class Buses(Protocol):
    """The bus of a cluster, of which nodes come and go."""

    def connect(self, node: Node) -> AbstractAsyncContextManager[Bus]: ...


# -- message tables ----------------------------------------------------------------------------------------------------
class MemoryTable:
    def __init__(self) -> None:
        self._store = MemoryStore("memory")

    @asynccontextmanager
    async def open(self) -> AsyncIterator[MemoryStore]:
        yield self._store

    async def fill(self, store: MemoryStore) -> None:
        store.writable = False

    async def make_room(self, store: MemoryStore) -> None:
        store.writable = True


class SqliteTable:
    def __init__(self, directory: Path) -> None:
        self._path = directory / "node.db"

    def open(self) -> AbstractAsyncContextManager[Store]:
        return open_store(self._path)  # type: ignore[return-value]

    async def fill(self, store: Store) -> None:
        await store._lane.run(lambda db: db.connection.pragma("max_page_count", 1))

    async def make_room(self, store: Store) -> None:
        await store._lane.run(lambda db: db.connection.pragma("max_page_count", 1 << 30))


TABLES: dict[str, Callable[[Path], Table]] = {"memory": lambda _: MemoryTable(), "sqlite": SqliteTable}


# -- registries --------------------------------------------------------------------------------------------------------
@asynccontextmanager
async def memory_cluster(_: Path) -> AsyncIterator[Cluster]:
    now = 1000.0

    async def lapse() -> None:
        nonlocal now
        now += LEASE + 0.001

    registry = MemoryRegistry(lambda: now, LEASE)
    yield Cluster(registry.view(), registry.view(), lapse)


@asynccontextmanager
async def sqlite_cluster(directory: Path) -> AsyncIterator[Cluster]:
    now = 1_000_000

    async def lapse() -> None:
        nonlocal now
        now += int(LEASE * 1000) + 1

    async with (
        open_cluster(directory, LEASE, lambda: now) as (_, first),
        open_cluster(directory, LEASE, lambda: now) as (_, second),
    ):
        yield Cluster(first, second, lapse)


CLUSTERS: dict[str, Callable[[Path], AbstractAsyncContextManager[Cluster]]] = {
    "memory": memory_cluster,
    "sqlite": sqlite_cluster,
}


# -- buses -------------------------------------------------------------------------------------------------------------
class SqliteBuses:
    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @asynccontextmanager
    async def connect(self, node: Node) -> AsyncIterator[Bus]:
        doorbell_path(self._directory, node).parent.mkdir(parents=True, exist_ok=True)
        async with (
            open_cluster(self._directory, LEASE) as (lane, _),
            open_bus(lane, self._directory, node, Counters()) as bus,
        ):
            yield bus


BUSES: dict[str, Callable[[Path], Buses]] = {"memory": lambda _: MemoryBus(), "sqlite": SqliteBuses}


# -- waiting -----------------------------------------------------------------------------------------------------------
async def until(true: Callable[[], Awaitable[bool]], seconds: float = 20.0) -> None:
    """Wait for a condition; TooSlowError when it does not come true."""
    with trio.fail_after(seconds):
        while not await true():
            await trio.sleep(0.02)
