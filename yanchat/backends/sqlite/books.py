"""The books of a message table, read through a connection of their own: of a node that runs, or of one that is dead.

Nothing is written, and a node may start and stop meanwhile. Each call reads one snapshot; while that is open the log of
a running node grows, so calls that look through everything are few and end soon.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import apsw
import trio

from yanchat.errors import NotAllowed, NotFound, StoreUnavailable, YanchatError
from yanchat.model import ACKED, GIVEN_UP, OPEN, Envelope, MessageId, Node, OpenId, Row
from yanchat.ports import Books
from yanchat.protocol.books import Account, ByState, Doubt, Held, HeldAck, Story, Waits
from yanchat.protocol.frames import MAX_RECIPIENTS
from yanchat.protocol.ids import COUNTER_BITS, order_from_message_id

R = TypeVar("R")
PATIENCE: Final = 2000
"""Milliseconds to wait for a lock: there is one only while a log is recovered."""
AT_ONCE: Final = 2
"""Threads that read, so that few snapshots are open, however many ask."""
MOST_DOUBTS: Final = 1000
_MOVED: Final = 3

# of every version of the file, and without the texts
_ROWS = """SELECT ord, message_id, recipient, sender, sender_name, request_id, file_type, accepted_at, rank, told,
 attempts, sent_at, arrived_at, settled_at, told_at, moved_at, adopted_at FROM outbox
 WHERE message_id = ?1 AND ord IN (SELECT ord FROM outbox WHERE ord >= ?2 AND ord < ?3
 UNION SELECT ord FROM ids WHERE message_id = ?1) ORDER BY ord"""
_ACKS = """SELECT place, message_id, recipient, origins, acked_at,
 place <= coalesce((SELECT value FROM counters WHERE name = 'published'), 0) FROM inbox"""
_HELD = """SELECT ord, message_id, recipient, accepted_at, rank, moved_at > 0, adopted_at > 0 FROM outbox
 WHERE ord > ? AND ord >= ? ORDER BY ord LIMIT ?"""
_REQUESTED = """SELECT message_id, min(ord) FROM outbox WHERE sender = ? AND request_id = ? GROUP BY message_id
 ORDER BY 2 LIMIT ?"""
_BY_STATE = f"""SELECT CASE WHEN moved_at > 0 THEN {_MOVED} ELSE rank END, adopted_at > 0, count(*) FROM outbox
 WHERE ord >= ? GROUP BY 1, 2"""
_PENDING = (
    f"SELECT count(*), coalesce(min(ord), 0) FROM outbox INDEXED BY open_messages WHERE rank = {OPEN} AND moved_at = 0"
)
_UNTOLD = "SELECT count(*) FROM outbox INDEXED BY untold_notices WHERE rank > told AND moved_at = 0"
_UNFINISHED = f"""SELECT (SELECT count(*) FROM outbox WHERE moved_at = 0 AND NOT (rank = {ACKED} AND told = {ACKED}))
 + (SELECT count(*) FROM inbox WHERE place > coalesce((SELECT value FROM counters WHERE name = 'published'), 0))"""
_DOUBTS = {
    "open, though it was settled once": f"""SELECT message_id, recipient FROM outbox INDEXED BY open_messages
 WHERE rank = {OPEN} AND moved_at = 0 AND settled_at > 0""",
    "given up, though its sender was told that it was delivered": f"""SELECT message_id, recipient
 FROM outbox INDEXED BY given_up WHERE rank = {GIVEN_UP} AND moved_at = 0 AND told = {ACKED} AND told_at > 0""",
    "known by its id, and its row is not there": """SELECT ids.message_id, ids.recipient FROM ids
 LEFT JOIN outbox ON outbox.ord = ids.ord AND outbox.message_id = ids.message_id
 AND outbox.recipient = ids.recipient WHERE outbox.ord IS NULL""",
}

_threads = trio.CapacityLimiter(AT_ONCE)


class FileBooks(Books):
    """The books in this file. No such file: NotFound; another user's: NotAllowed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    async def story(self, message_id: MessageId) -> Story:
        return await self._read(lambda db: _story(db, message_id))

    async def requested(self, sender: OpenId, request_id: str, limit: int) -> list[MessageId]:
        values = (sender, request_id, limit)
        return await self._read(lambda db: [MessageId(blob.hex()) for blob, _ in db.execute(_REQUESTED, values)])

    async def account(self, since: int = 0) -> Account:
        return await self._read(lambda db: _account(db, since))

    async def waits(self) -> Waits:
        return await self._read(_waits)

    async def unfinished(self) -> int:
        """How many rows and acks other nodes may still need: what `redeliver --adopt` would hand over."""
        return await self._read(_unfinished)

    async def held(self, after: int, since: int, limit: int) -> list[Held]:
        values = (after, since << COUNTER_BITS, limit)
        return await self._read(lambda db: list(map(_held, db.execute(_HELD, values))))

    async def held_acks(self, after: int, since: int, limit: int) -> list[HeldAck]:
        sql = f"{_ACKS} WHERE place > ? AND acked_at >= ? ORDER BY place LIMIT ?"
        return await self._read(lambda db: list(map(_ack, db.execute(sql, (after, since, limit)))))

    async def _read(self, work: Callable[[apsw.Connection], R]) -> R:
        """Run it in a thread, in one snapshot of the file."""

        def read() -> R:
            with _snapshot(self.path) as connection:
                return work(connection)

        return await trio.to_thread.run_sync(read, abandon_on_cancel=True, limiter=_threads)


