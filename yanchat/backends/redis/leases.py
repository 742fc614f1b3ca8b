"""The nodes in Redis: each a hash whose time to live is its lease. What a call asks, round by round."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from yanchat import names
from yanchat.backends.redis.connection import Command
from yanchat.backends.redis.entries import node_fields, node_record
from yanchat.backends.redis.pipelines import Rounds, chunks
from yanchat.backends.redis.scripts import BEAT, JOIN, LEAVE, NODES, RENEW, lua
from yanchat.errors import AddressTaken
from yanchat.model import Node, NodeRecord
from yanchat.protocol.ids import openid_of


class Leases:
    """The registry's calls about nodes, as `Pipelines` takes them."""

    def __init__(self, prefix: str, lease: float, changed: Callable[[], None]) -> None:
        """`lease` in seconds; `changed` is told when a look has found other nodes live than the one before."""
        self._lease, self._changed = lease, changed
        self._node_key = partial(names.node_key, prefix=prefix)
        self._sessions_key = partial(names.node_sessions_key, prefix=prefix)
        self._user_key = partial(names.user_key, prefix=prefix)
        self._nodes_key = names.nodes_key(prefix)
        self.live: dict[Node, str] = {}
        """The incarnations of the nodes that were live when that was last looked at."""

    def join(self, record: NodeRecord) -> Rounds[None]:
        known = yield from self.known()
        same = [node for node, _ in known if node != record.node and names.slug(node) == names.slug(record.node)]
        held = yield [("EXISTS", self._node_key(node)) for node in same]
        if any(held):
            raise AddressTaken(
                f"{record.node} and {same[held.index(1)]} would share names; choose another --advertise."
            )
        (taken,) = yield [lua(JOIN, self._node_key(record.node), record.store, *self._hash(record))]
        if not taken:
            raise AddressTaken(f"{record.node} is held by another live node; choose another --listen or --advertise.")
        yield [lua(BEAT, self._nodes_key, record.node)]

    def renew(self, record: NodeRecord) -> Rounds[bool]:
        (renewed,) = yield [lua(RENEW, self._node_key(record.node), record.incarnation, *self._hash(record))]
        if renewed < 0:
            raise AddressTaken(f"Another process serves as {record.node} now; this one stops.")
        if renewed:
            yield [lua(BEAT, self._nodes_key, record.node)]
        return bool(renewed)

    def _hash(self, record: NodeRecord) -> tuple[str | int, ...]:
        return int(self._lease * 1000), *node_fields(record)

    def leave(self, record: NodeRecord) -> Rounds[None]:
        key, entries = self._node_key(record.node), self._sessions_key(record.node)
        held, sessions = yield [("HGET", key, "incarnation"), ("SMEMBERS", entries)]
        if held != record.incarnation:
            return
        for chunk in chunks(sorted(sessions)):  # what is left is ours, or an earlier life's
            yield [("HDEL", self._user_key(openid_of(session)), session) for session in chunk]
            yield [("SREM", entries, *chunk)]
        (left,) = yield [lua(LEAVE, key, record.incarnation)]
        if left:
            yield [("ZREM", self._nodes_key, record.node)]

    def nodes(self) -> Rounds[list[NodeRecord]]:
        known = yield from self.known()
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
        live = {record.node: record.incarnation for record in found if record.state != "dead"}
        if live != self.live:
            self.live = live
            self._changed()
        return sorted(found, key=lambda record: record.node)

    def known(self) -> Rounds[list[tuple[Node, float]]]:
        """All nodes with the seconds since their last heartbeat, by the server's clock."""
        ((now, flat),) = yield [lua(NODES, self._nodes_key)]
        return [(Node(flat[i]), (int(now) - float(flat[i + 1])) / 1000) for i in range(0, len(flat), 2)]

    def incarnations(self, nodes: Iterable[Node]) -> Rounds[dict[Node, str | None]]:
        """The incarnations of these nodes, None for those that are not live."""
        asked = sorted(nodes)
        if not asked:
            return {}
        replies = yield [("HGET", self._node_key(node), "incarnation") for node in asked]
        return dict(zip(asked, replies, strict=True))
