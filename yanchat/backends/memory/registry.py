"""A registry in memory. Nodes reach it through views, which a test can cut off; it can forget, as a server does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import trio
from msgspec.structs import replace

from yanchat.backends.findings import Places, find_contradictions
from yanchat.errors import AddressTaken, RegistryUnavailable
from yanchat.model import Contradiction, Node, NodeRecord, OpenId, SessionId, SessionRecord
from yanchat.ports import Registry

R = TypeVar("R")
K = TypeVar("K")
_PLACES = Places("The nodes", lambda _: "The sessions", lambda _: "The pending sets")


class MemoryRegistry:
    """What the cluster knows. `now` is the registry's own clock and `lease` the time to live, both in seconds."""

    def __init__(self, now: Callable[[], float], lease: float) -> None:
        self.now, self.lease = now, lease
        self.up = True
        """False: every view raises RegistryUnavailable."""
        self.writable = True
        """False: it only says what it knows, as a server without memory does, or a replica."""
        self.epoch = "1"
        self.nodes: dict[Node, tuple[NodeRecord, float]] = {}
        """With the time at which the lease lapses."""
        self.sessions: dict[tuple[OpenId, SessionId], SessionRecord] = {}
        self.pending: dict[OpenId, set[Node]] = {}

    def view(self) -> RegistryView:
        """What one node sees of it."""
        return RegistryView(self)

    def forget_all(self) -> None:
        """As FLUSHALL does: the same server answers, and knows nothing."""
        self.nodes.clear()
        self.sessions.clear()
        self.pending.clear()

    def fail_over(self) -> None:
        """Another server answers, which has missed every other entry."""
        self.epoch = str(int(self.epoch) + 1)
        _halve(self.nodes)
        _halve(self.sessions)
        _halve(self.pending)

    def held(self, node: Node) -> NodeRecord | None:
        """The live record under this address."""
        record, until = self.nodes.get(node, (None, 0.0))
        return record if until > self.now() else None

    def live(self, entry: SessionRecord) -> bool:
        holder = self.held(entry.node)
        return holder is not None and holder.incarnation == entry.incarnation


