"""What goes wrong in a simulated cluster. Each run draws some kinds of faults, so that rare ones are not always masked.

After `end` nothing fails any more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import trio

from tests.node.cluster import RunningNode
from tests.proof.virtual import CrashAt
from yanchat.model import Node
from yanchat.protocol.client_frames import Message
from yanchat.protocol.records import Record

if TYPE_CHECKING:
    from tests.proof.world import World

KINDS = (
    "crash",
    "crash at an await",
    "pause",
    "no registry",
    "no bus",
    "partition",
    "deaf registry",
    "deaf bus",
    "flush",
    "fail over",
    "registry away",
    "bus away",
    "disk full",
    "disk slow",
    "clock",
)
ON_THE_WAY = ("lose", "repeat", "delay")
"""What may become of a record."""
HOUR_MS = 3_600_000


class Faults:
    def __init__(self, world: World) -> None:
        self._world = world
        rng = world.rng
        self._kinds = [kind for kind in KINDS if rng.random() < 0.5] or ["crash"]
        self._ways = {way for way in ON_THE_WAY if rng.random() < 0.4}
        self._away: dict[Node, float] = {}
        """Nodes that the bus cannot reach, and until when."""
        self._mend: dict[tuple[str, str], Callable[[], None]] = {}
        self._reviving: set[str] = set()
        self._armed: list[CrashAt] = []

    @property
    def lose(self) -> bool:
        """Whether records of this run may be lost on their way."""
        return "lose" in self._ways and not self._world.calm

    def fate(self, node: Node, record: Record) -> tuple[float, ...]:
        """After how many seconds each copy of a record arrives."""
        world, now = self._world, trio.current_time()
        wait = max(0.0, self._away.get(node, 0.0) - now)
        if not world.faulty:
            return (wait + 0.001,)
        if (copies := world.adoptions.fate(node, record)) is not None:
            return tuple(wait + after for after in copies)
        chance = world.rng.random()
        delay = wait + world.rng.random() * (1 if chance > 0.97 and "delay" in self._ways else 0.01)
        if chance < 0.02 and "lose" in self._ways:
            return ()
        if chance < 0.04 and "repeat" in self._ways:
            return delay, delay + world.rng.random() * 20 * world.rng.random()
        return (delay,)

    async def strike(self) -> None:
        """One fault at one node, or at what all share."""
        world, rng = self._world, self._world.rng
        node = rng.choice(sorted(world.cluster.nodes.values(), key=lambda node: node.name))
        kind = rng.choice(self._kinds)
        world.note("fault", kind, node.name)
        registry, bus, store = world.cluster.registry, world.cluster.bus, node.store
        match kind:
            case "crash" if not node.gone:
                self.crash(node)
            case "crash at an await" if not (node.gone or node.pause.on):
                self.arm(node, rng.choice((1, 3, 10, 50, 300)) + rng.randrange(30))
            case "pause" if not (node.gone or node.pause.on):
                node.pause.begin()
                self._until(rng.choice((0.5, 5, 12, 25)), "pause", node, node.resume)
            case "no registry":
                self._off(node, node.registry, "up", rng.choice((1, 4, 14)))
            case "no bus":
                self.cut_off(node, rng.choice((1, 4, 14)))
            case "partition":
                seconds = rng.choice((1, 4, 14))
                self._off(node, node.registry, "up", seconds)
                self.cut_off(node, seconds)
            case "deaf registry":
                self._off(node, node.registry, "answers", rng.choice((0.5, 5)))
            case "deaf bus":
                self._off(node, node.bus, "answers", rng.choice((0.5, 5)))
            case "flush":
                registry.forget_all()
            case "fail over":
                registry.fail_over()
            case "registry away":
                self._off(None, registry, "up", rng.choice((0.5, 5, 20)))
            case "bus away":
                self._off(None, bus, "up", rng.choice((0.5, 5, 20)))
            case "disk full" if not node.gone:
                self._off(node, store, "writable", rng.choice((0.5, 5)))
            case "disk slow":
                before, after = store.before_commit, store.after_commit
                store.before_commit, store.after_commit = rng.choice(((0.3, 0.0), (0.0, 0.3), (2.0, 2.0)))

                def quick() -> None:
                    store.before_commit, store.after_commit = before, after

                self._until(rng.choice((1, 6)), "slow", node, quick)
            case "clock":
                world.cluster.skew[node.short] = rng.choice((-HOUR_MS, -2000, 0, 2000, HOUR_MS))
            case _:
                pass
        await trio.lowlevel.checkpoint()

    def _until(self, seconds: float, what: str, node: RunningNode | None, mend: Callable[[], None]) -> None:
        """Mend it after so long, or when the faults end; the same fault again changes nothing."""
        key = ("" if node is None else node.short, what)
        if key in self._mend:
            return
        self._mend[key] = mend

        def now() -> None:
            if self._mend.get(key) is mend:
                del self._mend[key]
                mend()

        self._world.later(seconds, now)

    def _off(self, node: RunningNode | None, what: Any, switch: str, seconds: float) -> None:
        setattr(what, switch, False)
        self._until(seconds, f"{type(what).__name__} {switch}", node, lambda: setattr(what, switch, True))

    def cut_off(self, node: RunningNode, seconds: float) -> None:
        self.silence(node, seconds)
        self.unheard(node, seconds)

    def silence(self, node: RunningNode, seconds: float) -> None:
        """What it says does not leave."""
        self._off(node, node.bus, "up", seconds)

    def unheard(self, node: RunningNode, seconds: float) -> None:
        """What comes for it comes late."""
        self._away[node.name] = trio.current_time() + seconds

    def crash(self, node: RunningNode) -> None:
        if node.gone:
            return
        node.crash()
        self._world.note("crash", node.name)
        if self._world.adoptions.takes(node):
            return
        self._reviving.add(node.short)
        self._world.later(self._world.rng.choice((0.2, 3, 15)), lambda: self.revive(node))

    async def revive(self, node: RunningNode) -> None:
        for key in [key for key in self._mend if key[0] == node.short]:
            self._mend.pop(key)()
        await self._world.cluster.start(node.short)
        self._reviving.discard(node.short)

    def after_an_ack(self, message: Message) -> bool:
        """Now and then the accepting node dies while an ack is on its way: who has acked had better not come again."""
        world, rng = self._world, self._world.rng
        if world.adoptions.after_an_ack(message):
            return True
        here = sum(not user.vanished for user in world.users)
        if "crash at an await" not in self._kinds or here < 2 or rng.random() > 0.08:
            return False
        for node in world.cluster.nodes.values():
            if (message.message_id, message.recipient) in node.store._orders and not (node.gone or node.pause.on):
                self.arm(node, 1 + rng.randrange(rng.choice((12, 40))))
        return True

    def arm(self, node: RunningNode, steps: int) -> None:
        """It dies before the so-manieth step of its tasks from now."""
        crash = CrashAt(node.pause, steps, lambda: self.crash(node))
        crash.arm()
        self._armed.append(crash)

    async def end(self) -> None:
        """Nothing fails any more: what is broken is mended, and who is dead comes back."""
        for crash in self._armed:
            crash.disarm()
        for mend in list(self._mend.values()):
            mend()
        self._mend.clear()
        while self._reviving:
            await trio.sleep(0.5)
