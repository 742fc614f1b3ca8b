"""One client's WebSocket as bytes in, bytes out; the limits of one connection. Synchronous; knows no socket.

The opening handshake is `websockets`' (handshake.py). Frames are read and written here (RFC 6455, 5): by its core each
would cost ten times as much, and clients can send five thousand empty ones in a packet. A test holds the two together.
"""

from __future__ import annotations

import math
from typing import Final

from websockets.exceptions import ProtocolError
from websockets.frames import Close

from yanchat.config import LimitSettings
from yanchat.errors import Refused
from yanchat.gateway.admission import plain_answer
from yanchat.gateway.handshake import Handshake
from yanchat.node.hub import Session

try:
    from websockets.speedups import apply_mask
except ImportError:
    from websockets.utils import apply_mask

CONTINUATION, BINARY, CLOSE, PING, PONG, CONTROL = 0x0, 0x2, 0x8, 0x9, 0xA, 0x8
FIN, MASKED = 0x80, 0x80
WHOLE_TEXT: Final = 0x81
FIRST_BYTES: Final = frozenset((0x00, 0x80, 0x01, 0x81, 0x02, 0x82, 0x88, 0x89, 0x8A))
"""Opcodes with and without FIN that there are: no reserved bits, and no fragmented control frames."""
LONGEST_CONTROL: Final = 125

BREACH, NO_TEXT, NOT_UTF8, TOO_LARGE, INTERNAL_ERROR, TOO_SLOW = 1002, 1003, 1007, 1009, 1011, 4008

SHAKING_HANDS, TALKING, CLOSING, LEAVING, PARTED, GONE = range(6)
"""The phases of a connection; it only goes forward. CLOSING: our closing frame is out, theirs is awaited. LEAVING: what
comes is thrown away until the other side has seen our end. PARTED: both have closed, `out` may still leave. GONE."""


