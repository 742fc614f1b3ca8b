"""Hundreds of users against real nodes: they send, ack, hop and vanish, and every operation goes into the history."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress

import trio

from tests.proof.chaos.history import History
from yanchat.client import Client, connect
from yanchat.errors import YanchatError
from yanchat.protocol.client_frames import AckReceipt, Frame, Message, Receipt, Settled


class User:
    def __init__(self, crowd: Crowd, name: str) -> None:
        self.crowd, self.name = crowd, name
        self.client: Client | None = None
        self.unanswered: dict[str, tuple[tuple[str, ...], str]] = {}
        """Request → recipients and text."""
        self._again_at: dict[str, float] = {}
        self._stay = trio.CancelScope()
        self._session = ""

    async def live(self) -> None:
        """Be connected, somewhere, most of the time."""
        rng = self.crowd.rng
        while True:
            url = self.crowd.pick()
            try:
                async with connect(url, self.name) as self.client:
                    self._session = self.client.hello.session_id
                    self._note("connected", node=self.client.hello.node)
                    try:
                        await self._converse(self.client)
                    finally:
                        await self._take_the_rest(self.client)
                self._note("left")
            except* YanchatError as group:
                self._note("broken", why=[str(error)[:120] for error in group.exceptions])
            finally:
                self.client = None
            away = rng.choice((0.05, 0.3, 3.0, 15.0)) if self.crowd.churn else 0.3
            with trio.move_on_after(away * rng.random()):
                await self.crowd.come_back.wait()

    def _note(self, what: str, **more: object) -> None:
        self.crowd.history.note(what, user=self.name, session=self._session, **more)

    async def _converse(self, client: Client) -> None:
        for request in list(self.unanswered):
            await self._submit(client, request)
        seconds = self.crowd.rng.expovariate(1 / 20) if self.crowd.churn else float("inf")
        with trio.move_on_after(seconds) as self._stay:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._repeat_refused, client)
                while True:
                    frame = await client.receive()
                    self._take(frame)
                    if isinstance(frame, Message):
                        self._note("ack", id=frame.message_id)
                        await client.ack(frame)

    async def _repeat_refused(self, client: Client) -> None:
        while True:
            await trio.sleep(0.5)
            for request in [one for one, at in self._again_at.items() if at <= trio.current_time()]:
                del self._again_at[request]
                if request in self.unanswered:
                    await self._submit(client, request)

    async def _take_the_rest(self, client: Client) -> None:
        """What the connection has brought counts: the library answers pings ahead of whoever reads its queue."""
        with trio.CancelScope(shield=True), suppress(YanchatError):
            while True:
                with trio.move_on_after(0.02):
                    self._take(await client.receive())
                    continue
                return

    def _take(self, frame: Frame) -> None:
        match frame:
            case Message():
                self._note(
                    "message",
                    id=frame.message_id,
                    sender=frame.sender,
                    to=frame.recipient,
                    text=frame.text,
                    order=frame.order,
                    marked=frame.redelivered,
                )
            case Receipt():
                self._note("receipt", request=frame.request_id, id=frame.message_id, status=frame.status)
                if frame.status == 200:
                    self.unanswered.pop(frame.request_id, None)
                elif frame.request_id in self.unanswered:
                    self._again_at[frame.request_id] = trio.current_time() + 1 + min(frame.retry_after, 5)
            case AckReceipt():
                self._note("acked", id=frame.message_id, status=frame.status)
            case Settled():
                self._note("notice", id=frame.message_id, to=frame.recipient, status=frame.status)
            case _:
                pass

    async def send(self) -> None:
        """Send something to somebody, now or at the next connection; it is repeated until it is receipted."""
        rng, names = self.crowd.rng, self.crowd.names
        to = tuple(rng.sample(names, rng.choices((1, 2, 3), (92, 5, 3))[0]))
        request = str(uuid.UUID(int=rng.getrandbits(128)))
        self.unanswered[request] = to, f"{self.crowd.next_number()}{'x' * rng.choice((0, 50, 400))}"
        if self.client is not None:
            with suppress(YanchatError):
                await self._submit(self.client, request)

    async def _submit(self, client: Client, request: str) -> None:
        to, text = self.unanswered[request]
        self._note("send", request=request, to=to, text=text)
        await client.send(to, text, request_id=request)


class Crowd:
    """`urls` says where nodes may be."""

    def __init__(self, urls: Callable[[], Sequence[str]], users: int, history: History, rng: random.Random) -> None:
        self._urls, self.history, self.rng = urls, history, rng
        self.names = [f"u{number}" for number in range(users)]
        self.users = [User(self, name) for name in self.names]
        self.churn = True
        self.come_back = trio.Event()
        """Set: nobody stays away."""
        self._count = 0

    def pick(self) -> str:
        return self.rng.choice(self._urls())

    def next_number(self) -> int:
        self._count += 1
        return self._count

    async def talk(self, rate: float) -> None:
        """So many messages a second from anybody to anybody, until cancelled."""
        while True:
            await trio.sleep(self.rng.expovariate(rate))
            await self.rng.choice(self.users).send()

    async def gather(self) -> None:
        """Have everybody come and stay."""
        self.churn = False
        self.come_back.set()
        while not all(user.client for user in self.users):
            await trio.sleep(0.1)
