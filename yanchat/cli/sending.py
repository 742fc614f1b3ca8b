"""Sending texts so that each gets its answer: over reconnections, through refusals that ask to wait, within its time.

A request that has no receipt yet is sent again with the same request id in each new session, so it never becomes two
messages. Its notice may come in any session of its sender.
"""

from __future__ import annotations

import math
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

import trio

from yanchat.client import Client, Disconnected, stay_connected
from yanchat.errors import Unreachable, UsageError
from yanchat.protocol.client_frames import Message, Receipt, Settled

WAITING: Final = 100
"""Requests without a receipt at a time: a node reads no further for a client that has 256."""
OPEN: Final = 2000
"""Requests without an outcome at a time."""
TOO_LARGE: Final = 1009
LONGEST_LINE: Final = 16 << 20
CONFIRMED_WITHIN: Final = 1.0
SILENT: Final = 1.0
"""Seconds after which somebody at a terminal wonders why nothing happens."""


class Text(NamedTuple):
    text: str
    request_id: str


class Outcome(NamedTuple):
    """What became of one message to one recipient; `late`: its time was over before it was what was waited for."""

    message_id: str | None
    request_id: str
    to: str
    state: str
    error: str | None
    seconds: float
    late: bool = False


class _Request:
    """One text under way. It is sent when `send_at` has come: infinity while an answer is awaited."""

    def __init__(self, text: Text, recipients: Sequence[str], now: float, timeout: float) -> None:
        self.text, self.request_id = text
        self.left = list(recipients)
        self.message_id: str | None = None
        self.deadline = now + timeout
        self.since = 0.0
        self.send_at = now


