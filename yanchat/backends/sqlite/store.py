"""Outbox and inbox on one SQLite file: the local message table. Every commit is on disk before it returns."""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, TypeVar

from yanchat import failpoint
from yanchat.backends.lane import Lane
from yanchat.backends.sqlite import adoption, counters, rows
from yanchat.backends.sqlite.books import FileBooks
from yanchat.backends.sqlite.database import Database, Schema
from yanchat.backends.sqlite.search import search
from yanchat.errors import StoreUnavailable
from yanchat.model import ACKED, AckEntry, Envelope, Key, MessageId, OpenId, Row, Step, Totals
from yanchat.ports import Inbox, Outbox, RowFilter, Tray, Waiting

R = TypeVar("R")
STEPS: Final = ("ALTER TABLE outbox ADD COLUMN traceparent TEXT NOT NULL DEFAULT ''",)
"""How the tables of earlier versions become those of schema.sql."""
LARGEST: Final = 65536
"""Bytes that must fit where the store was full before: a large message."""
_TRAYS = {
    "messages": "WHERE recipient = ? AND rank = 0 AND moved_at = 0 ORDER BY ord LIMIT ?",
    "notices": "WHERE sender = ? AND rank > told AND moved_at = 0 ORDER BY ord LIMIT ?",
}
_USERS = """SELECT recipient FROM outbox WHERE rank = 0 AND moved_at = 0 AND recipient > ?1
 UNION SELECT sender FROM outbox WHERE rank > told AND moved_at = 0 AND sender > ?1 ORDER BY 1 LIMIT ?2"""
_WAITING = """SELECT sender, recipient, count(*) FROM outbox WHERE rank = 0 AND moved_at = 0
 GROUP BY recipient, sender"""
_OLD = """WHERE ord IN (SELECT ord FROM outbox INDEXED BY open_messages WHERE rank = 0 AND moved_at = 0 AND ord < ?
 ORDER BY ord LIMIT ?) ORDER BY ord"""
_LONG_UNTOLD = "INDEXED BY untold_notices WHERE rank > told AND moved_at = 0 AND settled_at < ? ORDER BY ord LIMIT ?"


@asynccontextmanager
async def open_store(
    path: Path, disk_reserve: int = 0, committed: Callable[[float], None] | None = None
) -> AsyncIterator[Store]:
    """Open or make the file. Below `disk_reserve` free bytes nothing more is accepted; acks and steps still are.

    `committed` is told, in the store's thread, how many seconds each writing transaction took.
    """
    schema = Schema((files("yanchat.backends.sqlite") / "schema.sql").read_text(), STEPS)
    lane = Lane("store", lambda: Database(path, schema, full=True), committed)
    await lane.open()
    try:
        store = Store(lane, path.parent, disk_reserve)
        store.books = FileBooks(path)
        store.store_id = await lane.run(_begin)
        yield store
    finally:
        await lane.close()


