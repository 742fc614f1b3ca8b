"""The bus of nodes that share a directory: rows in `cluster.db`, and a doorbell for each node.

A publisher rings the receiver's doorbell, a datagram to a Unix socket in its directory, after the commit; a slow poll
is the backstop. Records are removed by `commit`, and after their retention.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import structlog
import trio

from yanchat import failpoint
from yanchat.backends.lane import Lane
from yanchat.backends.sqlite.database import Database
from yanchat.config import BUS_RETENTION
from yanchat.errors import BusUnavailable, ConfigError, StoreUnavailable
from yanchat.model import Node
from yanchat.names import ack_topic, message_topic, slug
from yanchat.ports import Batch, Bus
from yanchat.protocol import records
from yanchat.protocol.records import Record, Topic
from yanchat.telemetry import Counters

POLL_SECONDS = 1.0
PURGE_SECONDS = 600.0
BATCH = 500
MAX_QUEUED = 100_000
LONGEST_SOCKET_PATH = 107

_Job = tuple[Node, list[Record], "Callable[[bool], None] | None"]


def doorbell_path(state: Path, node: Node) -> Path:
    return state / "nodes" / slug(node) / "doorbell"


class SqliteBatch(Batch):
    def __init__(self, bus: SqliteBus, topic: str, found: Sequence[Record], last: int, caught_up: bool) -> None:
        self._bus, self._topic, self._last = bus, topic, last
        self.records, self.caught_up = found, caught_up

    async def commit(self) -> None:
        if self._last:
            failpoint.hit("offset-commit")
            await self._bus.forget(self._topic, self._last)


class SqliteBus(Bus):
    """Made by `open_bus`."""

    def __init__(self, lane: Lane[Database], state: Path, node: Node, counters: Counters) -> None:
        self._lane, self._state, self._node, self._counters = lane, state, node, counters
        self._queue: list[_Job] = []
        self._queued = 0
        self._wake, self._idle = trio.Event(), trio.Event()
        self._idle.set()
        self._rung: dict[Topic, trio.Event] = {"message": trio.Event(), "ack": trio.Event()}
        self._bell = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self.incarnation = ""

    def publish(self, node: Node, records: Sequence[Record], stored: Callable[[bool], None] | None = None) -> None:
        if self._queued + len(records) > MAX_QUEUED:
            self._counters.bus_failed += 1
            if stored is not None:
                stored(False)
            return
        self._counters.bus_published += len(records)
        self._queue.append((node, list(records), stored))
        self._queued += len(records)
        self._idle = trio.Event() if self._idle.is_set() else self._idle
        self._wake.set()

    async def run(self) -> None:
        """Publish what is queued, batch by batch."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            jobs, self._queue, self._queued = self._queue, [], 0
            ok = True
            failpoint.hit("bus-publish")
            try:
                await self._store(jobs)
            except StoreUnavailable as error:
                ok = False
                self._counters.bus_failed += 1
                structlog.get_logger().warning("bus.publish_failed", error=str(error))
            for _, _, stored in jobs:
                if stored is not None:
                    stored(ok)
            if not self._queue:
                self._idle.set()

    async def _store(self, jobs: list[_Job]) -> None:
        rows: list[tuple[str, str, bytes]] = []
        for node, batch, _ in jobs:
            for record in batch:
                headers, value = records.encode(record, self.incarnation)
                rows.append((_name(node, records.topic_of(record)), msgspec.json.encode(headers).decode(), value))
        await self._lane.run(
            lambda db: db.executemany(
                "INSERT INTO bus (topic, at, headers, value) VALUES (?, unixepoch(), ?, ?)", rows
            ).fetchall()
        )
        for node in {node for node, _, _ in jobs}:
            with suppress(OSError):  # it is down, or its bell is full and it wakes anyway
                self._bell.sendto(b"!", str(doorbell_path(self._state, node)))

    async def listen(self, bell: socket.socket) -> None:
        """Wake the subscriptions whenever somebody rings, and slowly without."""
        while True:
            with trio.move_on_after(POLL_SECONDS):
                await trio.lowlevel.wait_readable(bell)
            with suppress(BlockingIOError):
                while bell.recv(16):
                    pass
            for event in self._rung.values():
                event.set()

    @asynccontextmanager
    async def subscribe(self, topic: Topic) -> AsyncIterator[AsyncIterator[Batch]]:
        async with aclosing(self._batches(topic, _name(self._node, topic))) as batches:
            yield batches

    async def _batches(self, topic: Topic, name: str) -> AsyncGenerator[Batch, None]:
        last, end, first = 0, 0, True
        while True:
            self._rung[topic] = trio.Event()
            try:
                if first:
                    end = await self._lane.run(lambda db: _last_place(db, name), writes=False)
                rows = await self._rows(name, last)
            except StoreUnavailable as error:
                structlog.get_logger().warning("bus.read_failed", error=str(error))
                await self._rung[topic].wait()
                continue
            if rows or first:
                last = rows[-1][0] if rows else last
                known = _decode(rows)
                self._counters.bus_unreadable += len(rows) - len(known)
                first = False
                yield SqliteBatch(self, name, known, last, last >= end)
            if len(rows) < BATCH:
                await self._rung[topic].wait()

    async def read(self, node: Node, topic: Topic) -> list[Record]:
        name, found, last = _name(node, topic), list[Record](), 0
        try:
            while rows := await self._rows(name, last):
                found += _decode(rows)
                last = rows[-1][0]
        except StoreUnavailable as error:
            raise BusUnavailable(str(error)) from None
        return found

    async def _rows(self, name: str, last: int) -> list[tuple[Any, ...]]:
        sql = "SELECT place, headers, value FROM bus WHERE topic = ? AND place > ? ORDER BY place LIMIT ?"
        return await self._lane.run(lambda db: db.execute(sql, (name, last, BATCH)).fetchall(), writes=False)

    async def forget(self, name: str, last: int) -> None:
        await self._lane.run(
            lambda db: db.execute("DELETE FROM bus WHERE topic = ? AND place <= ?", (name, last)).fetchall(), lazy=True
        )

    async def purge(self) -> None:
        """Remove what nobody has fetched within the retention, the oldest first, a few at a time; every ten minutes."""
        old = "SELECT place FROM (SELECT place, at FROM bus ORDER BY place LIMIT ?) WHERE at < unixepoch() - ?"
        sql = f"DELETE FROM bus WHERE place IN ({old}) RETURNING place"
        while True:
            with suppress(StoreUnavailable):
                while await self._lane.run(lambda db: db.execute(sql, (BATCH, int(BUS_RETENTION))).fetchall()):
                    pass
            await trio.sleep(PURGE_SECONDS)

    async def lag(self) -> dict[Topic, int]:
        topics: tuple[Topic, ...] = ("message", "ack")
        names = {topic: _name(self._node, topic) for topic in topics}
        try:
            return await self._lane.run(lambda db: {t: _count(db, names[t]) for t in topics}, writes=False)
        except StoreUnavailable as error:
            raise BusUnavailable(str(error)) from None

    async def flush(self) -> None:
        await self._idle.wait()

    def lanes(self) -> dict[str, float]:
        return {"cluster": self._lane.silent}

    def silent(self) -> float:
        return self._lane.silent

    def close(self) -> None:
        self._bell.close()


