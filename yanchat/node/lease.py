"""The node's place in the registry: join, heartbeat, fence, leave; and reaping what dead nodes left behind."""

from __future__ import annotations

from collections.abc import Callable

import structlog
import trio
from msgspec.structs import replace

from yanchat.errors import RegistryUnavailable
from yanchat.model import Node, NodeRecord
from yanchat.node.looks import Mailboxes
from yanchat.ports import Clock, Registry
from yanchat.telemetry import Counters

LEASE, HEARTBEAT, SLOW = 10.0, 3.0, 60.0


class Lease:
    """`run` keeps the lease; AddressTaken comes out of it when another holds the address."""

    def __init__(
        self, registry: Registry, record: NodeRecord, mailboxes: Mailboxes, clock: Clock, counters: Counters
    ) -> None:
        self._registry, self._record, self._mailboxes = registry, record, mailboxes
        self._clock, self._counters = clock, counters
        self._peers: dict[Node, str] = {}
        self._epoch = ""
        self._claimed = clock.monotonic()
        self.joined = trio.Event()
        self.claim_all: Callable[[], None] = lambda: None
        """Claims every session again; set by the composition root."""

    @property
    def incarnation(self) -> str:
        return self._record.incarnation

    async def run(self) -> None:
        """Join, then beat, as long as the node lives."""
        while True:
            try:
                with trio.fail_after(HEARTBEAT):
                    await self._beat()
            except (RegistryUnavailable, trio.TooSlowError) as error:
                self._counters.registry_failed += 1
                structlog.get_logger().warning("registry.heartbeat_failed", error=str(error))
            await trio.sleep(HEARTBEAT if self.joined.is_set() else 0.2)

    async def _beat(self) -> None:
        registry, now = self._registry, self._clock.monotonic()
        if not self.joined.is_set():
            await registry.join(self._record)
            self.joined.set()
        elif not await registry.renew(self._record):
            incarnation = f"{self._clock.rng.getrandbits(64):016x}"
            self._record = replace(self._record, incarnation=incarnation)
            await registry.join(self._record)
            structlog.get_logger().warning("registry.joined_again", incarnation=incarnation)
            self._again(now)
        epoch = await registry.epoch()
        if (self._epoch and epoch != self._epoch) or now - self._claimed >= SLOW:
            self._again(now)
        self._epoch = epoch
        await self._look_around()

    def _again(self, now: float) -> None:
        self._claimed = now
        self.claim_all()
        self._mailboxes.look_at_all()

    async def _look_around(self) -> None:
        nodes = await self._registry.nodes()
        live = {record.node: record.incarnation for record in nodes if record.state == "up"}
        changed = {node for node, incarnation in self._peers.items() if live.get(node) != incarnation}
        self._peers = {node: incarnation for node, incarnation in live.items() if node != self._record.node}
        if changed - {self._record.node}:
            self._mailboxes.peers_changed(changed)
        alive = {(record.node, record.incarnation) for record in nodes if record.state != "dead"}
        ghosts = [
            entry
            for entry in await self._registry.sessions()
            if (entry.node, entry.incarnation) not in alive and entry.node != self._record.node
        ]
        own = await self._registry.sessions(node=self._record.node)
        ghosts += [entry for entry in own if entry.incarnation != self.incarnation]
        if ghosts:
            await self._registry.reap(ghosts)

    async def drain(self) -> None:
        """Say that this node takes no more."""
        self._record = replace(self._record, state="draining")
        await self._registry.renew(self._record)

    async def leave(self) -> None:
        """Give the address back."""
        await self._registry.leave(self._record)
