"""One client's WebSocket as bytes in, bytes out; the limits of one connection. Synchronous; knows no socket.

The common frames, whole masked texts and pongs, are read and written by a few lines here; every other byte is the
business of `websockets`' sans-IO core, which is made for it and dropped again when it has nothing left.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol as Shape

from websockets.exceptions import WebSocketException
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import OPEN, Protocol, Side
from websockets.server import ServerProtocol

from yanchat.config import LimitSettings
from yanchat.errors import Refused
from yanchat.gateway.admission import Admission, plain_answer
from yanchat.model import OpenId
from yanchat.node.hub import Outlet, Session

try:
    from websockets.speedups import apply_mask
except ImportError:
    from websockets.utils import apply_mask

SUBPROTOCOL = "yanchat.v1"
TEXT, PONG, MASKED = 0x81, 0x8A, 0x80
TOO_SLOW = 4008


class Door(Shape):
    """Where logins go: `node/reception.py`."""

    def enter(self, openid: OpenId, user_name: str, remote: str, outlet: Outlet) -> Session: ...


class Connection:
    """Made for each accepted socket. The edge feeds it, and takes `out` when it was told through `touch`."""

    __slots__ = (
        "_admission",
        "_door",
        "_events",
        "_fragments",
        "_handshake",
        "_library",
        "_limits",
        "_partial",
        "_touch",
        "buffered",
        "congested",
        "ending",
        "out",
        "paused",
        "remote",
        "session",
    )

    def __init__(
        self,
        remote: str,
        limits: LimitSettings,
        admission: Admission,
        door: Door,
        touch: Callable[[Connection], None],
    ) -> None:
        self.remote, self._limits, self._admission, self._door, self._touch = remote, limits, admission, door, touch
        self._handshake: ServerProtocol | None = ServerProtocol(
            max_size=limits.message_size,
            select_subprotocol=lambda _, offered: next((name for name in offered if name == SUBPROTOCOL), None),
        )
        self._library: Protocol | None = None
        self._partial = b""
        self._events: list[Frame] = []
        self._fragments: list[bytes] | None = None
        self.session: Session | None = None
        self.out: list[bytes] = []
        self.buffered = 0
        self.congested = self.paused = False
        self.ending = False
        """Nothing more is read for a session; once `out` has left, the socket is closed."""

    # -- bytes in ------------------------------------------------------------------------------------------------------
    def receive(self, data: bytes) -> None:
        """Take bytes from the client."""
        if self.ending and self._library is None:
            return
        if self._handshake is not None:
            self._greet(data)
        elif self._library is not None:
            self._to_library(data)
        else:
            self._frames(self._partial + data if self._partial else data)

    def receive_eof(self) -> None:
        """The client has closed its side."""
        self.end()

    def resume(self) -> None:
        """The session takes messages again: first those that are here already."""
        self.paused = False
        while self._events and not self.paused:
            self._event(self._events.pop(0))
        if self._partial and not self.paused and self._library is None:
            self._frames(self._partial)
        self._touch(self)

    def _greet(self, data: bytes) -> None:
        handshake = self._handshake
        assert handshake is not None
        handshake.receive_data(data)
        if handshake.handshake_exc is not None:
            self.refuse(Refused(400, "The request is not understood; send a WebSocket upgrade (RFC 6455)."))
            return
        events = handshake.events_received()
        if not events:
            return
        request = events[0]
        assert isinstance(request, Request)
        try:
            user = self._admission.check(request)
            response = handshake.accept(request)
            if response.status_code != 101:
                raise Refused(response.status_code, response.body.decode().splitlines()[0])
            self.session = self._door.enter(user.openid, user.name, self.remote, self)
        except Refused as refused:
            self.refuse(refused)
            return
        except (ValueError, WebSocketException):
            self.refuse(Refused(400, "The request is not understood; send a WebSocket upgrade (RFC 6455)."))
            return
        handshake.send_response(response)
        self._write(b"".join(handshake.data_to_send()))
        self._handshake = None
        self._library = handshake
        for event in events[1:]:
            assert isinstance(event, Frame)
            self._event(event)
        self._after_library()

    def _frames(self, data: bytes) -> None:
        """The fast path: whole, unfragmented, masked texts and pongs."""
        self._partial = b""
        at, end, session = 0, len(data), self.session
        while end - at >= 2 and not self.ending:
            first, second = data[at], data[at + 1]
            length, head = second & 0x7F, 6
            if length == 126 and first == TEXT:
                if end - at < 4:
                    break
                length, head = data[at + 2] << 8 | data[at + 3], 8
                usual = 126 <= length <= self._limits.message_size
            else:
                usual = length < 126 and length <= self._limits.message_size
            if not usual or not second & MASKED or (first != TEXT and first != PONG):
                self._library = Protocol(Side.SERVER, state=OPEN, max_size=self._limits.message_size)
                self._to_library(data[at:])
                return
            stop = at + head + length
            if stop > end:
                break
            payload = apply_mask(data[at + head : stop], data[at + head - 4 : at + head])
            at = stop
            if first == TEXT:
                self._text(payload)
                if self.paused:
                    break
            elif session is not None:
                session.pong(payload)
        if at < end and not self.ending:
            self._partial = data[at:]

    def _to_library(self, data: bytes) -> None:
        assert self._library is not None
        if self.ending and self._library.eof_sent:
            return
        self._library.receive_data(data)
        self._events += [event for event in self._library.events_received() if isinstance(event, Frame)]
        while self._events and not self.paused:
            self._event(self._events.pop(0))
        self._after_library()

    def _after_library(self) -> None:
        """Send what the library answers; drop it when it holds nothing."""
        library = self._library
        if library is None:
            return
        for write in library.data_to_send():
            if write:
                self._write(write)
        if library.state is not OPEN:
            self._over()
            if library.eof_sent:
                self.ending = True
                self._touch(self)
        elif not library.reader.buffer and library.current_size is None and self._fragments is None:
            self._library = None

    def _event(self, frame: Frame) -> None:
        if self.session is None or self.ending:
            return
        if frame.opcode is Opcode.PONG:
            self.session.pong(bytes(frame.data))
        elif frame.opcode is Opcode.BINARY:
            self.close(1003, "send text frames")
        elif frame.opcode in {Opcode.TEXT, Opcode.CONT}:
            if frame.opcode is Opcode.TEXT and frame.fin:
                self._text(bytes(frame.data))
                return
            self._fragments = [*(self._fragments or ()), bytes(frame.data)]
            if frame.fin:
                whole, self._fragments = b"".join(self._fragments), None
                self._text(whole)

    def _text(self, data: bytes) -> None:
        if not data.isascii():
            try:
                data.decode()
            except UnicodeDecodeError:
                self.close(1007, "not UTF-8")
                return
        if self.session is not None and not self.session.receive(data):
            self.paused = True
            self._touch(self)

    # -- bytes out (node/hub.Outlet) -----------------------------------------------------------------------------------
    def send(self, frame: bytes) -> None:
        size = len(frame)
        if self.session is None or not self.session.open:
            return
        if size < 126:
            self._write(bytes((TEXT, size)) + frame)
        elif size < 1 << 16:
            self._write(b"\x81\x7e" + size.to_bytes(2, "big") + frame)
        else:
            self._write(b"\x81\x7f" + size.to_bytes(8, "big") + frame)

    def ping(self, payload: bytes) -> None:
        if not self.ending and self._handshake is None:
            self._write(bytes((0x89, len(payload))) + payload)

    def close(self, code: int, reason: str) -> None:
        """Start the closing handshake; the session is over."""
        if self._handshake is not None:
            self.end()
            return
        if self._library is None:
            self._library = Protocol(Side.SERVER, state=OPEN, max_size=self._limits.message_size)
        if self._library.state is OPEN:
            self._library.send_close(code, reason)
        self._after_library()

    def refuse(self, refused: Refused) -> None:
        """Answer in plain HTTP; there is no WebSocket."""
        self._handshake = None
        self._write(plain_answer(refused))
        self.ending = True

    def end(self) -> None:
        """The bytes are over, with or without a closing handshake."""
        self._over()
        self.ending = True
        self.out, self.buffered = [], 0
        self._library = self._handshake = None
        self._touch(self)

    def _over(self) -> None:
        if self.session is not None:
            self.session.end()

    def _write(self, data: bytes) -> None:
        self.out.append(data)
        self.buffered += len(data)
        half = self._limits.outgoing_buffer // 2
        if self.buffered >= half:
            self.congested = True
        self._touch(self)

    def sent(self, unsent: bytes) -> None:
        """The kernel has taken all but this."""
        self.out = [unsent, *self.out] if unsent else self.out
        self.buffered = sum(map(len, self.out))
        if self.congested and self.buffered < self._limits.outgoing_buffer // 2:
            self.congested = False
            if self.session is not None:
                self.session.drained()

    @property
    def shaking_hands(self) -> bool:
        return self._handshake is not None

    @property
    def closing(self) -> bool:
        """The closing handshake is under way."""
        return self.ending or (self._library is not None and self._library.state is not OPEN)
