"""Pairs of clients that close loops against running nodes. On asyncio, as picows is, which is quicker than any node.

A loop is: a message, its receipt, the push, the recipient's ack, its receipt, and the notice to the sender.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, Final, NamedTuple

import picows

from yanchat.bench.figures import Figures
from yanchat.errors import Unreachable
from yanchat.protocol import client_frames
from yanchat.protocol.client_frames import Hello, Message, Receipt, Settled

LOGINS_AT_ONCE: Final = 64
HELLO_WITHIN: Final = 30.0
CLOSED_WITHIN: Final = 10.0
"""How long what is open may take when the time is over."""
CONNECTIONS_AN_ADDRESS: Final = 20_000
"""A machine has some 28,000 ports for each pair of addresses (net.ipv4.ip_local_port_range)."""
TICK: Final = 0.25
TEXT: Final = picows.WSMsgType.TEXT


class Plan(NamedTuple):
    """What to run; `urls` take turns: a pair's sender is on one, its recipient on the next. Sizes in bytes."""

    urls: Sequence[str]
    pairs: int = 50
    depth: int = 4
    """Messages that a sender has on their way at a time."""
    seconds: float = 10.0
    warm_up: float = 1.0
    size: int = 200
    request_ids: bool = False
    idle: int = 0
    """Further clients, who only are there."""
    token: str = ""
    tag: str = "bench"
    """Of the users' names: runs at the same time need different ones."""


class Progress(NamedTuple):
    phase: str
    """connecting, warming up, measuring or finishing."""
    done: float
    """Of the phase, 0 to 1."""
    loops: int


async def run(plan: Plan, figures: Figures, tell: Callable[[Progress], None], begun: Callable[[str], None]) -> None:
    """Connect, warm up, measure, let what is open end. `begun` is called with `measuring` and `over` at these times.

    `figures` has, when this is cancelled, what was measured until then. Unreachable: a client cannot log in.
    """
    load = _Load(plan, figures)
    try:
        await load.connect(tell)
        await _phase("warming up", plan.warm_up, figures, tell)
        begun("measuring")
        load.measure()
        try:
            await _phase("measuring", plan.seconds, figures, tell)
        finally:
            load.stop()
            begun("over")
        await load.finish(tell)
    finally:
        load.close()


async def _phase(name: str, seconds: float, figures: Figures, tell: Callable[[Progress], None]) -> None:
    began = time.perf_counter()
    while (gone := time.perf_counter() - began) < seconds:
        tell(Progress(name, gone / seconds, len(figures.latencies)))
        await asyncio.sleep(min(TICK, seconds - gone))


class _Load:
    def __init__(self, plan: Plan, figures: Figures) -> None:
        self.plan, self.figures = plan, figures
        self.measuring, self.sending = False, True
        self.open = 0
        self._began = 0.0
        self._clients: list[Client] = []
        self._senders: list[Sender] = []

    async def connect(self, tell: Callable[[Progress], None]) -> None:
        plan, began = self.plan, time.perf_counter()
        for pair in range(plan.pairs):
            to = f"{plan.tag}-b{pair}"
            self._senders.append(Sender(self, plan.urls[pair % len(plan.urls)], f"{plan.tag}-a{pair}", to))
            self._clients.append(Recipient(self, plan.urls[(pair + 1) % len(plan.urls)], to))
        self._clients += self._senders
        self._clients += [Client(self, plan.urls[n % len(plan.urls)], f"{plan.tag}-i{n}") for n in range(plan.idle)]
        waiting = deque(enumerate(self._clients))
        total = len(self._clients)

        async def log_in() -> None:
            while waiting:
                number, client = waiting.popleft()
                await client.log_in(f"127.0.0.{2 + number // CONNECTIONS_AN_ADDRESS}" if plan.idle else None)
                if number % LOGINS_AT_ONCE == 0:
                    tell(Progress("connecting", 1 - len(waiting) / total, 0))

        async with asyncio.TaskGroup() as group:
            for _ in range(LOGINS_AT_ONCE):
                group.create_task(log_in())
        self.figures.logins, self.figures.login_took = total, time.perf_counter() - began
        for sender in self._senders:
            for _ in range(plan.depth):
                sender.send()

    def measure(self) -> None:
        self.figures.frames, self.measuring, self._began = 0, True, time.perf_counter()

    def stop(self) -> None:
        self.figures.took = time.perf_counter() - self._began
        self.measuring = self.sending = False

    async def finish(self, tell: Callable[[Progress], None]) -> None:
        """Wait for the loops that are still open."""
        until = time.perf_counter() + CLOSED_WITHIN
        while self.open > 0 and (left := until - time.perf_counter()) > 0:
            tell(Progress("finishing", 1 - left / CLOSED_WITHIN, len(self.figures.latencies)))
            await asyncio.sleep(0.02)
        self.figures.unfinished = max(0, self.open)

    def close(self) -> None:
        for client in self._clients:
            client.close()

    def failed(self, sentence: str) -> None:
        self.figures.errors[sentence] += 1


