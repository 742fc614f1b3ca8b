"""Nodes of a simulated cluster that die for good, and runs that move their rows to others while all goes on failing.

Only some seeds have it, by chances of their own: what the other seeds draw does not depend on it.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import MethodType
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import trio

from tests.node.cluster import RunningNode
from tests.proof import invariants
from tests.proof.lane import LaneStore
from tests.proof.virtual import CrashAt, Pause
from yanchat import adoption
from yanchat.adoption import Run, choose_adopter
from yanchat.errors import YanchatError
from yanchat.model import Key, Node, Row
from yanchat.ports import Bus, Outbox, Registry
from yanchat.protocol.client_frames import Message
from yanchat.protocol.records import Acked, Adopt, Adopted, Record, Topic

if TYPE_CHECKING:
    from tests.proof.world import World

SHARE = 0.15
"""Of the seeds with faults."""
LATE = 0.3
"""Of the acks of what a dead node had accepted: so many leave late."""
LONG_UNDER_WAY = 0.6
"""And so many of them come late."""
SECONDS = (60.0, 90.0, 120.0)
"""For which users talk in such a seed: a lease must lapse, and runs have time to fail."""


class Adoptions:
    """`drawn`: this seed has them. Without that nothing here does anything."""

    def __init__(self, world: World, seed: int) -> None:
        self._world = world
        rng = self._rng = random.Random(f"adoption-{seed}")
        self.drawn = rng.random() < SHARE and not world.calm
        self.seconds, self.nodes = rng.choice(SECONDS), rng.choice((2, 3, 4, 5))
        self._at_once = rng.choice((2, 10, 500))
        """Rows, and acks, that a run takes at once."""
        self._due = False
        """Whoever crashes next is not started again."""
        self._dying: set[str] = set()
        self.dead: set[str] = set()
        """Nodes whose rows are to go."""
        self.gone: set[str] = set()
        """Nodes that are never started again; their rows have gone."""
        self._left: dict[str, float] = {}
        """When the last run over a node's rows has ended."""
        self._next_late = 0.0
        self.runs = self.cut = self.moved = 0

    @contextmanager
    def small_batches(self) -> Iterator[None]:
        """A run over a hundred rows is to take more than one step."""
        if not self.drawn:
            yield
            return
        with (
            patch.object(adoption, "ROWS_AT_ONCE", self._at_once),
            patch.object(adoption, "ACKS_AT_ONCE", self._at_once),
        ):
            yield

    def watch(self, short: str, store: LaneStore) -> None:
        """Have all that is adopted into this store, or has moved away from it, looked at."""
        if self.drawn:
            store.adopting = partial(self._adopting, short)
            store.moving = lambda keys: invariants.on_moved(self._world, short, keys)

    # -- who dies ------------------------------------------------------------------------------------------------------
    def begin(self) -> None:
        """Users begin to talk: some time from now a node dies for good."""
        if self.drawn:
            self._world.later(self.seconds * self._rng.uniform(0.02, 0.4), self._end_one)

    async def _end_one(self) -> None:
        """Preferably one that holds something, and in the middle of something."""
        world, rng = self._world, self._rng
        up = [node for _, node in sorted(world.cluster.nodes.items()) if not (node.gone or node.pause.on)]
        if not up:
            return
        node = max(up, key=_held) if rng.random() < 0.6 else rng.choice(up)
        self._dying = {node.short}
        cut_off = rng.random() < 0.4
        if cut_off:
            if rng.random() < 0.4:
                world.faults.cut_off(node, 6)
                await trio.sleep(rng.random() * 6)
            else:  # it hears the others, and what it says does not leave
                world.faults.silence(node, 20)
        deaf = not cut_off and rng.random() < 0.8
        for _ in range(rng.choice((0, 1, 3))):
            self._fill(node)
            while_away = (0.2 + rng.random()) * rng.choice((0.02, 0.2, 1)) * max(1.0, world.pace / 10)
            if deaf:  # acks come for it when it is dead
                world.faults.unheard(node, while_away + 5)
            await trio.sleep(while_away)
        self._due = True
        if rng.random() < 0.5:
            world.faults.crash(node)
        else:
            world.faults.arm(node, rng.choice((1, 3, 10, 50)) + rng.randrange(30))

    def _fill(self, node: RunningNode) -> None:
        """All who are there write, some of them to somebody who is away for long."""
        world, rng = self._world, self._rng
        here = [user for user in world.users if any(client.node is node for client in user.clients)]
        elsewhere = [user for user in world.users if user.clients and user not in here]
        for user in here:
            if rng.random() < 0.7:
                to = rng.choice(elsewhere or world.users) if rng.random() < 0.6 else rng.choice(world.users)
                if rng.random() < 0.1 and to is not user:
                    to.vanish()
                for _ in range(rng.choice((1, 3, 20))):
                    user.send((to.name,))
        for user in elsewhere:
            if here and rng.random() < 0.3:
                user.send((rng.choice(here).name,))

    def takes(self, node: RunningNode) -> bool:
        """Whether this node, which has crashed just now, is not to be started again: at least one always is."""
        if node.short in self.dead:
            return True
        others = self._world.cluster.nodes.keys() - self.dead - self.gone - {node.short}
        if not (self.drawn and others and self._world.faulty) or not (self._due or self._rng.random() < 0.25):
            return False
        self._due = False
        self._dying.clear()
        self.dead.add(node.short)
        self._world.note("dead for good", node.name)
        self._world.cluster.nursery.start_soon(self._until_moved, node)
        return True

    def after_an_ack(self, message: Message) -> bool:
        """Whether who has acked this, which a dead node had accepted, goes away for long."""
        world = self._world
        if self.holds((message.message_id, message.recipient)) and self._rng.random() < 0.5:
            here = sum(not user.vanished for user in world.users)
            return here > 1
        return False

    def on_ack(self, node: RunningNode, message: Message) -> None:
        """Now and then the ack of what a dead node had accepted leaves late, perhaps in the next life of the node."""
        rng, now = self._rng, trio.current_time()
        if not (self.drawn and now >= self._next_late and self.holds((message.message_id, message.recipient))):
            return
        if rng.random() < LATE:
            seconds = rng.choice((3, 15, 30))
            self._next_late = now + 2 * seconds  # who is silent for minutes tries again after minutes
            self._world.faults.silence(node, seconds)
            if rng.random() < 0.2:
                self._world.later(rng.random(), lambda: self._world.faults.crash(node))

    def holds(self, key: Key) -> bool:
        """Whether this is a row of a node that is dead now, or will be at once."""
        return any(key in self._world.cluster.stores[short]._orders for short in self.dead | self._dying)

    # -- runs ----------------------------------------------------------------------------------------------------------
    async def _until_moved(self, node: RunningNode) -> None:
        """Let runs follow one another until one comes to its end; what then becomes of the node."""
        world, rng = self._world, self._rng
        moved = False
        while not moved:
            await trio.sleep(rng.choice((0.5, 4, 11)))
            moved = await self._run(node)
            if not moved and world.faulty and rng.random() < 0.3:
                await self._live_a_while(node)
        if rng.random() < 0.3:
            await self._run(node)
        self._left[node.short] = trio.current_time()
        if rng.random() < 0.5:
            self.gone.add(node.short)
        else:
            await trio.sleep(rng.choice((0, 1, 20)))
            await world.faults.revive(node)
        self.dead.discard(node.short)
        world.note("all moved", node.name, node.short in self.gone)

    async def _live_a_while(self, node: RunningNode) -> None:
        """Somebody starts it again, although its rows are half moved; and it dies again."""
        await self._world.faults.revive(node)
        again = self._world.cluster.nodes[node.short]
        await trio.sleep(self._rng.choice((0.01, 1, 10)) * self._rng.random())
        self._world.faults.crash(again)

    async def _run(self, node: RunningNode) -> bool:
        """One `redeliver --adopt`; whether it came to its end."""
        world, rng, faulty = self._world, self._rng, self._world.faulty
        pause, scope, ended = Pause(), trio.CancelScope(), False
        others = sorted(other.name for other in world.cluster.nodes.values() if other is not node)
        into = rng.choice(others) if rng.random() < 0.7 else None

        async def run() -> None:
            nonlocal ended
            pause.cover()
            try:
                async with world.cluster.bus.connect(node.name) as bus:
                    bus.takes = 0.0005 * world.pace
                    ended = await self._move(node, bus, into)
            except* YanchatError as error:
                world.note("not adopted", node.name, type(invariants.first(error)).__name__)

        cut = CrashAt(pause, rng.randrange(rng.choice((10, 40, 200))) + 1, scope.cancel)
        armed = faulty and rng.random() < 0.5
        if armed:
            cut.arm()
        if faulty and rng.random() < 0.2:
            world.later(rng.random(), pause.begin)
            world.later(1 + rng.choice((2, 8, 20)), pause.end)
        try:
            with scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(run)
        finally:
            pause.end()
            if armed:
                cut.disarm()
        self.runs += 1
        self.cut += not ended
        if scope.cancelled_caught:
            world.note("cut short", node.name)
        return ended

    async def _move(self, node: RunningNode, bus: Bus, into: Node | None) -> bool:
        world = self._world
        registry, store = world.cluster.registry.view(), node.store
        registry.takes = 0.0005 * world.pace
        adopter = choose_adopter(await registry.nodes(), node.name, into)
        world.note("adopts", adopter, node.name)
        async with trio.open_nursery() as nursery:
            if world.faulty:
                nursery.start_soon(partial(self._trouble, bus, registry, store))
            moved = await Run(node.name, adopter, store, store, registry, bus).move()
            nursery.cancel_scope.cancel()
        world.note("adopted", adopter, node.name, moved.adopted)
        self.moved += moved.adopted
        invariants.on_run(world, node)
        return True

    async def _trouble(self, bus: Bus, registry: Registry, store: Outbox) -> None:
        """What fails for the run alone."""
        rng = self._rng
        what, switch = rng.choice(
            ((None, ""), (None, ""), (bus, "up"), (bus, "answers"), (registry, "up"), (store, "writable"))
        )
        if what is not None:
            await trio.sleep(rng.choice((0.002, 0.1, 2)) * rng.random())
            setattr(what, switch, False)
            try:
                await trio.sleep(rng.choice((0.5, 5, 20)))
            finally:
                setattr(what, switch, True)

    def _adopting(self, short: str, rows: Sequence[Row]) -> None:
        """Now and then the adopter dies: before the rows are on its disk, when they are, or when it has said so."""
        world, rng = self._world, self._rng
        node = world.cluster.nodes[short]
        invariants.on_adopting(world, node, rows)
        if world.faulty and rng.random() < 0.4 and isinstance(node.bus.read, MethodType):
            node.bus.read = partial(_slowly, node.bus.read, rng.choice((0.02, 0.3, 2)))  # type: ignore[method-assign]
        if world.faulty and rng.random() < 0.3:
            world.faults.arm(node, 1 + rng.randrange(rng.choice((3, 40, 300))))

    def fate(self, node: Node, record: Record) -> tuple[float, ...] | None:
        """After how many seconds each copy of this record arrives; None: as any other."""
        if not self.drawn:
            return None
        rng = self._rng
        chance, late = rng.random(), rng.random() * rng.choice((1, 5, 25))
        if isinstance(record, Adopt | Adopted):
            return () if chance < 0.15 else (0.01, late) if chance < 0.3 else (late,) if chance < 0.4 else None
        to, by = node.partition(":")[0], record.origin.partition(":")[0]
        if isinstance(record, Acked) and to in self.dead | self._dying and chance > 1 - LONG_UNDER_WAY:
            return (rng.uniform(5, 100),)  # when the rows have gone
        return (late,) if not self.dead.isdisjoint((to, by)) and chance < 0.2 else None

    # -- the end -------------------------------------------------------------------------------------------------------
    async def end(self) -> None:
        """No fault touches a run any more: all rows go."""
        while self.dead:
            await trio.sleep(0.5)

    def all_up(self) -> bool:
        """Whether every node is up that is to be: who comes then finds what one of them has left behind."""
        return all(short in self.gone or not node.gone for short, node in self._world.cluster.nodes.items())

    def free_since(self, key: Key) -> float:
        """Until when a run had to do with this row."""
        stores = self._world.cluster.stores
        return max((until for short, until in self._left.items() if key in stores[short]._orders), default=0.0)

    async def repair(self) -> None:
        """What a person does with `servers --repair` about nodes that are gone for good."""
        if self.drawn:
            view = self._world.cluster.registry.view()
            kinds = {"dead", "gone_holder"}  # sessions of the dead are reaped, unless their node was forgotten
            for _ in range(2):  # mending one may bare another
                forgotten = {f"{short}:1" for short in self.gone} - self._world.cluster.registry.nodes.keys()
                found = [one for one in await view.contradictions() if one.node.partition(":")[0] in self.gone]
                await view.mend([one for one in found if one.kind in kinds or one.node in forgotten])


def _held(node: RunningNode) -> int:
    """How many rows there are to move."""
    return sum(not row.moved_at and row.told < 2 for row in node.store._rows.values())


async def _slowly(read: Callable[[Node, Topic], Awaitable[list[Record]]], takes: float, *what: Any) -> list[Record]:
    """A topic is read; that takes a while."""
    await trio.sleep(takes)
    return await read(*what)
