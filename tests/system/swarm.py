"""Many users against real nodes: they send, ack, reconnect, and remember what they were promised, got and told."""

from __future__ import annotations

import random
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress

import trio

from tests.running import DEADLINE
from yanchat.client import Client, connect
from yanchat.errors import YanchatError
from yanchat.protocol.client_frames import Frame, Message, Receipt, Settled


class User:
    """One user. His clock for reconnecting is short: the tests are about what is lost, not about who waits."""

    def __init__(self, swarm: Swarm, name: str) -> None:
        self.swarm, self.name = swarm, name
        self.client: Client | None = None
        self.unanswered: dict[str, tuple[str, str]] = {}
        """request id → (recipient, text)"""
        self.promised: dict[str, tuple[str, str]] = {}
        """message id → (recipient, text)"""
        self.got: list[Message] = []
        self.told: dict[tuple[str, str], list[int]] = defaultdict(list)
        self.refused: list[Receipt] = []
        self.away = False
        self.reconnects = 0
        self._stay = trio.CancelScope()

    async def live(self) -> None:
        """Be connected, somewhere, as long as the swarm lives."""
        while True:
            if not self.away:
                try:
                    async with connect(self.swarm.pick(), self.name) as self.client:
                        try:
                            await self._converse(self.client)
                        finally:
                            await self._take_the_rest(self.client)
                except YanchatError:
                    self.reconnects += 1
                finally:
                    self.client = None
            await trio.sleep(0.05 + 0.1 * self.swarm.rng.random())

    async def _converse(self, client: Client) -> None:
        for request, (to, text) in list(self.unanswered.items()):
            await client.send((to,), text, request_id=request)
        with trio.CancelScope() as self._stay:
            while not self.away:
                frame = await client.receive()
                self._take(frame)
                if isinstance(frame, Message) and self.swarm.acks(self.name):
                    await client.ack(frame)

    async def _take_the_rest(self, client: Client) -> None:
        """What the connection has brought counts: the library answers pings ahead of whoever reads its queue."""
        with trio.CancelScope(shield=True), suppress(YanchatError):
            while True:
                with trio.move_on_after(0.02):
                    self._take(await client.receive())
                    continue
                return

    def _take(self, frame: Frame) -> None:
        if isinstance(frame, Message):
            self.got.append(frame)
        elif isinstance(frame, Receipt):
            if frame.status == 200 and frame.request_id in self.unanswered:
                self.promised[frame.message_id] = self.unanswered.pop(frame.request_id)
            elif frame.status != 200:
                self.refused.append(frame)
        elif isinstance(frame, Settled):
            self.told[frame.message_id, frame.recipient].append(frame.status)

    def hop(self) -> None:
        """End the session, to connect again at once, perhaps elsewhere."""
        self._stay.cancel()

    async def send(self, to: str) -> None:
        """Send something, now or at the next connection; repeated until it is receipted."""
        request, text = str(uuid.uuid4()), f"{self.swarm.next_number():06}"
        self.unanswered[request] = (to, text)
        if self.client is not None:
            try:
                await self.client.send((to,), text, request_id=request)
            except YanchatError:
                pass  # it is sent again after the reconnect


class Swarm:
    """`urls` says where nodes are now."""

    def __init__(self, urls: Callable[[], Sequence[str]], names: Sequence[str], seed: int) -> None:
        self._urls, self.rng = urls, random.Random(seed)
        self.users = {name: User(self, name) for name in names}
        self.acks: Callable[[str], bool] = lambda name: True
        self._count = 0

    def pick(self) -> str:
        return self.rng.choice(self._urls())

    def next_number(self) -> int:
        self._count += 1
        return self._count

    async def connected(self) -> None:
        """Wait until everybody is."""
        with trio.fail_after(DEADLINE):
            while not all(user.client for user in self.users.values()):
                await trio.sleep(0.01)

    async def talk(self, messages: int, pause: float = 0.002) -> None:
        """Send so many messages from anybody to anybody."""
        users = list(self.users.values())
        for _ in range(messages):
            await self.rng.choice(users).send(self.rng.choice(users).name)
            await trio.sleep(pause)

    async def settled(self, within: float = 60.0, only: Collection[str] | None = None) -> None:
        """Wait until everything is receipted, arrived and told; else AssertionError with what is missing.

        `only`: of these message ids, whatever else is under way.
        """
        with trio.move_on_after(within):
            while self.missing(only):
                await trio.sleep(0.05)
        missing = self.missing(only)
        assert not missing, f"{len(missing)} not settled within {within:.0f} s, the first: {missing[:5]}"

    def missing(self, only: Collection[str] | None = None) -> list[str]:
        found: list[str] = []
        got = {name: {message.message_id for message in user.got} for name, user in self.users.items()}
        for user in self.users.values():
            if only is None:
                found += [f"{user.name}'s {text} to {to} has no receipt" for to, text in user.unanswered.values()]
            for message_id, (to, text) in user.promised.items():
                if only is not None and message_id not in only:
                    continue
                if message_id not in got[to]:
                    found.append(f"{user.name}'s {text} has not arrived at {to}: LOST")
                elif 200 not in user.told[message_id, to]:
                    found.append(f"{user.name} has not been told that {to} has {text}")
        return found

    def check(self, *, calm: bool = False) -> None:
        """Nothing that was not sent, nothing twice after deduplication; without faults no repeats, and in order."""
        sent = {
            message_id: (user.name, to, text)
            for user in self.users.values()
            for message_id, (to, text) in user.promised.items()
        }
        for user in self.users.values():
            texts = Counter({message.message_id: message.text for message in user.got}.values())
            assert not [text for text, count in texts.items() if count > 1], f"{user.name} got one text under two ids"
            for message in user.got:
                assert sent[message.message_id] == (message.sender, user.name, message.text)
            if calm:
                assert not user.reconnects, f"{user.name} was let go {user.reconnects} times without a fault"
                ids = Counter(message.message_id for message in user.got)
                repeats = [message for message in user.got if ids[message.message_id] > 1]
                assert not repeats, f"{user.name} got without a fault: {repeats}"
                last: dict[str, str] = {}
                for message in user.got:
                    assert last.get(message.sender, "") < message.text, f"{user.name} got {message} out of order"
                    last[message.sender] = message.text