def _waits(db: apsw.Connection) -> Waits:
    ((pending, oldest),), ((untold,),) = db.execute(_PENDING), db.execute(_UNTOLD)
    return Waits(int(pending), int(untold), int(oldest) >> COUNTER_BITS)


def _unfinished(db: apsw.Connection) -> int:
    ((count,),) = db.execute(_UNFINISHED)
    return int(count)


def _story(db: apsw.Connection, message_id: MessageId) -> Story:
    blob, first = bytes.fromhex(message_id), order_from_message_id(message_id)
    rows = db.execute(_ROWS, (blob, first, first + MAX_RECIPIENTS if first else 0))
    acks = db.execute(f"{_ACKS} WHERE message_id = ? ORDER BY place", (blob,))
    return Story(tuple(map(_row, rows)), tuple(map(_ack, acks)), _purged_before(db))


def _account(db: apsw.Connection, since: int) -> Account:
    held = {(state, came): rows for state, came, rows in db.execute(_BY_STATE, (since << COUNTER_BITS,))}
    there = ByState(*(held.get((rank, 0), 0) + held.get((rank, 1), 0) for rank in (OPEN, ACKED, GIVEN_UP, _MOVED)))
    counters: dict[str, int] = dict(db.execute("SELECT name, value FROM counters"))
    doubts = tuple(_doubts(db))
    if since:
        adopted = sum(rows for (_, came), rows in held.items() if came)
        return Account(there.all - adopted, adopted, None, there, ByState(), _purged_before(db), doubts)
    accepted, adopted = counters.get("added", 0), counters.get("adopted", 0)
    if "delivered" not in counters:  # no node of this version has opened it yet
        return Account(accepted, adopted, None, there, ByState(), _purged_before(db), doubts)
    done = [counters.get(name, 0) for name in ("delivered", "given_up", "moved")]
    purged = [counters.get(f"{name}_purged", 0) for name in ("delivered", "given_up", "moved")]
    counted = ByState(accepted + adopted - sum(done), *done)
    return Account(accepted, adopted, counted, there, ByState(0, *purged), _purged_before(db), doubts)


def _row(columns: Any) -> Row:
    order, blob, recipient, sender, name, request_id, file_type, accepted_at, *rest = columns
    envelope = Envelope(order, MessageId(blob.hex()), recipient, sender, name, request_id, "", file_type, accepted_at)
    return Row(envelope, *rest)


def _held(columns: Any) -> Held:
    order, blob, user, accepted_at, rank, moved, adopted = columns
    return Held(order, MessageId(blob.hex()), OpenId(user), accepted_at, rank, bool(moved), bool(adopted))


def _ack(columns: Any) -> HeldAck:
    place, blob, user, origins, at, left = columns
    return HeldAck(place, MessageId(blob.hex()), OpenId(user), tuple(map(Node, origins.split())), at, bool(left))


def _doubts(db: apsw.Connection) -> Iterator[Doubt]:
    for sentence, sql in _DOUBTS.items():
        for blob, user in db.execute(f"{sql} LIMIT {MOST_DOUBTS}"):
            yield Doubt(sentence, blob.hex(), user)


def _purged_before(db: apsw.Connection) -> int:
    found = db.execute("SELECT value FROM counters WHERE name = 'last_purged'").fetchone()
    return (int(found[0]) >> COUNTER_BITS) + 1 if found else 0


@contextmanager
def _snapshot(path: Path) -> Iterator[apsw.Connection]:
    """A transaction that only reads. Foreign exceptions end here."""
    connection: apsw.Connection | None = None
    try:
        connection = _open(path)
        connection.set_busy_timeout(PATIENCE)
        connection.execute("BEGIN")
        yield connection
    except (apsw.Error, OSError) as error:
        raise _mapped(path, error) from None
    finally:
        if connection is not None:
            connection.close()


def _open(path: Path) -> apsw.Connection:
    """On a disk that can only be read there is no place for the index of the log, which is not needed without a log."""
    path.stat()
    try:
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        connection.execute("SELECT 1 FROM counters")
    except (apsw.CantOpenError, apsw.ReadOnlyError):
        log = path.with_name(f"{path.name}-wal")
        if log.exists() and log.stat().st_size:
            raise
        flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
        connection = apsw.Connection(f"{path.absolute().as_uri()}?immutable=1", flags=flags)
    return connection


def _mapped(path: Path, error: Exception) -> YanchatError:
    if isinstance(error, FileNotFoundError):
        return NotFound(f"There is no message table at {path}.")
    if isinstance(error, PermissionError | apsw.PermissionsError | apsw.CantOpenError):
        return NotAllowed(f"{path} cannot be opened: {error}; call this as the user that runs the nodes.")
    return StoreUnavailable(f"{path} cannot be read: {error}. Check the disk.")
