"""Whole clusters in virtual time with faults drawn from a seed, and what must hold at the end of each run.

    python -m tests.node.simulation --seeds 0..200            with faults: nothing lost, nothing stuck
    python -m tests.node.simulation --seeds 0..200 --calm     without: no repeats, order kept, nothing waits

One seed is one run, in every process: trio's scheduler takes its chances from it as well.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import defaultdict
from contextlib import ExitStack
from typing import Any

import structlog
import trio
import trio.testing

from tests.node.cluster import Client, Cluster, RunningNode, open_cluster
from tests.node.mutation import left_out
from tests.node.test_rules import RULES
from yanchat.config import LimitSettings
from yanchat.model import Node, OpenId
from yanchat.ports import RowFilter
from yanchat.protocol.client_frames import Message, Receipt, Settled

BUSY = 40.0
LIMITS = LimitSettings(window=8, sessions_per_user=1000)
LONGEST_RETRY, MINUTE = 300.0, 60.0


class User:
    """Logs in somewhere, sends, acks, and remembers what it was promised, got and told."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.clients: list[Client] = []
        self.unanswered: dict[str, str] = {}
        """text → recipient, not yet receipted; the text is the request's id as well."""
        self.promised: dict[str, tuple[str, float]] = {}
        self.got: dict[str, float] = {}
        self.arrivals: list[tuple[Client, Message]] = []
        self.told: dict[tuple[str, str], list[tuple[Client, int]]] = defaultdict(list)
        self.since: dict[Client, float] = {}

    async def connect(self, node: RunningNode | None = None) -> None:
        while node is None or node.gone:
            up = [node for node in self.world.cluster.nodes.values() if not node.gone]
            if up:
                node = self.world.rng.choice(up)
            else:
                await trio.sleep(1)
        client = Client(node, OpenId(self.name), acks=False)
        client.heard = lambda frame: self.heard(client, frame)
        client.hung_up = lambda: self.hung_up(client)
        node.clients.append(client)
        self.clients.append(client)
        self.since[client] = trio.current_time()
        node.cluster.nursery.start_soon(client.run)
        for text, to in list(self.unanswered.items()):  # the same request again: the same message
            self.world.resent.add(text)  # two nodes may have it now, and each tells
            client.write(to, text, text)

    def hung_up(self, client: Client) -> None:
        if client in self.clients:
            self.clients.remove(client)
        if not self.clients:
            self.world.later(0.05 + self.world.rng.random() * 2, self.reconnect)

    async def reconnect(self) -> None:
        if not self.clients:
            await self.connect()

    def leave(self, client: Client) -> None:
        self.clients.remove(client)
        if self.world.faulty and self.world.rng.random() < 0.3:  # half-open: the node notices late
            client.half_open = True
            self.world.later(60 * self.world.rng.random(), client.leave)
        else:
            client.leave()

    def send(self, to: str) -> None:
        if self.clients:
            text = f"m{self.world.count}"
            self.world.count += 1
            self.unanswered[text] = to
            self.world.rng.choice(self.clients).write(to, text, text)

    def heard(self, client: Client, frame: Any) -> None:
        world, now = self.world, trio.current_time()
        if isinstance(frame, Message):
            self.arrivals.append((client, frame))
            self.got.setdefault(frame.text, now)
            world.texts[frame.message_id] = frame.text
            if not world.faulty or world.rng.random() > 0.1:
                client.ack(frame)
        elif isinstance(frame, Receipt) and frame.status == 200:
            self.receipted(frame.request_id, frame.message_id)
        elif isinstance(frame, Settled):
            self.told[frame.message_id, frame.recipient].append((client, frame.status))

    def there_since(self, text: str) -> float:
        """When the session began on which this text came first."""
        return next(self.since[client] for client, message in self.arrivals if message.text == text)

    def receipted(self, text: str, message_id: str) -> None:
        if text in self.unanswered:
            self.promised[text] = (self.unanswered.pop(text), trio.current_time())
            self.world.ids[text] = message_id


