"""The registry of nodes that share a directory: rows in `cluster.db`, leases by the boot clock."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import msgspec

from yanchat.backends.lane import Lane
from yanchat.backends.sqlite.database import Database
from yanchat.errors import AddressTaken, RegistryUnavailable, StoreUnavailable
from yanchat.model import Node, NodeRecord, OpenId, SessionRecord
from yanchat.ports import Registry

R = TypeVar("R")
_LIVE = "SELECT 1 FROM nodes n WHERE n.node = s.node AND n.incarnation = s.incarnation AND n.boot = ? AND n.expires > ?"
_SESSION = "s.session_id, s.openid, s.node, s.incarnation, s.user_name, s.connected_at, s.remote, s.stamp"


class SqliteRegistry(Registry):
    """`now` is the boot clock in milliseconds, `lease` the time to live in seconds."""

    def __init__(self, lane: Lane[Database], boot: str, now: Callable[[], int], lease: float) -> None:
        self._lane, self._boot, self._now, self._lease = lane, boot, now, lease

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
        def work(db: Database) -> list[NodeRecord]:
            now, found = self._now(), []
            for boot, expires, text, sessions in db.execute(
                "SELECT boot, expires, record, (SELECT count(*) FROM sessions s WHERE s.node = nodes.node"
                " AND s.incarnation = nodes.incarnation) FROM nodes ORDER BY node"
            ):
                record = msgspec.json.decode(text, type=NodeRecord)
                dead = boot != self._boot or expires <= now
                age = max(0.0, self._lease - (expires - now) / 1000)
                found.append(
                    msgspec.structs.replace(record, state="dead" if dead else record.state, age=age, sessions=sessions)
                )
            return found

        return await self._run(work)

    async def forget(self, record: NodeRecord) -> None:
        await self._run(
            lambda db: db.execute(
                "DELETE FROM nodes WHERE node = ? AND incarnation = ? AND (boot <> ? OR expires <= ?)",
                (record.node, record.incarnation, self._boot, self._now()),
            ).fetchall()
        )

    async def claim(self, sessions: Sequence[SessionRecord]) -> list[bool]:
        def work(db: Database) -> list[bool]:
            return [self._claim(db, session) for session in sessions]

        return await self._run(work)

    def _claim(self, db: Database, session: SessionRecord) -> bool:
        key = (session.openid, session.session_id)
        found = db.execute(
            "SELECT incarnation, stamp FROM sessions WHERE openid = ? AND session_id = ?", key
        ).fetchone()
        if found and found[0] == session.incarnation:
            return False
        db.execute(
            "INSERT OR REPLACE INTO sessions VALUES (?,?,?,?,?,?,?,?)",
            (
                *key,
                session.node,
                session.incarnation,
                session.user_name,
                session.connected_at,
                session.remote,
                found[1] if found else self._now(),
            ),
        )
        return True

    async def release(self, sessions: Sequence[SessionRecord]) -> None:
        keys = [(session.openid, session.session_id) for session in sessions]
        await self._run(
            lambda db: db.executemany("DELETE FROM sessions WHERE openid = ? AND session_id = ?", keys).fetchall()
        )

    async def reap(self, sessions: Sequence[SessionRecord]) -> None:
        def work(db: Database) -> None:
            for session in sessions:
                db.execute(
                    "DELETE FROM sessions AS s WHERE openid = ? AND session_id = ? AND incarnation = ?"
                    f" AND NOT EXISTS ({_LIVE})",
                    (session.openid, session.session_id, session.incarnation, self._boot, self._now()),
                )

        await self._run(work)

    async def locate(self, openids: Sequence[OpenId]) -> Mapping[OpenId, Sequence[SessionRecord]]:
        users = msgspec.json.encode(list(openids)).decode()

        def work(db: Database) -> Mapping[OpenId, Sequence[SessionRecord]]:
            found: dict[OpenId, list[SessionRecord]] = {}
            for columns in db.execute(
                f"SELECT {_SESSION} FROM json_each(?) u JOIN sessions s ON s.openid = u.value WHERE EXISTS ({_LIVE})",
                (users, self._boot, self._now()),
            ):
                session = SessionRecord(*columns)
                found.setdefault(session.openid, []).append(session)
            return found

        return await self._run(work)

    async def sessions(self, *, node: Node | None = None, openid: OpenId | None = None) -> list[SessionRecord]:
        return await self._run(
            lambda db: [
                SessionRecord(*columns)
                for columns in db.execute(
                    f"SELECT {_SESSION} FROM sessions s WHERE (?1 IS NULL OR node = ?1) AND (?2 IS NULL OR openid = ?2)"
                    " ORDER BY openid, session_id",
                    (node, openid),
                )
            ]
        )

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
            for openid, node in db.execute(
                "SELECT p.openid, p.node FROM json_each(?) u JOIN pending p ON p.openid = u.value"
                " JOIN nodes n ON n.node = p.node AND n.boot = ? AND n.expires > ?",
                (users, self._boot, self._now()),
            ):
                found.setdefault(OpenId(openid), []).append(Node(node))
            return found

        return await self._run(work)

    async def epoch(self) -> str:
        def work(db: Database) -> str:
            db.execute("INSERT OR IGNORE INTO meta VALUES ('epoch', ?)", (secrets.token_hex(8),))
            ((epoch,),) = db.execute("SELECT value FROM meta WHERE name = 'epoch'")
            return str(epoch)

        return await self._run(work)


def _text(record: NodeRecord) -> str:
    return msgspec.json.encode(record).decode()