class Store(Outbox, Inbox):
    """Made by `open_store`."""

    def __init__(self, lane: Lane[Database], directory: Path, disk_reserve: int) -> None:
        self._lane, self._directory, self._reserve = lane, directory, disk_reserve
        self._has_room = True
        """For messages, when that was last looked at; acks and steps are written without."""

    # -- outbox --------------------------------------------------------------------------------------------------------
    async def add(
        self, messages: Sequence[Sequence[Envelope]], *, quiet: Collection[MessageId] = ()
    ) -> list[list[bool]]:
        def work(db: Database) -> list[list[bool]]:
            self._check_room()
            failpoint.hit("before-commit")
            return rows.add(db, messages, quiet)

        news = await self._lane.run(work)
        failpoint.hit("after-commit")
        return news

    async def record(self, steps: Sequence[Step]) -> None:
        await self._lane.run(lambda db: rows.record(db, steps), lazy=True)

    async def settle(self, keys: Sequence[Key], *, rank: int, told: int, at: int) -> list[Row]:
        return await self._lane.run(lambda db: rows.settle(db, keys, rank, told, at))

    async def open_rows(self, openid: OpenId, tray: Tray, limit: int, size: int) -> list[Row]:
        sql = f"SELECT {rows.COLUMNS} FROM outbox {_TRAYS[tray]}"

        def work(db: Database) -> list[Row]:
            found, left = list[Row](), size
            for columns in db.execute(sql, (openid, limit)):  # what is not asked for is not read
                found.append(rows.row(columns))
                left -= len(found[-1].envelope.text)
                if left <= 0:
                    break
            return found

        return await self._read(work)

    async def users_with_open_rows(self, after: str, limit: int) -> list[OpenId]:
        return await self._read(lambda db: [OpenId(user) for (user,) in db.execute(_USERS, (after, limit))])

    async def waiting(self) -> list[Waiting]:
        return await self._read(lambda db: [Waiting(*columns) for columns in db.execute(_WAITING)])

    async def find(self, keys: Sequence[Key]) -> list[Row | None]:
        found = await self._read(lambda db: rows.find(db, keys))
        return [found.get(key) for key in keys]

    async def search(self, what: RowFilter) -> list[Row]:
        return await search(self._lane, what)

    async def expired(self, accepted_before: int, settled_before: int, limit: int) -> list[Row]:
        old = await self._rows(_OLD, accepted_before << 16, limit)
        return old + await self._rows(_LONG_UNTOLD, settled_before, limit - len(old))

    async def movable(self, after: int, limit: int) -> list[Row]:
        return await self._rows(adoption.MOVABLE, after, limit)

    async def adopt(self, rows: Sequence[Row], at: int) -> list[Row]:
        def work(db: Database) -> list[Row]:
            self._check_room()
            return adoption.adopt(db, rows, at)

        return await self._lane.run(work)

    async def moved(self, keys: Sequence[Key], at: int) -> None:
        await self._lane.run(lambda db: adoption.moved(db, keys, at))

    async def totals(self) -> Totals:
        return await self._read(counters.totals)

    async def purge(self, before: int, limit: int) -> int:
        return await self._lane.run(lambda db: rows.purge(db, before, limit))

    async def last_order(self) -> int:
        return await self._read(rows.last_order)

    async def mark(self, name: str, value: int) -> int:
        return await self._lane.run(lambda db: rows.mark(db, name, value))

    async def marks(self, prefix: str) -> dict[str, int]:
        return await self._read(lambda db: rows.marks(db, prefix))

    def healthy(self) -> bool:
        return self._lane.last_ok and self._has_room

    async def check(self) -> None:
        def work(db: Database) -> None:
            self._check_room()
            if failed:
                db.execute("INSERT OR REPLACE INTO meta VALUES ('room', hex(zeroblob(?)))", (LARGEST // 2,))

        failed = not self._lane.last_ok
        with suppress(StoreUnavailable):
            await self._lane.run(work, writes=failed)
            if failed:
                await self._lane.run(lambda db: db.execute("DELETE FROM meta WHERE name = 'room'"))

    def free_bytes(self) -> int:
        disk = os.statvfs(self._directory)
        return disk.f_bavail * disk.f_frsize

    def keep_free(self, disk_reserve: int) -> None:
        """From now on accept nothing below so many free bytes."""
        self._reserve = disk_reserve

    def lanes(self) -> dict[str, float]:
        return {"store": self._lane.silent}

    # -- inbox ---------------------------------------------------------------------------------------------------------
    async def known(self, keys: Sequence[Key]) -> list[bool]:
        return await self._read(lambda db: rows.known(db, keys))

    async def ack(self, entries: Sequence[AckEntry]) -> list[int]:
        own = [
            Step(entry.order, ACKED, attempts=entry.attempts, sent_at=entry.sent_at, settled_at=entry.at)
            for entry in entries
            if entry.order
        ]

        def work(db: Database) -> list[int]:
            failpoint.hit("before-ack-commit")
            rows.acked(db, own)
            return rows.ack(db, entries)

        places = await self._lane.run(work)
        failpoint.hit("after-ack-commit")
        return places

    async def recipients(self, message_id: MessageId) -> tuple[dict[OpenId, int], list[OpenId]]:
        return await self._read(lambda db: rows.recipients(db, message_id))

    async def unsent(self, after: int, limit: int) -> list[tuple[int, AckEntry]]:
        return await self._read(lambda db: rows.unsent(db, after, limit))

    async def published(self, place: int) -> None:
        await self._lane.run(lambda db: counters.keep_highest(db, "published", place), lazy=True)

    def _check_room(self) -> None:
        self._has_room = not self._reserve or self.free_bytes() >= self._reserve
        if not self._has_room:
            raise StoreUnavailable("The disk of this node is nearly full (limits.disk_reserve); try again later.")

    async def _read(self, work: Callable[[Database], R]) -> R:
        return await self._lane.run(work, writes=False)

    async def _rows(self, where: str, *values: Any) -> list[Row]:
        sql = f"SELECT {rows.COLUMNS} FROM outbox {where}"
        return await self._read(lambda db: [rows.row(columns) for columns in db.execute(sql, values)])


def _begin(db: Database) -> str:
    counters.begin(db)
    db.execute("INSERT OR IGNORE INTO meta VALUES ('store', ?)", (secrets.token_hex(16),))
    ((store_id,),) = db.execute("SELECT value FROM meta WHERE name = 'store'")
    return str(store_id)