class RegistryView(Registry):
    """Made by `MemoryRegistry.view`."""

    def __init__(self, registry: MemoryRegistry) -> None:
        self._it = registry
        self.up = True
        """False: this node cannot reach the registry."""
        self.answers = True
        """False: calls take effect, but their answers do not arrive."""
        self.takes = 0.0
        """Seconds that a call takes before it takes effect."""

    async def _run(self, work: Callable[[], R], writes: bool = False) -> R:
        await trio.sleep(self.takes)
        if not (self.up and self._it.up):
            raise RegistryUnavailable("The registry does not answer; is it running?")
        if writes and not self._it.writable:
            raise RegistryUnavailable("The registry cannot be written; has it memory left?")
        result = work()
        if not self.answers:
            raise RegistryUnavailable("The registry has not answered in time; is it overloaded?")
        return result

    async def join(self, record: NodeRecord) -> None:
        def work() -> None:
            holder = self._it.held(record.node)
            if holder is not None and holder.store != record.store:
                raise AddressTaken(f"{record.node} is held by another live node; choose another address.")
            self._it.nodes[record.node] = record, self._it.now() + self._it.lease

        await self._run(work, writes=True)

    async def renew(self, record: NodeRecord) -> bool:
        def work() -> bool:
            holder = self._it.held(record.node)
            if holder is None:
                return False
            if holder.incarnation != record.incarnation:
                raise AddressTaken(f"Another process serves as {record.node} now; this one stops.")
            self._it.nodes[record.node] = record, self._it.now() + self._it.lease
            return True

        return await self._run(work, writes=True)

    async def leave(self, record: NodeRecord) -> None:
        def work() -> None:
            found, _ = self._it.nodes.get(record.node, (None, 0.0))
            if found is not None and found.incarnation == record.incarnation:
                del self._it.nodes[record.node]

        await self._run(work, writes=True)

    async def nodes(self) -> list[NodeRecord]:
        return await self._run(self._nodes)

    def _nodes(self) -> list[NodeRecord]:
        now, found = self._it.now(), []
        for record, until in self._it.nodes.values():
            here = [
                entry
                for entry in self._it.sessions.values()
                if (entry.node, entry.incarnation) == (record.node, record.incarnation)
            ]
            state = record.state if until > now else "dead"
            found.append(replace(record, state=state, age=now - until + self._it.lease, sessions=len(here)))
        return sorted(found, key=lambda record: record.node)

    async def claim(self, sessions: Sequence[SessionRecord]) -> list[bool]:
        return await self._run(lambda: list(map(self._claim, sessions)), writes=True)

    def _claim(self, session: SessionRecord) -> bool:
        key = (session.openid, session.session_id)
        found = self._it.sessions.get(key)
        if found is not None and found.incarnation == session.incarnation:
            return False
        stamp = int(self._it.now() * 1000) if found is None else found.stamp
        self._it.sessions[key] = replace(session, stamp=stamp)
        return True

    async def release(self, sessions: Sequence[SessionRecord]) -> None:
        def work() -> None:
            for session in sessions:
                self._it.sessions.pop((session.openid, session.session_id), None)

        await self._run(work, writes=True)

    async def reap(self, sessions: Sequence[SessionRecord]) -> None:
        def work() -> None:
            for session in sessions:
                key = (session.openid, session.session_id)
                if self._it.sessions.get(key) == session and not self._it.live(session):
                    del self._it.sessions[key]

        await self._run(work, writes=True)

    async def locate(self, openids: Sequence[OpenId]) -> Mapping[OpenId, Sequence[SessionRecord]]:
        def work() -> Mapping[OpenId, Sequence[SessionRecord]]:
            found: dict[OpenId, list[SessionRecord]] = {}
            wanted = set(openids)
            for entry in self._it.sessions.values():
                if entry.openid in wanted and self._it.live(entry):
                    found.setdefault(entry.openid, []).append(entry)
            return found

        return await self._run(work)

    async def sessions(self, *, node: Node | None = None, openid: OpenId | None = None) -> list[SessionRecord]:
        return await self._run(
            lambda: [
                entry
                for _, entry in sorted(self._it.sessions.items())
                if node in (None, entry.node) and openid in (None, entry.openid)
            ]
        )

    async def enter(self, node: Node, openids: Sequence[OpenId]) -> None:
        def work() -> None:
            for openid in openids:
                self._it.pending.setdefault(openid, set()).add(node)

        await self._run(work, writes=True)

    async def leave_pending(self, node: Node, openids: Sequence[OpenId]) -> None:
        def work() -> None:
            for openid in openids:
                self._it.pending.get(openid, set()).discard(node)

        await self._run(work, writes=True)

    async def pending(self, openids: Sequence[OpenId]) -> Mapping[OpenId, Sequence[Node]]:
        def live(nodes: Iterable[Node]) -> list[Node]:
            return [node for node in sorted(nodes) if self._it.held(node) is not None]

        return await self._run(lambda: {openid: live(self._it.pending.get(openid, ())) for openid in openids})

    async def epoch(self) -> str:
        return await self._run(lambda: self._it.epoch)

    async def contradictions(self) -> list[Contradiction]:
        def work() -> list[Contradiction]:
            pending = [(openid, node) for openid, nodes in self._it.pending.items() for node in sorted(nodes)]
            return find_contradictions(self._nodes(), self._it.sessions.values(), pending, _PLACES)

        return await self._run(work)

    async def mend(self, found: Sequence[Contradiction]) -> None:
        def work() -> None:
            for one in found:
                if one.kind == "dead" and self._it.held(one.node) is None:
                    self._it.nodes.pop(one.node, None)
                elif one.kind == "gone_holder" and one.node not in self._it.nodes:
                    self._it.pending.get(one.openid, set()).discard(one.node)

        await self.reap([one.entry for one in found if one.entry is not None])
        await self._run(work, writes=True)


def _halve(table: dict[K, Any]) -> None:
    for key in list(table)[::2]:
        del table[key]