class World:
    """One run."""

    def __init__(self, seed: int, calm: bool) -> None:
        self.rng, self.calm = random.Random(seed), calm
        self.pace = self.rng.choice((1.0, 1.0, 100.0))
        self.faulty, self.count = False, 0
        self.problems: list[str] = []
        self.ids: dict[str, str] = {}
        self.resent: set[str] = set()
        self.texts: dict[str, str] = {}
        self.cluster: Cluster

    def problem(self, text: str) -> None:
        self.problems.append(f"t={trio.current_time():.3f} {text}")

    def later(self, delay: float, call: Any) -> None:
        async def wait() -> None:
            await trio.sleep(delay)
            result = call()
            if result is not None:
                await result

        self.cluster.nursery.start_soon(wait)

    def fate(self, _: Node, record: Any) -> tuple[float, ...]:
        if not self.faulty:
            return (0.001,)
        chance = self.rng.random()
        delay = self.rng.random() * (1 if chance > 0.97 else 0.01)
        return () if chance < 0.02 else (delay, delay + self.rng.random()) if chance < 0.04 else (delay,)

    async def run(self) -> None:
        rng = self.rng
        names = [f"n{number}" for number in range(rng.choice((2, 3, 4)))]
        async with open_cluster(*names, limits=LIMITS, pace=self.pace, seed=rng.getrandbits(32)) as self.cluster:
            self.cluster.bus.fate = self.fate
            users = [User(self, f"u{number}") for number in range(rng.choice((2, 3, 5)))]
            for user in users:
                await user.connect()
            await trio.sleep(1)
            await self.busy(users)
            await self.rest(users)
            await self.check(users)

    async def busy(self, users: list[User]) -> None:
        rng, end = self.rng, trio.current_time() + BUSY
        self.faulty = not self.calm
        while trio.current_time() < end:
            await trio.sleep(rng.expovariate(4))
            what, user = rng.random(), rng.choice(users)
            if what < 0.6:
                for _ in range(rng.choice((1, 1, 3, 20))):
                    user.send(rng.choice(users).name)
            elif what < 0.75:
                for client in list(user.clients):
                    user.leave(client)
                self.later(rng.choice((0, 0.01, 3)), user.connect)
            elif what < 0.82:
                if 0 < len(user.clients) < 3:
                    await user.connect()
            elif not self.calm:
                await self.strike()
        self.faulty = False

    async def strike(self) -> None:
        rng, registry = self.rng, self.cluster.registry
        node = rng.choice(sorted(self.cluster.nodes.values(), key=lambda node: node.name))
        fault = rng.choice(("crash", "crash", "cut off", "flush", "fail over", "registry", "disk"))
        if fault == "crash" and not node.gone:
            node.crash()
            self.revive_later(node, rng.choice((0.5, 3, 15)))
        elif fault == "cut off":
            node.registry.up = False
            self.later(rng.choice((1, 4, 14)), lambda: setattr(node.registry, "up", True))
        elif fault == "flush":
            registry.forget_all()
        elif fault == "fail over":
            registry.fail_over()
        elif fault == "registry" and registry.up:
            registry.up = False
            self.later(rng.choice((0.5, 5, 20)), lambda: setattr(registry, "up", True))
        elif fault == "disk":
            node.store.writable = False
            self.later(rng.choice((0.5, 5)), lambda: setattr(node.store, "writable", True))

    def revive_later(self, node: RunningNode, delay: float) -> None:
        async def revive() -> None:
            node.store.writable = True
            await self.cluster.start(node.short)

        self.later(delay, revive)

    async def rest(self, users: list[User]) -> None:
        """Some who are away come back, who is there stays; one comes last."""
        for user in users[1:]:
            self.later(self.rng.random() * 20, user.reconnect)
        await trio.sleep(30)
        self.burst = trio.current_time()
        for _ in range(30):
            await trio.sleep(self.rng.random() / 30)
            self.rng.choice(users).send(self.rng.choice(users).name)
        await trio.sleep(3 * MINUTE)
        await users[0].reconnect()
        await trio.sleep(20 if self.calm else 2 * LONGEST_RETRY)

    async def check(self, users: list[User]) -> None:
        by_name = {user.name: user for user in users}
        for user in users:
            for text, (to, when) in user.promised.items():
                got = by_name[to].got.get(text)
                if got is None:
                    self.problem(f"LOST or stuck: {text} from {user.name} to {to}, receipted at {when:.3f}")
                    continue
                waited = got - max(when, by_name[to].there_since(text))
                limit = 2 + self.pace / 50 if self.calm else 10 if when > self.burst else 2 * MINUTE
                if waited > limit:
                    self.problem(f"{text} from {user.name} to {to} waited {waited:.1f} s although {to} was there")
                if not user.told.get((self.ids[text], to)):
                    self.problem(f"{user.name} was never told of {text} to {to}")
            if user.unanswered and user.clients and self.calm:
                self.problem(f"{user.name} has no answer for {list(user.unanswered)[:3]}")
            self.check_arrivals(user)
            for (message_id, to), notices in user.told.items():
                once = self.calm and self.texts.get(message_id) not in self.resent
                if once and len(notices) > len({client for client, _ in notices}):
                    self.problem(f"{user.name} was told twice of {message_id} on one session")
                if self.texts.get(message_id) not in by_name[to].got:
                    self.problem(f"{user.name} was told of {message_id}, but {to} never got it")
                if any(status != 200 for _, status in notices):
                    self.problem(f"{user.name} was told {notices} of {message_id}")
        for user in users:  # one more login finds nothing left over
            await user.connect()
        await trio.sleep(20)
        for node in self.cluster.nodes.values():
            rows = await node.store.search(RowFilter(states=("pending",)))
            for row in rows:
                self.problem(f"{node.name} still holds {row.envelope.text} for {row.envelope.recipient}")
            for user_name, held in self.cluster.registry.pending.items():
                if node.name in held and not node.work.mailboxes.holds(user_name):
                    self.problem(f"{node.name} stands in {user_name}'s pending set for nothing")
            if node.work.mailboxes.items:
                self.problem(f"{node.name} keeps {len(node.work.mailboxes.items)} items in memory")

    def check_arrivals(self, user: User) -> None:
        seen: set[tuple[Client, str]] = set()
        last: dict[tuple[Client, str, str], str] = {}
        for client, message in user.arrivals:
            again = (client, message.message_id) in seen
            if again and not message.redelivered:
                self.problem(f"{user.name} got {message.text} again, not marked")
            if again and self.calm:
                self.problem(f"{user.name} got {message.text} twice on one session")
            seen.add((client, message.message_id))
            if message.text in self.resent:
                continue
            line = client, self.origin(message), message.sender
            if self.calm and not again and message.order < last.get(line, ""):
                self.problem(f"{user.name} got {message.text} from {message.sender} out of order")
            last[line] = max(last.get(line, ""), message.order)

    def origin(self, message: Message) -> str:
        for name, store in self.cluster.stores.items():
            if (message.message_id, message.recipient) in store._orders:
                return name
        return ""