@asynccontextmanager
async def open_bus(lane: Lane[Database], state: Path, node: Node, counters: Counters) -> AsyncIterator[SqliteBus]:
    """This node's bus, with its doorbell hung out. Its path is over 107 bytes: ConfigError."""
    path = doorbell_path(state, node)
    if len(os.fsencode(path)) > LONGEST_SOCKET_PATH:
        raise ConfigError(f"{path} is too long for a Unix socket; choose a shorter state directory.")
    bus = SqliteBus(lane, state, node, counters)
    bell = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        path.unlink(missing_ok=True)
        bell.bind(str(path))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bus.run)
            nursery.start_soon(bus.listen, bell)
            nursery.start_soon(bus.purge)
            yield bus
            nursery.cancel_scope.cancel()
    finally:
        bell.close()
        bus.close()
        path.unlink(missing_ok=True)


def _name(node: Node, topic: Topic) -> str:
    return message_topic(node) if topic == "message" else ack_topic(node)


def _decode(rows: Sequence[tuple[Any, ...]]) -> list[Record]:
    """Those that can be read."""
    found = (records.decode(msgspec.json.decode(headers, type=dict[str, str]), value) for _, headers, value in rows)
    return [record for record in found if record is not None]


def _count(db: Database, name: str) -> int:
    ((records,),) = db.execute("SELECT count(*) FROM bus WHERE topic = ?", (name,))
    return int(records)


def _last_place(db: Database, name: str) -> int:
    ((place,),) = db.execute("SELECT coalesce(max(place), 0) FROM bus WHERE topic = ?", (name,))
    return int(place)
