"""The registry on Redis. Keys and their types are the protocol's ("Between nodes"), spelled in `names.py`.

Each command names one key, and a call that breaks off in the middle may be repeated: so a Redis Cluster and a service
behind Sentinels serve as well. A node's lease is the time to live of its hash: no clocks of two machines are compared.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, TypeVar

import structlog

from yanchat import names
from yanchat.backends.redis.connection import Connection
from yanchat.backends.redis.entries import Entry, session_records
from yanchat.backends.redis.inspection import Inspection
from yanchat.backends.redis.leases import Leases
from yanchat.backends.redis.pipelines import Pipelines, Rounds, chunks
from yanchat.backends.redis.scripts import CLAIM, LIST, REAP, lua
from yanchat.backends.redis.servers import connector, run_ids
from yanchat.backends.redis.tracking import Tracking
from yanchat.config import RedisSettings
from yanchat.errors import RegistryUnavailable
from yanchat.model import Contradiction, Node, NodeRecord, OpenId, SessionId, SessionRecord
from yanchat.ports import Registry
from yanchat.protocol.ids import openid_of

R = TypeVar("R")
GUESSED: Final = 16


@asynccontextmanager
async def open_registry(settings: RedisSettings, lease: float) -> AsyncIterator[RedisRegistry]:
    """The registry; `lease` in seconds. Redis may be away: calls fail until it is there. ConfigError: it refuses us."""
    connection = Connection(connector(settings))
    pipelines = Pipelines(connection)
    whole = "+cluster:" in settings.url  # one server does not say what changes on the others
    tracking = Tracking(None if whole else connector(settings, protocol=3), names.user_key("", settings.key_prefix))
    pipelines.open()
    try:
        registry = RedisRegistry(pipelines, connection, tracking, settings.key_prefix, lease)
        try:
            await registry.epoch()
        except RegistryUnavailable as error:
            structlog.get_logger().warning("registry.not_there", error=str(error))
        yield registry
    finally:
        tracking.close()
        await pipelines.close()


class RedisRegistry(Registry):
    """Made by `open_registry`."""

    def __init__(
        self, pipelines: Pipelines, connection: Connection, tracking: Tracking, prefix: str, lease: float
    ) -> None:
        self._pipelines, self._ask = pipelines, pipelines.ask
        self._connection, self._tracking = connection, tracking
        self._node_key = partial(names.node_key, prefix=prefix)
        self._sessions_key = partial(names.node_sessions_key, prefix=prefix)
        self._user_key = partial(names.user_key, prefix=prefix)
        self._pending_key = partial(names.pending_key, prefix=prefix)
        self._nodes_key = names.nodes_key(prefix)
        self._inspection = Inspection(connection, prefix, lease)
        self._leases = Leases(prefix, lease, tracking.forget_all)

    # -- nodes ---------------------------------------------------------------------------------------------------------
    async def join(self, record: NodeRecord) -> None:
        await self._ask(self._leases.join(record))
        self._connection.proven = True

    async def renew(self, record: NodeRecord) -> bool:
        return await self._ask(self._leases.renew(record))

    async def leave(self, record: NodeRecord) -> None:
        await self._ask(self._leases.leave(record))

    async def nodes(self) -> list[NodeRecord]:
        return await self._ask(self._leases.nodes())

    # -- sessions ------------------------------------------------------------------------------------------------------
    async def claim(self, sessions: Sequence[SessionRecord]) -> list[bool]:
        return await self._write(self._claim(sessions), sessions)

    def _claim(self, sessions: Sequence[SessionRecord]) -> Rounds[list[bool]]:
        news: list[bool] = []
        for chunk in chunks(sessions):  # first the sets: an entry that none names would never be reaped
            yield [
                *(lua(LIST, self._nodes_key, node) for node in {session.node for session in chunk}),
                *(("SADD", self._sessions_key(session.node), session.session_id) for session in chunk),
            ]
            replies = yield [
                lua(
                    CLAIM,
                    self._user_key(session.openid),
                    session.session_id,
                    session.incarnation,
                    Entry.of(session).unstamped(),
                )
                for session in chunk
            ]
            news += map(bool, replies)
        return news

    async def release(self, sessions: Sequence[SessionRecord]) -> None:
        await self._write(self._release(sessions), sessions)

    def _release(self, sessions: Sequence[SessionRecord]) -> Rounds[None]:
        for chunk in chunks(sessions):
            yield [("HDEL", self._user_key(session.openid), session.session_id) for session in chunk]
            yield [("SREM", self._sessions_key(session.node), session.session_id) for session in chunk]

    async def reap(self, sessions: Sequence[SessionRecord]) -> None:
        await self._write(self._reap(sessions), sessions)

    def _reap(self, sessions: Sequence[SessionRecord]) -> Rounds[None]:
        live = yield from self._leases.incarnations({session.node for session in sessions})
        dead = [session for session in sessions if live[session.node] != session.incarnation]  # and stays so
        for chunk in chunks(dead):
            gone = yield [
                lua(REAP, self._user_key(session.openid), session.session_id, Entry.of(session).text())
                for session in chunk
            ]
            yield [
                ("SREM", self._sessions_key(session.node), session.session_id)
                for session, removed in zip(chunk, gone, strict=True)
                if removed
            ]

    async def _write(self, rounds: Rounds[R], sessions: Sequence[SessionRecord]) -> R:
        try:
            return await self._ask(rounds)
        finally:
            self._tracking.forget([session.openid for session in sessions])

    async def locate(self, openids: Sequence[OpenId]) -> Mapping[OpenId, Sequence[SessionRecord]]:
        known = self._tracking.known(openids)
        rest = [openid for openid in openids if openid not in known]
        if not rest:
            return known
        call = self._tracking.ask(rest)
        found: Mapping[OpenId, Sequence[SessionRecord]] = {}
        try:
            found = await self._ask(self._locate(rest))
        finally:
            self._tracking.keep(call, rest, found)
        return {**known, **found}

    def forget(self, openids: Sequence[OpenId]) -> None:
        self._tracking.forget(openids)

    def _locate(self, openids: Sequence[OpenId]) -> Rounds[Mapping[OpenId, Sequence[SessionRecord]]]:
        guessed = list(self._leases.live)[:GUESSED]  # whether they still are is asked in the same round
        replies = yield [
            *(("HGETALL", self._user_key(openid)) for openid in openids),
            *(("HGET", self._node_key(node), "incarnation") for node in guessed),
        ]
        live = dict(zip(guessed, replies[len(openids) :], strict=True))
        found = {
            openid: session_records(openid, reply) for openid, reply in zip(openids, replies, strict=False) if reply
        }
        live |= yield from self._leases.incarnations(
            {entry.node for entries in found.values() for entry in entries} - live.keys()
        )
        return {
            openid: [entry for entry in entries if live[entry.node] == entry.incarnation]
            for openid, entries in found.items()
        }

    async def sessions(self, *, node: Node | None = None, openid: OpenId | None = None) -> list[SessionRecord]:
        return await self._ask(self._sessions(node, openid))

    def _sessions(self, node: Node | None, openid: OpenId | None) -> Rounds[list[SessionRecord]]:
        found: list[SessionRecord] = []
        if openid is not None:
            (reply,) = yield [("HGETALL", self._user_key(openid))]
            found = [entry for entry in session_records(openid, reply) if node in (None, entry.node)]
        else:
            nodes = [node] if node is not None else [known for known, _ in (yield from self._leases.known())]
            members = yield [("SMEMBERS", self._sessions_key(node)) for node in nodes]
            for chunk in chunks([SessionId(session) for sessions in members for session in sessions]):
                replies = yield [("HGET", self._user_key(openid_of(session)), session) for session in chunk]
                for session, text in zip(chunk, replies, strict=True):
                    found += session_records(openid_of(session), {session: text} if text else {})
        return sorted(found, key=lambda entry: (entry.openid, entry.session_id))

    # -- pending sets --------------------------------------------------------------------------------------------------
    async def enter(self, node: Node, openids: Sequence[OpenId]) -> None:
        try:
            await self._ask(self._each("SADD", node, openids))
        finally:
            self._tracking.forget(openids)

    async def leave_pending(self, node: Node, openids: Sequence[OpenId]) -> None:
        await self._ask(self._each("SREM", node, openids))

    def _each(self, command: str, node: Node, openids: Sequence[OpenId]) -> Rounds[None]:
        for chunk in chunks(openids):
            yield [(command, self._pending_key(openid), node) for openid in chunk]

    async def pending(self, openids: Sequence[OpenId]) -> Mapping[OpenId, Sequence[Node]]:
        return await self._ask(self._pending(openids))

    def _pending(self, openids: Sequence[OpenId]) -> Rounds[Mapping[OpenId, Sequence[Node]]]:
        replies = yield [("SMEMBERS", self._pending_key(openid)) for openid in openids]
        live = yield from self._leases.incarnations({node for nodes in replies for node in nodes})
        return {
            openid: sorted(Node(node) for node in nodes if live[node])
            for openid, nodes in zip(openids, replies, strict=True)
        }

    async def epoch(self) -> str:
        return await self._ask(self._epoch())

    def _epoch(self) -> Rounds[str]:
        yield []
        return run_ids(self._connection.client)

    def lanes(self) -> dict[str, float]:
        return {"registry": self._pipelines.silent}

    async def contradictions(self) -> list[Contradiction]:
        return await self._ask(self._inspection.look())

    async def mend(self, found: Sequence[Contradiction]) -> None:
        await self.reap([one.entry for one in found if one.kind == "ghost" and one.entry is not None])
        await self._ask(self._inspection.mend(found))