def run(seed: int, calm: bool) -> World:
    """Run one seed; the answer holds its problems."""
    trio._core._run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[attr-defined]
    trio._core._run._r.seed(seed)  # type: ignore[attr-defined]
    world = World(seed, calm)
    trio.run(world.run, clock=trio.testing.MockClock(autojump_threshold=0))
    return world


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", default="0..100")
    parser.add_argument("--calm", action="store_true")
    parser.add_argument("--without", choices=RULES, action="append", default=[], help="leave a rule out")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    first, last = map(int, arguments.seeds.split(".."))
    with ExitStack() as stack:
        for name in arguments.without:
            stack.enter_context(left_out(RULES[name].mutation))
        bad, messages = run_all(range(first, last), arguments.calm)
    print(f"{last - first} seeds, {messages} messages, {bad} seeds with problems")
    sys.exit(1 if bad else 0)


def run_all(seeds: range, calm: bool) -> tuple[int, int]:
    """Run seeds and print their problems; how many had any, and how many messages there were."""
    bad = messages = 0
    for seed in seeds:
        world = run(seed, calm)
        messages += len(world.ids)
        bad += bool(world.problems)
        for problem in world.problems[:3]:
            print(f"seed {seed}: {problem}")
    return bad, messages


if __name__ == "__main__":
    main()
