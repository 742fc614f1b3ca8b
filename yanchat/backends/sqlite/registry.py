"""The registry of nodes that share a directory: rows in `cluster.db`, leases by the boot clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

from yanchat.backends.findings import Places, find_contradictions
from yanchat.backends.lane import Lane
from yanchat.backends.sqlite.database import Database, Reader
from yanchat.errors import AddressTaken, RegistryUnavailable, StoreUnavailable
from yanchat.model import Contradiction, Node, NodeRecord, OpenId, SessionRecord
from yanchat.ports import Registry

R = TypeVar("R")
_COLUMNS = "session_id, openid, node, incarnation, user_name, connected_at, remote, stamp"
_LIVE = "SELECT 1 FROM nodes n WHERE n.node = s.node AND n.incarnation = s.incarnation AND n.boot = ? AND n.expires > ?"
# News, and answered with a row, when there was no entry or one of another incarnation. The stamp stays.
_CLAIM = f"""INSERT INTO sessions ({_COLUMNS}) VALUES (?,?,?,?,?,?,?,?) ON CONFLICT DO UPDATE
 SET node = excluded.node, incarnation = excluded.incarnation, user_name = excluded.user_name,
 connected_at = excluded.connected_at, remote = excluded.remote
 WHERE incarnation <> excluded.incarnation RETURNING 1"""
_REAP = f"DELETE FROM sessions AS s WHERE ({_COLUMNS}) = (?,?,?,?,?,?,?,?) AND NOT EXISTS ({_LIVE})"
_LOCATE = f"""SELECT {", ".join(f"s.{column}" for column in _COLUMNS.split(", "))}
 FROM json_each(?) u CROSS JOIN sessions s ON s.openid = u.value WHERE EXISTS ({_LIVE})"""
_FIRST_TO_LAPSE = "SELECT coalesce(min(expires), 0) FROM nodes WHERE boot = ? AND expires > ?"
_PENDING = """SELECT p.openid, p.node FROM json_each(?) u CROSS JOIN pending p ON p.openid = u.value
 JOIN nodes n ON n.node = p.node AND n.boot = ? AND n.expires > ?"""

_GONE_HOLDER = """DELETE FROM pending AS p WHERE p.openid = ? AND p.node = ?
 AND NOT EXISTS (SELECT 1 FROM nodes n WHERE n.node = p.node)"""
_PLACES = Places("nodes in cluster.db", lambda _: "sessions in cluster.db", lambda _: "pending in cluster.db")


FOUND_AT_MOST = 100_000
"""Users."""


class SqliteRegistry(Registry):
    """`now` is the boot clock in milliseconds, `lease` the time to live in seconds."""

    def __init__(self, lane: Lane[Database], reader: Reader, boot: str, now: Callable[[], int], lease: float) -> None:
        self._lane, self._reader, self._boot, self._now, self._lease = lane, reader, boot, now, lease
        self._found: dict[OpenId, Sequence[SessionRecord]] = {}
        self._version, self._found_until = -1, 0

    async def _run(self, work: Callable[[Database], R], *, writes: bool = True) -> R:
        try:
            return await self._lane.run(work, writes=writes)
        except StoreUnavailable as error:
            raise RegistryUnavailable(str(error)) from error

    async def join(self, record: NodeRecord) -> None:
        def work(db: Database) -> None:
            now = self._now()
            held = db.execute(
                "SELECT store FROM nodes WHERE node = ? AND boot = ? AND expires > ?", (record.node, self._boot, now)
            ).fetchone()
            if held and held[0] != record.store:
                raise AddressTaken(
                    f"{record.node} is held by another live node; choose another --listen or --advertise."
                )
            db.execute(
                "INSERT OR REPLACE INTO nodes VALUES (?,?,?,?,?,?)",
                (record.node, self._boot, self._until(now), record.incarnation, record.store, _text(record)),
            )

        await self._run(work)

    async def renew(self, record: NodeRecord) -> bool:
        def work(db: Database) -> bool:
            now = self._now()
            held = db.execute("SELECT incarnation, boot, expires FROM nodes WHERE node = ?", (record.node,)).fetchone()
            if held and held[0] != record.incarnation and held[1] == self._boot and held[2] > now:
                raise AddressTaken(f"Another process serves as {record.node} now; this one stops.")
            if not held or held[0] != record.incarnation or held[1] != self._boot or held[2] <= now:
                return False
            db.execute(
                "UPDATE nodes SET expires = ?, record = ? WHERE node = ?",
                (self._until(now), _text(record), record.node),
            )
            return True

        return await self._run(work)

    def _until(self, now: int) -> int:
        return now + int(self._lease * 1000)

    async def leave(self, record: NodeRecord) -> None:
        def work(db: Database) -> None:
            db.execute("DELETE FROM nodes WHERE node = ? AND incarnation = ?", (record.node, record.incarnation))
            db.execute("DELETE FROM sessions WHERE node = ? AND incarnation = ?", (record.node, record.incarnation))

        await self._run(work)

    async def nodes(self) -> list[NodeRecord]:
        return await self._run(self._nodes, writes=False)

    def _nodes(self, db: Database) -> list[NodeRecord]:
        now, found = self._now(), []
        for boot, expires, text, sessions in db.execute(
            "SELECT boot, expires, record, (SELECT count(*) FROM sessions s WHERE s.node = nodes.node"
            " AND s.incarnation = nodes.incarnation) FROM nodes ORDER BY node"
        ):
            record = msgspec.json.decode(text, type=NodeRecord)
            before = boot != self._boot  # then it was not heard since this machine booted, if not longer
            age = now / 1000 if before else max(0.0, self._lease - (expires - now) / 1000)
            state = "dead" if before or expires <= now else record.state
            found.append(replace(record, state=state, age=age, sessions=sessions))
        return found

    async def claim(self, sessions: Sequence[SessionRecord]) -> list[bool]:
        def work(db: Database) -> list[bool]:
            now = self._now()
            return [db.execute(_CLAIM, (*_columns(session)[:-1], now)).fetchone() is not None for session in sessions]

        return await self._run(work)

    async def release(self, sessions: Sequence[SessionRecord]) -> None:
        keys = [(session.openid, session.session_id) for session in sessions]
        await self._run(
            lambda db: db.executemany("DELETE FROM sessions WHERE openid = ? AND session_id = ?", keys).fetchall()
        )

    async def reap(self, sessions: Sequence[SessionRecord]) -> None:
        def work(db: Database) -> None:
            now = self._now()
            entries = ((*_columns(session), self._boot, now) for session in sessions)
            db.executemany(_REAP, entries).fetchall()

        await self._run(work)

    async def locate(self, openids: Sequence[OpenId]) -> Mapping[OpenId, Sequence[SessionRecord]]:
        """Every look asks this: it is read on the loop, out of the page cache, and by the lane only when that fails.

        What was found counts until somebody writes to the file (PRAGMA data_version) or a lease lapses.
        """
        try:
            version, now = self._reader.version(), self._now()
            if version != self._version or now >= self._found_until or len(self._found) > FOUND_AT_MOST:
                ((until,),) = self._reader.execute(_FIRST_TO_LAPSE, (self._boot, now))
                self._found, self._version, self._found_until = {}, version, until
            found = self._found
            unknown = [openid for openid in openids if openid not in found]
            if unknown:
                found.update(dict.fromkeys(unknown, ()))
                found.update(self._located(self._reader, unknown))
            return {openid: there for openid in openids if (there := found[openid])}
        except StoreUnavailable:
            self._version = -1
            return await self._run(lambda db: self._located(db, openids), writes=False)

    def _located(self, db: Reader | Database, openids: Sequence[OpenId]) -> dict[OpenId, list[SessionRecord]]:
        users = msgspec.json.encode(list(openids)).decode()
        found: dict[OpenId, list[SessionRecord]] = {}
        for columns in db.execute(_LOCATE, (users, self._boot, self._now())):
            session = SessionRecord(*columns)
            found.setdefault(session.openid, []).append(session)
        return found

    async def sessions(self, *, node: Node | None = None, openid: OpenId | None = None) -> list[SessionRecord]:
        wanted = {"node": node, "openid": openid}
        terms = [f"{name} = :{name}" for name, value in wanted.items() if value is not None]
        where = " AND ".join(terms) or "TRUE"
        return await self._run(lambda db: _sessions(db, where, wanted), writes=False)

    async def enter(self, node: Node, openids: Sequence[OpenId]) -> None:
        pairs = [(openid, node) for openid in openids]
        await self._run(lambda db: db.executemany("INSERT OR IGNORE INTO pending VALUES (?, ?)", pairs).fetchall())

    async def leave_pending(self, node: Node, openids: Sequence[OpenId]) -> None:
        pairs = [(openid, node) for openid in openids]
        await self._run(
            lambda db: db.executemany("DELETE FROM pending WHERE openid = ? AND node = ?", pairs).fetchall()
        )

    async def pending(self, openids: Sequence[OpenId]) -> Mapping[OpenId, Sequence[Node]]:
        users = msgspec.json.encode(list(openids)).decode()

        def work(db: Database) -> Mapping[OpenId, Sequence[Node]]:
            found: dict[OpenId, list[Node]] = {}
            for openid, node in db.execute(_PENDING, (users, self._boot, self._now())):
                found.setdefault(OpenId(openid), []).append(Node(node))
            return found

        return await self._run(work, writes=False)

    async def epoch(self) -> str:
        """Made with the file: another file is another registry."""

        def work(db: Database) -> str:
            ((epoch,),) = db.execute("SELECT value FROM meta WHERE name = 'epoch'")
            return str(epoch)

        return await self._run(work, writes=False)

    async def contradictions(self) -> list[Contradiction]:
        """Read in one transaction: nothing of it is half written."""

        def work(db: Database) -> list[Contradiction]:
            pending = [(OpenId(openid), Node(node)) for openid, node in db.execute("SELECT openid, node FROM pending")]
            return find_contradictions(self._nodes(db), _sessions(db), pending, _PLACES)

        return await self._run(work, writes=False)

    async def mend(self, found: Sequence[Contradiction]) -> None:
        dead = [(one.node, self._boot, self._now()) for one in found if one.kind == "dead"]
        holders = [(one.openid, one.node) for one in found if one.kind == "gone_holder"]

        def work(db: Database) -> None:
            db.executemany("DELETE FROM nodes WHERE node = ? AND (boot <> ? OR expires <= ?)", dead).fetchall()
            db.executemany(_GONE_HOLDER, holders).fetchall()

        await self.reap([one.entry for one in found if one.entry is not None])
        await self._run(work)


def _sessions(db: Database, where: str = "TRUE", values: Mapping[str, str | None] | None = None) -> list[SessionRecord]:
    sql = f"SELECT {_COLUMNS} FROM sessions WHERE {where} ORDER BY openid, session_id"
    return [SessionRecord(*columns) for columns in db.execute(sql, values or {})]


def _text(record: NodeRecord) -> str:
    return msgspec.json.encode(record).decode()


def _columns(session: SessionRecord) -> tuple[Any, ...]:
    return msgspec.structs.astuple(session)
