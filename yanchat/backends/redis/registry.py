"""The registry on Redis. Keys and their types are the protocol's ("Between nodes"), spelled in `names.py`.

Each command names one key, and a call that breaks off in the middle may be repeated: so a Redis Cluster and a service
behind Sentinels serve as well. A node's lease is the time to live of its hash: no clocks of two machines are compared.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import structlog

from yanchat import names
from yanchat.backends.redis.connection import Command, Connection
from yanchat.backends.redis.entries import Entry, node_fields, node_record, session_records
from yanchat.backends.redis.inspection import Inspection
from yanchat.backends.redis.pipelines import Pipelines, Rounds, chunks
from yanchat.backends.redis.scripts import BEAT, CLAIM, JOIN, LEAVE, LIST, NODES, REAP, RENEW
from yanchat.backends.redis.servers import connector, run_ids
from yanchat.config import RedisSettings
from yanchat.errors import AddressTaken, RegistryUnavailable
from yanchat.model import Contradiction, Node, NodeRecord, OpenId, SessionId, SessionRecord
from yanchat.ports import Registry
from yanchat.protocol.ids import openid_of

GUESSED: Final = 16


@asynccontextmanager
async def open_registry(settings: RedisSettings, lease: float) -> AsyncIterator[RedisRegistry]:
    """The registry; `lease` in seconds. Redis may be away: calls fail until it is there. ConfigError: it refuses us."""
    connection = Connection(connector(settings))
    pipelines = Pipelines(connection)
    pipelines.open()
    try:
        registry = RedisRegistry(pipelines, connection, settings.key_prefix, lease)
        try:
            await registry.epoch()
        except RegistryUnavailable as error:
            structlog.get_logger().warning("registry.not_there", error=str(error))
        yield registry
    finally:
        await pipelines.close()


class RedisRegistry(Registry):
    """Made by `open_registry`."""

    def __init__(self, pipelines: Pipelines, connection: Connection, prefix: str, lease: float) -> None:
        self._pipelines, self._ask = pipelines, pipelines.ask
        self._connection, self._lease = connection, lease
        self._node_key = partial(names.node_key, prefix=prefix)
        self._sessions_key = partial(names.node_sessions_key, prefix=prefix)
        self._user_key = partial(names.user_key, prefix=prefix)
        self._pending_key = partial(names.pending_key, prefix=prefix)
        self._nodes_key = names.nodes_key(prefix)
        self._inspection = Inspection(connection, prefix, lease)
        self._peers: list[Node] = []
        """Nodes that were live lately: whether they still are is asked in the same round as where a user is."""

    # -- nodes ---------------------------------------------------------------------------------------------------------
    async def join(self, record: NodeRecord) -> None:
        await self._ask(self._join(record))
        self._connection.proven = True

    def _join(self, record: NodeRecord) -> Rounds[None]:
        known = yield from self._known()
        same = [node for node, _ in known if node != record.node and names.slug(node) == names.slug(record.node)]
        held = yield [("EXISTS", self._node_key(node)) for node in same]
        if any(held):
            raise AddressTaken(
                f"{record.node} and {same[held.index(1)]} would share names; choose another --advertise."
            )
        (taken,) = yield [self._lua(JOIN, self._node_key(record.node), record.store, *self._hash(record))]
        if not taken:
            raise AddressTaken(f"{record.node} is held by another live node; choose another --listen or --advertise.")
        yield [self._lua(BEAT, self._nodes_key, record.node)]

    async def renew(self, record: NodeRecord) -> bool:
        return await self._ask(self._renew(record))

    def _renew(self, record: NodeRecord) -> Rounds[bool]:
        (renewed,) = yield [self._lua(RENEW, self._node_key(record.node), record.incarnation, *self._hash(record))]
        if renewed < 0:
            raise AddressTaken(f"Another process serves as {record.node} now; this one stops.")
        if renewed:
            yield [self._lua(BEAT, self._nodes_key, record.node)]
        return bool(renewed)

    def _hash(self, record: NodeRecord) -> tuple[str | int, ...]:
        return int(self._lease * 1000), *node_fields(record)

    async def leave(self, record: NodeRecord) -> None:
        await self._ask(self._leave(record))

    def _leave(self, record: NodeRecord) -> Rounds[None]:
        key, entries = self._node_key(record.node), self._sessions_key(record.node)
        held, sessions = yield [("HGET", key, "incarnation"), ("SMEMBERS", entries)]
        if held != record.incarnation:
            return
        for chunk in chunks(sorted(sessions)):  # what is left is ours, or an earlier life's
            yield [("HDEL", self._user_key(openid_of(session)), session) for session in chunk]
            yield [("SREM", entries, *chunk)]
        (left,) = yield [self._lua(LEAVE, key, record.incarnation)]
        if left:
            yield [("ZREM", self._nodes_key, record.node)]

    async def nodes(self) -> list[NodeRecord]:
        return await self._ask(self._nodes())

    def _nodes(self) -> Rounds[list[NodeRecord]]:
        known = yield from self._known()
        asked: list[Command] = []
        for node, _ in known:
            key = self._node_key(node)
            asked += [("HGETALL", key), ("PTTL", key), ("SCARD", self._sessions_key(node))]
        replies = yield asked
        found = []
        for (node, silent), fields, remaining, sessions in zip(
            known, replies[::3], replies[1::3], replies[2::3], strict=True
        ):
            age = self._lease - remaining / 1000 if remaining >= 0 else silent
            found.append(node_record(node, fields, max(0.0, age), sessions))
        self._peers = [record.node for record in found if record.state != "dead"][:GUESSED]
        return sorted(found, key=lambda record: record.node)

    def _known(self) -> Rounds[list[tuple[Node, float]]]:
        """All nodes with the seconds since their last heartbeat, by the server's clock."""
        ((now, flat),) = yield [self._lua(NODES, self._nodes_key)]
        return [(Node(flat[i]), (int(now) - float(flat[i + 1])) / 1000) for i in range(0, len(flat), 2)]

    # -- sessions ------------------------------------------------------------------------------------------------------
    async def claim(self, sessions: Sequence[SessionRecord]) -> list[bool]:
        return await self._ask(self._claim(sessions))

    def _claim(self, sessions: Sequence[SessionRecord]) -> Rounds[list[bool]]:
        news: list[bool] = []
        for chunk in chunks(sessions):  # first the sets: an entry that none names would never be reaped
            yield [
                *(self._lua(LIST, self._nodes_key, node) for node in {session.node for session in chunk}),
                *(("SADD", self._sessions_key(session.node), session.session_id) for session in chunk),
            ]
            replies = yield [
                self._lua(
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
        await self._ask(self._release(sessions))

    def _release(self, sessions: Sequence[SessionRecord]) -> Rounds[None]:
        for chunk in chunks(sessions):
            yield [("HDEL", self._user_key(session.openid), session.session_id) for session in chunk]
            yield [("SREM", self._sessions_key(session.node), session.session_id) for session in chunk]

    async def reap(self, sessions: Sequence[SessionRecord]) -> None:
        await self._ask(self._reap(sessions))

    def _reap(self, sessions: Sequence[SessionRecord]) -> Rounds[None]:
        live = yield from self._incarnations({session.node for session in sessions})
        dead = [session for session in sessions if live[session.node] != session.incarnation]  # and stays so
        for chunk in chunks(dead):
            gone = yield [
                self._lua(REAP, self._user_key(session.openid), session.session_id, Entry.of(session).text())
                for session in chunk
            ]
            yield [
                ("SREM", self._sessions_key(session.node), session.session_id)
                for session, removed in zip(chunk, gone, strict=True)
                if removed
            ]

    async def locate(self, openids: Sequence[OpenId]) -> Mapping[OpenId, Sequence[SessionRecord]]:
        return await self._ask(self._locate(openids))

    def _locate(self, openids: Sequence[OpenId]) -> Rounds[Mapping[OpenId, Sequence[SessionRecord]]]:
        guessed = self._peers
        replies = yield [
            *(("HGETALL", self._user_key(openid)) for openid in openids),
            *(("HGET", self._node_key(node), "incarnation") for node in guessed),
        ]
        live = dict(zip(guessed, replies[len(openids) :], strict=True))
        found = {
            openid: session_records(openid, reply) for openid, reply in zip(openids, replies, strict=False) if reply
        }
        live |= yield from self._incarnations(
            {entry.node for entries in found.values() for entry in entries} - live.keys()
        )
        return {
            openid: [entry for entry in entries if live[entry.node] == entry.incarnation]
            for openid, entries in found.items()
        }

    def _incarnations(self, nodes: Iterable[Node]) -> Rounds[dict[Node, str | None]]:
        """The incarnations of these nodes, None for those that are not live."""
        asked = sorted(nodes)
        if not asked:
            return {}
        replies = yield [("HGET", self._node_key(node), "incarnation") for node in asked]
        return dict(zip(asked, replies, strict=True))

    async def sessions(self, *, node: Node | None = None, openid: OpenId | None = None) -> list[SessionRecord]:
        return await self._ask(self._sessions(node, openid))

    def _sessions(self, node: Node | None, openid: OpenId | None) -> Rounds[list[SessionRecord]]:
        found: list[SessionRecord] = []
        if openid is not None:
            (reply,) = yield [("HGETALL", self._user_key(openid))]
            found = [entry for entry in session_records(openid, reply) if node in (None, entry.node)]
        else:
            nodes = [node] if node is not None else [known for known, _ in (yield from self._known())]
            members = yield [("SMEMBERS", self._sessions_key(node)) for node in nodes]
            for chunk in chunks([SessionId(session) for sessions in members for session in sessions]):
                replies = yield [("HGET", self._user_key(openid_of(session)), session) for session in chunk]
                for session, text in zip(chunk, replies, strict=True):
                    found += session_records(openid_of(session), {session: text} if text else {})
        return sorted(found, key=lambda entry: (entry.openid, entry.session_id))

    # -- pending sets --------------------------------------------------------------------------------------------------
    async def enter(self, node: Node, openids: Sequence[OpenId]) -> None:
        await self._ask(self._each("SADD", node, openids))

    async def leave_pending(self, node: Node, openids: Sequence[OpenId]) -> None:
        await self._ask(self._each("SREM", node, openids))

    def _each(self, command: str, node: Node, openids: Sequence[OpenId]) -> Rounds[None]:
        for chunk in chunks(openids):
            yield [(command, self._pending_key(openid), node) for openid in chunk]

    async def pending(self, openids: Sequence[OpenId]) -> Mapping[OpenId, Sequence[Node]]:
        return await self._ask(self._pending(openids))

    def _pending(self, openids: Sequence[OpenId]) -> Rounds[Mapping[OpenId, Sequence[Node]]]:
        replies = yield [("SMEMBERS", self._pending_key(openid)) for openid in openids]
        live = yield from self._incarnations({node for nodes in replies for node in nodes})
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

    def _lua(self, script: str, key: str, *arguments: str | int) -> Command:
        return "EVAL", script, 1, key, *arguments
