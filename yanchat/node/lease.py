"""The node's place in the registry: join, heartbeat, fence, leave; and reaping what dead nodes left behind."""

from __future__ import annotations

from collections.abc import Callable

import structlog
import trio
from msgspec.structs import replace

from yanchat.errors import AddressTaken, RegistryUnavailable
from yanchat.model import Node, NodeRecord
from yanchat.names import slug
from yanchat.node.mailboxes import Mailboxes
from yanchat.ports import Bus, Clock, Registry
from yanchat.telemetry import Counters

LEASE, HEARTBEAT, SLOW = 10.0, 3.0, 60.0
JOIN_AGAIN_AFTER = 0.5


class Lease:
    """`run` keeps the lease; AddressTaken comes out of it when another holds the address."""

    def __init__(
        self, registry: Registry, bus: Bus, record: NodeRecord, mailboxes: Mailboxes, clock: Clock, counters: Counters
    ) -> None:
        self._registry, self._bus, self._record, self._mailboxes = registry, bus, record, mailboxes
        self._clock, self._counters = clock, counters
        self._peers: dict[Node, str] = {}
        self._epoch = ""
        self._claimed = clock.monotonic()
        self._unsaid = False
        """Our incarnation is another one, and the sessions here are not yet claimed for it."""
        self.joined = trio.Event()
        self.trouble = "The registry has not been asked yet."
        """Why the last heartbeat failed; empty when it did not."""
        self.kept = True
        """The lease could be renewed, or has not been tried: others' can be, too."""
        self.claim_all: Callable[[], None] = lambda: None
        """Claims every session again; set by whoever builds the node."""
        self._beaten = clock.monotonic()

    @property
    def age(self) -> float:
        """Seconds since the last heartbeat that succeeded, or since the start."""
        return self._clock.monotonic() - self._beaten

    @property
    def peers(self) -> int:
        """How many other nodes are up."""
        return len(self._peers)

    @property
    def incarnation(self) -> str:
        return self._record.incarnation

    async def run(self) -> None:
        """Join, then beat, as long as the node lives."""
        while True:
            try:
                with trio.fail_after(HEARTBEAT):
                    await self._beat()
                self.trouble, self._beaten = "", self._clock.monotonic()
            except (RegistryUnavailable, trio.TooSlowError) as error:
                self._counters.registry_failed += 1
                self.trouble = str(error) or "The registry does not answer in time."
                structlog.get_logger().warning("registry.heartbeat_failed", error=self.trouble)
            await trio.sleep(HEARTBEAT if self.joined.is_set() else JOIN_AGAIN_AFTER)

    async def _beat(self) -> None:
        now = self._clock.monotonic()
        try:
            await self._keep()
        except BaseException:
            self.kept = False
            raise
        self.kept = True
        epoch = await self._registry.epoch()
        if self._unsaid or (self._epoch and epoch != self._epoch) or now - self._claimed >= SLOW:
            self._again(now)
        self._epoch = epoch
        await self._look_around()

    async def _keep(self) -> None:
        if not self.joined.is_set():
            await self._check_slug()
            await self._join()
            await self._reap([self._record.node])  # what an earlier life left behind
            self.trouble = ""
            self.joined.set()
        elif not await self._registry.renew(self._record):
            self._record = replace(self._record, incarnation=f"{self._clock.rng.getrandbits(64):016x}")
            self._unsaid = True  # also when the answer to the join is lost: the next renewal finds us there
            await self._join()
            structlog.get_logger().warning("registry.joined_again", incarnation=self.incarnation)

    async def _check_slug(self) -> None:
        """Topics and directories go by the slug: two live nodes with one would read each other's records."""
        for other in await self._registry.nodes():
            own = self._record.node
            if other.state != "dead" and other.node != own and slug(other.node) == slug(own):
                raise AddressTaken(f"{own} cannot be told from {other.node}, a live node; choose another --advertise.")

    async def _join(self) -> None:
        self._bus.incarnation = self.incarnation
        await self._registry.join(self._record)

    def _again(self, now: float) -> None:
        """What was written may be gone, or our incarnation is a new one: say everything once more."""
        self._claimed, self._unsaid = now, False
        self.claim_all()
        self._mailboxes.look_at_all()

    async def _look_around(self) -> None:
        nodes = await self._registry.nodes()
        live = {record.node: record.incarnation for record in nodes if record.state == "up"}
        changed = {node for node, incarnation in self._peers.items() if live.get(node) != incarnation}
        self._peers = {node: incarnation for node, incarnation in live.items() if node != self._record.node}
        if changed:
            self._mailboxes.peers_changed(changed)
        await self._reap([record.node for record in nodes if record.state == "dead" and record.sessions])

    async def _reap(self, nodes: list[Node]) -> None:
        """Remove entries of dead incarnations; a node that is coming back may be claiming them at this moment."""
        for node in nodes:
            await self._registry.reap(await self._registry.sessions(node=node))

    async def drain(self) -> None:
        """Say that this node takes no more."""
        self._record = replace(self._record, state="draining")
        await self._registry.renew(self._record)

    async def leave(self) -> None:
        """Give the address back."""
        await self._registry.leave(self._record)