class Sending:
    """One call of `run` sends all texts; `foreign` says afterwards whether messages for the sender came meanwhile.

    Cut off (Ctrl-C), it leaves in `left` what is known of those that it had handed over.
    """

    def __init__(
        self,
        recipients: tuple[str, ...],
        texts: AsyncIterator[Text],
        file_type: int,
        to_the_end: bool,
        timeout: float,
        show: Callable[[Outcome], None],
        warn: Callable[[str], None],
        awaited: Callable[[Sequence[str]], None],
    ) -> None:
        """`awaited` hears once who is waited for, when a message that is stored is not delivered within a second."""
        self._recipients, self._texts, self._file_type = recipients, texts, file_type
        self._to_the_end, self._timeout, self._show, self._warn = to_the_end, timeout, show, warn
        self._awaited = awaited
        self._sender = ""
        self._open: dict[str, _Request] = {}
        """Those without an outcome, oldest first."""
        self._waiting: dict[str, _Request] = {}
        """Those of them without a receipt."""
        self._changed = trio.Event()
        self._all_read = self._connected = self._asked_to_wait = False
        self._wrong: UsageError | None = None
        self.foreign = self._told = False
        self.left: list[Outcome] = []

    async def run(self, find: Callable[[], Awaitable[Sequence[str]]], sender: str, name: str, token: str) -> None:
        """Send everything. Raises what stay_connected raises, and UsageError for a text that cannot be sent.

        With the UsageError, all texts before that one have had their outcomes, and none behind it is sent.
        """
        self._sender = sender
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read)
                nursery.start_soon(self._keep_time, nursery.cancel_scope)
                nursery.start_soon(self._break_silence)
                await stay_connected(find, sender, self._converse, lost=self._lost, name=name, token=token)
                nursery.cancel_scope.cancel()
        except BaseException:
            self._show = self.left.append
            for request in list(self._open.values()):
                if request.since:
                    self._give_up(request)
            raise
        if self._wrong is not None:
            raise self._wrong

    def _lost(self, why: str) -> None:
        self._warn(f"{why} Connecting again.")

    @property
    def _finished(self) -> bool:
        return self._all_read and not self._open

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _read(self) -> None:
        """Take texts as there is room for them, up to the first that cannot be sent."""
        try:
            async for text in self._texts:
                while len(self._open) >= OPEN or len(self._waiting) >= WAITING:
                    await self._changed.wait()
                if text.request_id in self._open:
                    raise UsageError(f"Two texts have the request id {text.request_id}; give each its own.")
                request = _Request(text, self._recipients, trio.current_time(), self._timeout)
                self._open[text.request_id] = self._waiting[text.request_id] = request
                self._wake()
        except UsageError as wrong:
            self._wrong = wrong
        self._all_read = True
        self._wake()

    async def _keep_time(self, scope: trio.CancelScope) -> None:
        """Give up what is late; end the call when that was all and there is no session to end it."""
        while not (self._finished and not self._connected):
            oldest = next(iter(self._open.values()), None)
            with trio.move_on_at(oldest.deadline if oldest else math.inf):
                await self._changed.wait()
            for request in list(self._open.values()):
                if request.deadline > trio.current_time():
                    break
                self._give_up(request)
        scope.cancel()

    async def _break_silence(self) -> None:
        while True:
            await trio.sleep(SILENT)
            before = trio.current_time() - SILENT
            absent = [
                recipient
                for request in self._open.values()
                if request.request_id not in self._waiting and request.since < before
                for recipient in request.left
            ]
            if absent:
                self._awaited(list(dict.fromkeys(absent)))
                return

    def _give_up(self, request: _Request) -> None:
        if request.request_id not in self._waiting:
            error = "it is stored, and will be delivered when its recipient can be reached."
            self._end(request, "accepted", error, late=True)
        else:
            again = f"--as {self._sender} --request-id {request.request_id}"
            self._end(request, "failed", f"no node has confirmed it; it is safe to repeat with {again}.", late=True)

    def _end(self, request: _Request, state: str, error: str | None, *, late: bool = False) -> None:
        """Tell the outcome for all recipients that have none."""
        for recipient in request.left:
            self._tell(request, recipient, state, error, late)
        self._waiting.pop(request.request_id, None)
        del self._open[request.request_id]
        self._wake()

    def _tell(self, request: _Request, recipient: str, state: str, error: str | None, late: bool = False) -> None:
        seconds = trio.current_time() - request.since if request.since else 0.0
        self._show(Outcome(request.message_id, request.request_id, recipient, state, error, seconds, late))

    # -- one session ---------------------------------------------------------------------------------------------------
    async def _converse(self, client: Client) -> None:
        for request in self._waiting.values():
            request.send_at = 0.0
        self._connected = True
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._receive, client)
                await self._send(client)
                nursery.cancel_scope.cancel()
            if self._told:  # else the node would keep the notices for somebody who never comes back
                with trio.move_on_after(CONFIRMED_WITHIN), suppress(Disconnected):
                    await client.confirm()
        except* Disconnected as group:
            self._connected = False
            self._wake()
            if any(isinstance(error, Disconnected) and error.code == TOO_LARGE for error in group.exceptions):
                self._fail_largest()
                raise Unreachable("The node has refused a text as too large.") from None
            raise

    async def _send(self, client: Client) -> None:
        while not self._finished:
            now = trio.current_time()
            for request in list(self._waiting.values()):
                if request.send_at <= now and request.request_id in self._waiting:
                    request.send_at = math.inf
                    request.since = request.since or trio.current_time()
                    await client.send(self._recipients, request.text, self._file_type, request.request_id)
            due = min((request.send_at for request in self._waiting.values()), default=math.inf)
            if due > trio.current_time():
                with trio.move_on_at(due):
                    await self._changed.wait()

    async def _receive(self, client: Client) -> None:
        while True:
            frame = await client.receive()
            if isinstance(frame, Receipt):
                self._receipted(frame)
            elif isinstance(frame, Settled):
                self._settled(frame)
            elif isinstance(frame, Message):
                self.foreign = True

    def _receipted(self, receipt: Receipt) -> None:
        request = self._waiting.get(receipt.request_id)
        if request is None:
            return
        now = trio.current_time()
        if receipt.status == 200:
            request.message_id = receipt.message_id
            del self._waiting[request.request_id]
            if not self._to_the_end:
                self._end(request, "accepted", None)
        elif receipt.retry_after and now + receipt.retry_after < request.deadline:
            request.send_at = now + receipt.retry_after
            if not self._asked_to_wait:
                self._warn(f"The node asks to wait {receipt.retry_after} s: {receipt.error}")
            self._asked_to_wait = True
        else:
            self._end(request, "failed", receipt.error, late=receipt.retry_after > 0)
        self._wake()

    def _settled(self, notice: Settled) -> None:
        request = self._open.get(notice.request_id)
        if request is None or notice.recipient not in request.left:
            return
        request.message_id = notice.message_id
        self._waiting.pop(request.request_id, None)
        delivered = notice.status == 200
        request.left.remove(notice.recipient)
        self._told = True
        self._tell(request, notice.recipient, "delivered" if delivered else "expired", notice.error or None)
        if not request.left:
            self._end(request, "delivered", None)

    def _fail_largest(self) -> None:
        """The node does not say which one was too large, and whatever came behind it is unanswered as well."""
        if self._waiting:
            largest = max(self._waiting.values(), key=lambda request: len(request.text.encode()))
            self._end(largest, "failed", "too large for the node; see limits.message_size of its settings.")


async def lines(fd: int) -> AsyncIterator[str]:
    """The lines of a stream, as they come; UsageError for one that is not UTF-8 or longer than 16 MiB."""
    rest, number = b"", 0
    while data := await trio.to_thread.run_sync(os.read, fd, 1 << 16, abandon_on_cancel=True):
        *whole, rest = (rest + data).split(b"\n")
        for line in whole:
            number += 1
            yield _text(line, number)
        if len(rest) > LONGEST_LINE:
            raise UsageError(f"Line {number + 1} of stdin has no end; give one text a line.")
    if rest:
        yield _text(rest, number + 1)


def _text(line: bytes, number: int) -> str:
    try:
        return line.removesuffix(b"\r").decode()
    except UnicodeDecodeError:
        raise UsageError(f"Line {number} of stdin is not UTF-8.") from None