class Connection:
    """Takes bytes through `receive`; what is to be sent gathers in `out`, and `touch` is called when that begins."""

    __slots__ = (
        "_fragments",
        "_handshake",
        "_limits",
        "_partial",
        "backlog",
        "buffered",
        "congested",
        "expires",
        "missing",
        "out",
        "paused",
        "phase",
        "remote",
        "session",
    )

    def __init__(self, remote: str, limits: LimitSettings, handshake: Handshake) -> None:
        self.remote, self._limits, self._handshake = remote, limits, handshake
        self.phase = SHAKING_HANDS
        self.session: Session | None = None
        self.expires = math.inf
        """When the session must end, in seconds since 1970."""
        self.paused = False
        """The session takes nothing more for now."""
        self.backlog = False
        """It takes more again, also of what was received before."""
        self.missing = 0
        """Bytes of a frame that has begun."""
        self._partial = b""
        self._fragments: bytearray | None = None
        self.out: list[bytes] | tuple[()] = ()
        self.buffered = 0
        self.congested = False

    def apply(self, limits: LimitSettings) -> None:
        """Hold it to other limits from now on."""
        self._limits = limits

    def touch(self) -> None:
        """There is something to send, or the phase has changed; for who moves the bytes."""

    # -- bytes in ------------------------------------------------------------------------------------------------------
    @property
    def reading(self) -> bool:
        """Whether bytes are wanted now: not while the session is busy, nor while the client takes no answers."""
        return not (self.paused or self.congested)

    def receive(self, data: bytes) -> None:
        """Take bytes from the client; b"" when `backlog` is set."""
        self.backlog, self.missing = False, 0
        if self._partial:
            data, self._partial = self._partial + data, b""
        if self.phase == SHAKING_HANDS:
            self._greet(data)
        elif self.phase < LEAVING:
            self._frames(data)

    def resume(self) -> None:
        """The session takes messages again."""
        self.paused, self.backlog = False, True
        self.touch()

    def _greet(self, data: bytes) -> None:
        try:
            opened = self._handshake.answer(data, self)
        except Refused as refused:
            self.refuse(refused, to_head=data.startswith(b"HEAD "))
            return
        if opened is None:
            self._partial = data
            return
        self.session, self.expires, answer, self._partial = opened
        self.phase = TALKING
        self.paused = True  # until the session has said hello
        self._write(answer)

    def _frames(self, data: bytes) -> None:
        """Cut frames, and do what each says; the rest is kept."""
        at, end, largest = 0, len(data), self._limits.message_size
        while end - at >= 2 and not self.paused and self.phase < LEAVING:
            first, second = data[at], data[at + 1]
            length, head = second & 0x7F, 6
            if length >= 126:
                head = 8 if length == 126 else 14
                if end - at < head - 4:
                    break
                length = int.from_bytes(data[at + 2 : at + head - 4], "big")
            usual = first == WHOLE_TEXT and self._fragments is None and self.phase == TALKING
            if second < MASKED or length > largest or not usual:
                code = self._breach(first, second, length)
                if code:
                    self._fail(code)
                    return
            stop = at + head + length
            if stop > end:
                self.missing = stop - end
                break
            payload = apply_mask(data[at + head : stop], data[at + head - 4 : at + head])
            at = stop
            if usual:
                self._text(payload)
            else:
                self._unusual(first, payload)
        if at < end and self.phase < LEAVING:
            self._partial = data[at:]

    def _breach(self, first: int, second: int, length: int) -> int:
        """The close code when this beginning of a frame breaks a rule, else 0.

        What `message_size` limits is the payload of one message: the JSON as it is sent, with all its fragments.
        """
        if first not in FIRST_BYTES or second < MASKED:
            return BREACH
        opcode, had = first & 0x0F, self._fragments
        if opcode >= CONTROL:
            return BREACH if length > LONGEST_CONTROL else 0
        if (opcode == CONTINUATION) != (had is not None) and self.phase == TALKING:
            return BREACH
        return TOO_LARGE if length + len(had or b"") > self._limits.message_size else 0

    def _unusual(self, first: int, payload: bytes) -> None:
        """A control frame, a fragment, or what is no text; the breaches are sorted out."""
        opcode = first & 0x0F
        if opcode == PING:
            self._write(bytes((FIN | PONG, len(payload))) + payload)
        elif opcode == CLOSE:
            self._closed(payload)
        elif self.phase != TALKING:
            pass  # the session is over: nobody takes it, nobody answers
        elif opcode == PONG:
            assert self.session is not None
            self.session.pong(payload)
        elif opcode == BINARY:
            self.close(NO_TEXT, "send text frames")
        else:
            if self._fragments is None:
                self._fragments = bytearray()
            self._fragments += payload
            if first & FIN:
                whole, self._fragments = bytes(self._fragments), None
                self._text(whole)

    def _text(self, data: bytes) -> None:
        if not data.isascii():
            try:
                data.decode()
            except UnicodeDecodeError:
                self.close(NOT_UTF8, "not UTF-8")
                return
        assert self.session is not None
        if not self.session.receive(data):
            self.paused = True
            self.touch()

    def _closed(self, payload: bytes) -> None:
        """The client's closing frame: answered with its own words (RFC 6455, 5.5.1), unless it answers ours."""
        try:
            Close.parse(payload)
        except ProtocolError:
            self._fail(BREACH)
        except UnicodeDecodeError:
            self._fail(NOT_UTF8)
        else:
            self._over(PARTED, payload)

    def _fail(self, code: int) -> None:
        """The client has broken a rule: say so, and read nothing more (RFC 6455, 7.1.7)."""
        self._over(LEAVING, Close(code, "").serialize())

    # -- bytes out (node/hub.Outlet) -----------------------------------------------------------------------------------
    def send(self, frame: bytes) -> None:
        if self.phase != TALKING:
            return
        size = len(frame)
        if size < 126:
            self._write(bytes((WHOLE_TEXT, size)) + frame)
        elif size < 1 << 16:
            self._write(b"\x81\x7e" + size.to_bytes(2, "big") + frame)
        else:
            self._write(b"\x81\x7f" + size.to_bytes(8, "big") + frame)

    def ping(self, payload: bytes) -> None:
        if self.phase == TALKING:
            self._write(bytes((FIN | PING, len(payload))) + payload)

    def close(self, code: int, reason: str) -> None:
        """Start the closing handshake, and end the session; a client that still shakes hands is refused."""
        if self.phase == SHAKING_HANDS and code == INTERNAL_ERROR:
            self.refuse(Refused(500, "Something went wrong here; connect again.", retry_after=5))
        elif self.phase == SHAKING_HANDS:
            self.refuse(Refused(503, "This node is stopping; connect again.", retry_after=1))
        else:
            self._over(CLOSING, _closing_payload(code, reason))

    def _over(self, phase: int, closing: bytes) -> None:
        """The conversation is over: our closing frame if it is not out yet, and the session's end."""
        if self.phase == TALKING:
            self._write(bytes((FIN | CLOSE, len(closing))) + closing)
        if phase > self.phase:
            self.phase = phase
            self.paused, self.backlog, self._fragments = False, True, None
            self._end_session()
            self.touch()

    def refuse(self, refused: Refused, *, to_head: bool = False) -> None:
        """Answer in plain HTTP; there will be no WebSocket."""
        self._handshake.refusals.log(self.remote, refused)
        self.phase = LEAVING
        self._write(plain_answer(refused, to_head=to_head))

    def end(self) -> None:
        """The bytes are over, with or without a closing handshake."""
        self.phase = GONE
        self._end_session()
        self.session = self._fragments = None
        self._partial, self.out, self.buffered = b"", (), 0
        self.touch()

    def _end_session(self) -> None:
        if self.session is not None:
            self.session.end()

    def _write(self, data: bytes) -> None:
        self.buffered += len(data)
        if self.out:
            self.out.append(data)
        else:
            self.out = [data]
            self.touch()
        if self.buffered >= self._limits.outgoing_buffer // 2:
            self.congested = True
            self.touch()

    def sent(self, unsent: bytes) -> None:
        """The kernel has taken all of `out` but this."""
        self.out = [unsent] if unsent else ()
        self.buffered = len(unsent)
        if self.congested and self.buffered < self._limits.outgoing_buffer // 2:
            self.congested = False
            if self.session is not None:
                self.session.drained()


def _closing_payload(code: int, reason: str) -> bytes:
    """Code and reason as far as they may be sent: another node's record may have said anything."""
    reason = reason.encode()[: LONGEST_CONTROL - 2].decode(errors="ignore")
    try:
        return Close(code, reason).serialize()
    except ProtocolError:
        return Close(1000, "").serialize()