class Client(picows.WSListener):
    """One user's connection, which counts what comes and answers nothing."""

    def __init__(self, load: _Load, url: str, openid: str) -> None:
        self.load, self.openid = load, openid
        self._url = f"{url}?openid={openid}"
        self._hello = asyncio.Event()
        self._closing = False
        self.transport: Any = None

    async def log_in(self, address: str | None) -> None:
        more: dict[str, Any] = {} if address is None else {"local_addr": (address, 0)}
        if self.load.plan.token:
            more["extra_headers"] = {"Authorization": f"Bearer {self.load.plan.token}"}
        try:
            self.transport, _ = await picows.ws_connect(
                lambda: self, self._url, websocket_handshake_timeout=HELLO_WITHIN, read_buffer_init_size=1024, **more
            )
            async with asyncio.timeout(HELLO_WITHIN):
                await self._hello.wait()
        except (OSError, TimeoutError, picows.WSError) as error:
            reason = str(error) or type(error).__name__
            raise Unreachable(f"{self._url} does not take a client: {reason}; look at that node.") from None

    def close(self) -> None:
        self._closing = True
        if self.transport is not None:
            self.transport.send_close(picows.WSCloseCode.OK)
            self.transport.disconnect()

    def send_text(self, frame: str) -> None:
        self.load.figures.frames += 1
        self.transport.send(TEXT, frame.encode())

    def on_ws_frame(self, transport: Any, frame: Any) -> None:
        if frame.msg_type == TEXT:
            self.load.figures.frames += 1
            self.take(client_frames.decode(frame.get_payload_as_bytes()))
        elif frame.msg_type == picows.WSMsgType.CLOSE and not self._closing:
            self.load.failed(f"A connection was closed with {frame.get_close_code()}.")
            transport.disconnect()

    def on_ws_disconnected(self, transport: Any) -> None:
        self._hello.set()

    def take(self, frame: client_frames.Frame) -> None:
        if isinstance(frame, Hello):
            self._hello.set()


class Recipient(Client):
    """Acks what comes."""

    def take(self, frame: client_frames.Frame) -> None:
        if isinstance(frame, Message):
            self.send_text(client_frames.ack(frame))
        else:
            super().take(frame)


class Sender(Client):
    """Sends the next message when it knows that one was delivered."""

    def __init__(self, load: _Load, url: str, openid: str, recipient: str) -> None:
        super().__init__(load, url, openid)
        self._to, self._numbers = (recipient,), count(1)
        self._unreceipted: deque[float] = deque()
        """When each was sent; receipts come in the same order."""
        self._open: dict[str, float] = {}
        """By message id."""

    def send(self) -> None:
        if not self.load.sending:
            return
        number = next(self._numbers)
        self.load.open += 1
        self._unreceipted.append(time.perf_counter())
        text = f"{number:08d}".ljust(self.load.plan.size, "x")[: self.load.plan.size]
        request = f"{number}-{time.time_ns():x}" if self.load.plan.request_ids else None
        self.send_text(client_frames.send(self._to, text, request_id=request))

    def take(self, frame: client_frames.Frame) -> None:
        if isinstance(frame, Settled):
            began = self._open.pop(frame.message_id, None)
            if began is None:
                return
            self.load.open -= 1
            if frame.status != 200:
                self.load.failed(f"A message ended with status {frame.status}: {frame.error}")
            elif self.load.measuring:
                self.load.figures.latencies.append(time.perf_counter() - began)
            self.send()
        elif isinstance(frame, Receipt):
            began = self._unreceipted.popleft()
            if frame.status == 200:
                self._open[frame.message_id] = began
            else:
                self.load.open -= 1
                self.load.failed(f"A message was refused with status {frame.status}: {frame.error}")
                asyncio.get_running_loop().call_later(max(0.1, frame.retry_after), self.send)
        else:
            super().take(frame)
