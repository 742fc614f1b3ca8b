"""Outbox and inbox on one SQLite file: the local message table. Every commit is on disk before it returns."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

from yanchat import failpoint
from yanchat.backends.lane import Lane
from yanchat.backends.sqlite.database import Database
from yanchat.errors import StoreUnavailable
from yanchat.model import ACKED, OPEN, AckEntry, Envelope, Key, MessageId, Node, OpenId, Row, Step, Totals
from yanchat.ports import Inbox, Outbox, RowFilter, Tray, Waiting
from yanchat.protocol.ids import order_from_message_id

_COLUMNS = (
    "ord, message_id, recipient, sender, sender_name, request_id, text, file_type, accepted_at,"
    " rank, told, attempts, sent_at, arrived_at, settled_at, told_at"
)
_ADD = f"INSERT INTO outbox ({_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,0,?,0,0,0,0,0)"
_STEP = """UPDATE outbox SET settled_at = CASE WHEN ?2 > rank THEN ?7 ELSE settled_at END,
 rank = max(rank, ?2), told_at = CASE WHEN ?3 > told THEN ?8 ELSE told_at END, told = max(told, ?3),
 attempts = max(attempts, ?4), sent_at = CASE WHEN sent_at = 0 THEN ?5 ELSE sent_at END,
 arrived_at = CASE WHEN arrived_at = 0 THEN ?6 ELSE arrived_at END WHERE ord = ?1"""
_TRAYS = {
    "messages": "WHERE recipient = ? AND rank = 0 ORDER BY ord LIMIT ?",
    "notices": "WHERE sender = ? AND rank > told ORDER BY ord LIMIT ?",
}
_STATES = {
    "pending": "rank = 0",
    "expired": "rank = 1",
    "delivered": "rank = 2",
    "untold": "rank > told",
}


@asynccontextmanager
async def open_store(path: Path, disk_reserve: int = 0) -> AsyncIterator[Store]:
    """Open or make the file. Below `disk_reserve` free bytes nothing more is accepted; acks and steps still are."""
    schema = (files("yanchat.backends.sqlite") / "schema.sql").read_text()
    lane = Lane("store", lambda: Database(path, schema, full=True))
    await lane.open()
    try:
        store = Store(lane, disk_reserve)
        store.store_id = await lane.run(_store_id)
        yield store
    finally:
        await lane.close()


class Store(Outbox, Inbox):
    """Made by `open_store`."""

    def __init__(self, lane: Lane[Database], disk_reserve: int) -> None:
        self._lane, self._reserve = lane, disk_reserve

    # -- outbox --------------------------------------------------------------------------------------------------------
    async def add(self, messages: Sequence[Sequence[Envelope]], *, notify: bool = True) -> list[list[bool]]:
        def work(db: Database) -> list[list[bool]]:
            if self._reserve and db.free_bytes() < self._reserve:
                raise StoreUnavailable("The disk is nearly full; try again later.")
            failpoint.hit("before-commit")
            return [[_add(db, envelope, notify) for envelope in message] for message in messages]

        news = await self._lane.run(work)
        failpoint.hit("after-commit")
        return news

    async def record(self, steps: Sequence[Step]) -> None:
        await self._lane.run(lambda db: _record(db, steps), lazy=True)

    async def open_rows(self, openid: OpenId, tray: Tray, limit: int) -> list[Row]:
        return await self._rows(_TRAYS[tray], (openid, limit))

    async def users_with_open_rows(self, after: str, limit: int) -> list[OpenId]:
        sql = """SELECT recipient FROM outbox WHERE rank = 0 AND recipient > ?1
            UNION SELECT sender FROM outbox WHERE rank > told AND sender > ?1 ORDER BY 1 LIMIT ?2"""
        return await self._lane.run(lambda db: [OpenId(user) for (user,) in db.execute(sql, (after, limit))])

    async def waiting(self) -> list[Waiting]:
        sql = "SELECT sender, recipient, count(*) FROM outbox WHERE rank = 0 GROUP BY recipient, sender"
        return await self._lane.run(lambda db: [Waiting(*row) for row in db.execute(sql)])

    async def find(self, keys: Sequence[Key]) -> list[Row | None]:
        return await self._lane.run(lambda db: [_find(db, key) for key in keys])

    async def search(self, what: RowFilter) -> list[Row]:
        terms, values = ["ord > ?"], [cast(Any, what.after)]
        for term, value in (("recipient = ?", what.recipient), ("accepted_at < ?", what.accepted_before)):
            if value is not None:
                terms.append(term)
                values.append(value)
        if what.message_id is not None:
            terms.append("message_id = ?")
            values.append(bytes.fromhex(what.message_id))
        if what.states:
            terms.append("(" + " OR ".join(_STATES[state] for state in what.states) + ")")
        return await self._rows(f"WHERE {' AND '.join(terms)} ORDER BY ord LIMIT ?", (*values, what.limit))

    async def expired(self, accepted_before: int, settled_before: int, limit: int) -> list[Row]:
        old = await self._rows("WHERE rank = 0 AND ord < ? ORDER BY ord LIMIT ?", (accepted_before << 16, limit))
        return old + await self._rows("WHERE rank > told AND settled_at < ? LIMIT ?", (settled_before, limit))

    async def totals(self) -> Totals:
        def work(db: Database) -> Totals:
            counts: dict[int, int] = dict(db.execute("SELECT rank, count(*) FROM outbox GROUP BY rank"))
            ((untold,),) = db.execute("SELECT count(*) FROM outbox WHERE rank > told")
            gone = [_mark(db, f"purged-{rank}", 0) for rank in range(3)]
            return Totals(counts.get(0, 0), counts.get(2, 0) + gone[2], counts.get(1, 0) + gone[1], untold)

        return await self._lane.run(work)

    async def purge(self, before: int, limit: int) -> int:
        def work(db: Database) -> int:
            done = list(
                db.execute(
                    "SELECT ord, rank FROM outbox WHERE ord < ? AND rank > 0 AND told >= rank ORDER BY ord LIMIT ?",
                    (before << 16, limit),
                )
            )
            for order, rank in done:
                db.execute(
                    "DELETE FROM ids WHERE (message_id, recipient) ="
                    " (SELECT message_id, recipient FROM outbox WHERE ord = ?)",
                    (order,),
                )
                db.execute("DELETE FROM outbox WHERE ord = ?", (order,))
                db.execute(
                    "INSERT INTO marks VALUES (?, 1) ON CONFLICT DO UPDATE SET value = value + 1", (f"purged-{rank}",)
                )
            acks = list(
                db.execute(
                    "DELETE FROM inbox WHERE place IN"
                    " (SELECT place FROM inbox WHERE acked_at < ? ORDER BY place LIMIT ?) RETURNING place",
                    (before, limit),
                )
            )
            return len(done) + len(acks)

        return await self._lane.run(work)

    async def last_order(self) -> int:
        def work(db: Database) -> int:
            ((last,),) = db.execute("SELECT coalesce(max(ord), 0) FROM outbox")
            return _mark(db, "order", last) if last <= _mark(db, "order", 0) else max(last, _mark(db, "order", last))

        return await self._lane.run(work)

    async def mark(self, name: str, value: int) -> int:
        return await self._lane.run(lambda db: _mark(db, name, value))

    def healthy(self) -> bool:
        return self._lane.last_ok

    # -- inbox ---------------------------------------------------------------------------------------------------------
    async def known(self, keys: Sequence[Key]) -> list[bool]:
        def work(db: Database) -> list[bool]:
            return [_place(db, key) is not None or _acked(_find(db, key)) for key in keys]

        return await self._lane.run(work)

    async def ack(self, entries: Sequence[AckEntry]) -> list[int]:
        def work(db: Database) -> list[int]:
            failpoint.hit("before-ack-commit")
            _record(
                db,
                (
                    Step(entry.order, ACKED, OPEN, entry.attempts, entry.sent_at, 0, entry.at)
                    for entry in entries
                    if entry.order
                ),
            )
            return [_ack(db, entry) if entry.origins else 0 for entry in entries]

        places = await self._lane.run(work)
        failpoint.hit("after-ack-commit")
        return places

    async def recipients(self, message_id: MessageId) -> tuple[dict[OpenId, int], list[OpenId]]:
        def work(db: Database) -> tuple[dict[OpenId, int], list[OpenId]]:
            blob = bytes.fromhex(message_id)
            first = order_from_message_id(message_id)
            rows = list(
                db.execute(
                    "SELECT recipient, ord, rank FROM outbox WHERE ord >= ? AND ord < ? AND message_id = ?",
                    (first, first + 100, blob),
                )
            )
            rows += db.execute(
                "SELECT i.recipient, i.ord, o.rank FROM ids i JOIN outbox o ON o.ord = i.ord WHERE i.message_id = ?",
                (blob,),
            )
            acked = [user for user, _, rank in rows if rank == ACKED]
            acked += [user for (user,) in db.execute("SELECT recipient FROM inbox WHERE message_id = ?", (blob,))]
            return {OpenId(user): order for user, order, _ in rows}, acked

        return await self._lane.run(work)

    async def unsent(self, after: int, limit: int) -> list[tuple[int, AckEntry]]:
        sql = "SELECT place, message_id, recipient, origins FROM inbox WHERE place > ? ORDER BY place LIMIT ?"

        def work(db: Database) -> list[tuple[int, AckEntry]]:
            return [
                (place, AckEntry((MessageId(blob.hex()), OpenId(user)), tuple(map(Node, origins.split()))))
                for place, blob, user, origins in db.execute(sql, (max(after, _mark(db, "published", 0)), limit))
            ]

        return await self._lane.run(work)

    async def published(self, place: int) -> None:
        await self._lane.run(lambda db: _mark(db, "published", place), lazy=True)

    async def _rows(self, where: str, values: tuple[Any, ...]) -> list[Row]:
        sql = f"SELECT {_COLUMNS} FROM outbox {where}"
        return await self._lane.run(lambda db: [_row(columns) for columns in db.execute(sql, values)])


def _store_id(db: Database) -> str:
    db.execute("INSERT OR IGNORE INTO meta VALUES ('store', ?)", (secrets.token_hex(16),))
    ((store_id,),) = db.execute("SELECT value FROM meta WHERE name = 'store'")
    return str(store_id)


def _row(columns: Sequence[Any]) -> Row:
    order, blob, *rest = columns
    return Row(Envelope(order, MessageId(blob.hex()), *rest[:7]), *rest[7:])


def _add(db: Database, envelope: Envelope, notify: bool) -> bool:
    blob = bytes.fromhex(envelope.message_id)
    if order_from_message_id(envelope.message_id) == 0:
        db.execute("INSERT OR IGNORE INTO ids VALUES (?, ?, ?)", (blob, envelope.recipient, envelope.order))
        if not db.connection.changes():
            return False
    db.execute(
        _ADD,
        (
            envelope.order,
            blob,
            envelope.recipient,
            envelope.sender,
            envelope.sender_name,
            envelope.request_id,
            envelope.text,
            envelope.file_type,
            envelope.accepted_at,
            OPEN if notify else ACKED,
        ),
    )
    return True


def _record(db: Database, steps: Iterable[Step]) -> None:
    db.executemany(
        _STEP,
        (
            (
                step.order,
                step.rank,
                step.told,
                step.attempts,
                step.sent_at,
                step.arrived_at,
                step.settled_at,
                step.told_at,
            )
            for step in steps
        ),
    )


def _find(db: Database, key: Key) -> Row | None:
    """By the order that the id carries, else by the index of ids."""
    message_id, recipient = key
    blob, first = bytes.fromhex(message_id), order_from_message_id(message_id)
    select = f"SELECT {_COLUMNS} FROM outbox WHERE "
    if first:
        found = db.execute(
            select + "ord >= ? AND ord < ? AND message_id = ? AND recipient = ?", (first, first + 100, blob, recipient)
        ).fetchone()
        if found:
            return _row(found)
    found = db.execute(
        select + "ord = (SELECT ord FROM ids WHERE message_id = ? AND recipient = ?)", (blob, recipient)
    ).fetchone()
    return _row(found) if found else None


def _acked(row: Row | None) -> bool:
    return row is not None and row.rank == ACKED


def _place(db: Database, key: Key) -> int | None:
    found = db.execute(
        "SELECT place FROM inbox WHERE message_id = ? AND recipient = ?", (bytes.fromhex(key[0]), key[1])
    ).fetchone()
    return found[0] if found else None


def _ack(db: Database, entry: AckEntry) -> int:
    """A repeated ack moves to the end of the log, with the origins of both."""
    blob, user = bytes.fromhex(entry.key[0]), entry.key[1]
    before = db.execute(
        "DELETE FROM inbox WHERE message_id = ? AND recipient = ? RETURNING origins", (blob, user)
    ).fetchone()
    origins = sorted({*entry.origins, *(before[0].split() if before else ())})
    place = _mark(db, "place", 0) + 1
    db.execute("INSERT INTO inbox VALUES (?, ?, ?, ?, ?)", (place, blob, user, " ".join(origins), entry.at))
    _mark(db, "place", place)
    return place


def _mark(db: Database, name: str, value: int) -> int:
    """Keep the highest; the one before."""
    found = db.execute("SELECT value FROM marks WHERE name = ?", (name,)).fetchone()
    before: int = found[0] if found else 0
    if value > before:
        db.execute("INSERT INTO marks VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value", (name, value))
    return before
