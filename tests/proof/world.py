"""One run of the simulation: a cluster in memory and virtual time, its users, its faults, all drawn from a seed.

What must hold is in `invariants.py`, what users do in `user.py`, what goes wrong in `faults.py`.
"""

from __future__ import annotations

import hashlib
import random
import traceback
from collections.abc import Callable
from typing import Any

import trio

from tests.node.cluster import Cluster, RunningNode, open_cluster
from tests.proof import invariants
from tests.proof.adoption import Adoptions
from tests.proof.faults import Faults
from tests.proof.lane import LaneStore
from tests.proof.user import User
from tests.proof.virtual import run_virtually
from yanchat.config import LimitSettings, RedeliverySettings
from yanchat.model import Node

DAY, MINUTE = 86400.0, 60.0
LIMITS = LimitSettings(window=8, sessions_per_user=1000)
PATIENCE = 12 * MINUTE
"""Virtual seconds after the last fault within which everything must be settled: two of the longest retries."""


class World:
    """`run` runs it; then `problems` says what did not hold, and `digest` is the same for every run of the seed."""

    def __init__(self, seed: int, calm: bool | None = None) -> None:
        rng = self.rng = random.Random(seed)
        chance = rng.random()
        self.calm = chance < 0.25 if calm is None else calm
        self.pace = rng.choice((1.0, 1.0, 100.0))
        self.nodes = rng.choices((2, 3, 4, 5, 7), (40, 30, 15, 10, 5))[0]
        self.size = rng.choices((2, 3, 5, 10, 30), (25, 25, 25, 20, 5))[0]
        self.messages = rng.choices((30, 100, 400), (50, 40, 10))[0]
        self.single = rng.random() < 0.15
        self.lifetime = rng.choice((120.0, 600.0)) if not self.calm and rng.random() < 0.15 else 7 * DAY
        self.problems: list[str] = []
        self.count = self.forged = 0
        self.faulty = False
        self.burst = 0.0
        """When the last messages were sent, after the last fault."""
        self.sent: dict[str, tuple[str, tuple[str, ...]]] = {}
        """Text → sender and recipients."""
        self.ids: dict[str, str] = {}
        """Text → message id, when it is receipted."""
        self.texts: dict[str, str] = {}
        """The other way round, also of what was pushed before its receipt came."""
        self.resent: set[str] = set()
        self.users: list[User] = []
        self.cluster: Cluster
        self.faults = Faults(self)
        self.adoptions = Adoptions(self, seed)
        if self.adoptions.drawn:
            self.nodes = self.adoptions.nodes
        self._trace = hashlib.blake2b(digest_size=8)

    @property
    def digest(self) -> str:
        return self._trace.hexdigest()

    @property
    def eternal(self) -> bool:
        """No message of this run is given up for its age."""
        return self.lifetime >= DAY

    def note(self, *what: object) -> None:
        """Something has happened: all that has, in its order and at its time, is the digest."""
        self._trace.update(f"{trio.current_time():.6f} {what}\n".encode())

    def problem(self, text: str) -> None:
        self.note("problem", text)
        self.problems.append(f"t={trio.current_time():.3f} {text}")

    def later(self, delay: float, call: Callable[[], Any]) -> None:
        """Call, and await what it returns if there is something to await."""

        async def wait() -> None:
            await trio.sleep(delay)
            result = call()
            if result is not None:
                await result

        self.cluster.nursery.start_soon(wait)

    def node_of(self, name: Node) -> RunningNode:
        return self.cluster.nodes[name.partition(":")[0]]

    async def run(self) -> None:
        async with open_cluster(
            limits=LIMITS,
            pace=self.pace,
            sessions="single" if self.single else "multi",
            redelivery=RedeliverySettings(lifetime=self.lifetime),
            seed=self.rng.getrandbits(32),
        ) as self.cluster:
            try:
                await self._live()
            finally:
                for node in self.cluster.nodes.values():
                    node.pause.end()  # also when the simulation breaks: what stands still cannot be ended

    async def _live(self) -> None:
        self.cluster.bus.fate = self.faults.fate
        for number in range(self.nodes):
            store = self.cluster.stores[f"n{number}"] = LaneStore(f"store-n{number}")
            store.before_commit = store.after_commit = store.before_read = 0.0003 * self.pace
            self.adoptions.watch(f"n{number}", store)
            await self.cluster.start(f"n{number}")
        self.users = [User(self, f"u{number}") for number in range(self.size)]
        for user in self.users:
            await user.connect()
        self.cluster.nursery.start_soon(invariants.watch, self)
        await trio.sleep(1)
        with self.adoptions.small_batches():
            await self._busy()
        await self._rest()
        invariants.check_promises(self)
        await self._last_call()
        await invariants.check_end(self)

    async def _busy(self) -> None:
        """Everybody talks, comes and goes, while things fail."""
        rng, seconds = self.rng, self.rng.choice((8.0, 20.0, 40.0))
        seconds = self.adoptions.seconds if self.adoptions.drawn else seconds
        end, pause = trio.current_time() + seconds, seconds / self.messages * 2.5
        self.faulty = not self.calm
        self.adoptions.begin()
        while trio.current_time() < end and self.count < self.messages:
            await trio.sleep(rng.expovariate(1 / pause))
            what, user = rng.random(), rng.choice(self.users)
            if what < 0.55:
                for _ in range(rng.choice((1, 1, 3, 8))):
                    user.send()
            elif what < 0.65:
                user.hop()
            elif what < 0.71:
                if 0 < len(user.clients) < 3:
                    await user.connect()
            elif what < 0.76:
                user.read_slowly()
            elif what < 0.77:
                user.vanish()
            elif not self.calm:
                await self.faults.strike()
        if rng.random() < 0.12:  # more to one user than a node keeps of him in memory
            user, to = rng.choice(self.users), rng.choice(self.users)
            to.vanish()
            for _ in range(300):
                user.send((to.name,))
        await self.faults.end()
        self.faulty = False
        await self.adoptions.end()
        self.note("no more faults")

    async def _rest(self) -> None:
        """Who is away comes back, but for those who have vanished; a last burst, which no fault touches."""
        for user in self.users:
            if not user.vanished:
                self.later(self.rng.random() * 20, user.reconnect)
        await trio.sleep(30)
        self.burst = trio.current_time()
        for _ in range(min(20, self.messages)):
            await trio.sleep(self.rng.random() / 30)
            self.rng.choice(self.users).send()
        await self._until(lambda: not invariants.unsettled(self))

    async def _last_call(self) -> None:
        """Those who had vanished come back, and everybody logs in once more: nothing may be left over."""
        await self._until(self.adoptions.all_up)
        for user in self.users:
            user.vanished = False
            await user.connect()
        await trio.sleep(20)
        await self._until(lambda: not (invariants.unsettled(self) or invariants.waiting(self)))
        await trio.sleep(5)

    async def _until(self, settled: Callable[[], bool]) -> None:
        with trio.move_on_after(PATIENCE):
            while not settled():
                await trio.sleep(1)


def run(seed: int, calm: bool | None = None) -> World:
    """Run one seed; with `calm` given, without faults or with them, whatever the seed would draw."""
    world = World(seed, calm)
    try:
        run_virtually(seed, world.run)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        world.problems.append(
            f"the program or the simulation broke: {''.join(traceback.format_exception(invariants.first(error)))}"
        )
    return world
