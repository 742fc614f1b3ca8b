"""A wire whose bytes pass something before they are the client's: the PROXY header of a trusted proxy, TLS, or both.

TLS is bytes in, bytes out as well (ssl.MemoryBIO): it needs no task and no socket of its own.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from yanchat.config import LimitSettings
from yanchat.errors import Refused
from yanchat.gateway.admission import plain_answer
from yanchat.gateway.connection import LEAVING
from yanchat.gateway.handshake import Handshake
from yanchat.gateway.proxy import read_announcement
from yanchat.gateway.tls import Contexts
from yanchat.gateway.wire import Wire

RECORD: Final = 16_384
"""The most that a record of TLS holds (RFC 8446, 5.1)."""
SEALED_AT_ONCE: Final = 131_072
HANDSHAKE_COSTS: Final = 16_384
"""As much of a turn as reading so many bytes: a handshake takes about a millisecond."""
OWED_AT_MOST: Final = 65_536
"""Bytes of TLS's own, as answers to key updates, that a client who reads nothing may make wait."""
Announce = Callable[[Wire, str], None]


class LayeredWire(Wire):
    """Its `out` and all limits are of the client's own bytes; what the kernel gets of them is sealed."""

    __slots__ = (
        "_announce",
        "_contexts",
        "_ended",
        "_head",
        "_incoming",
        "_outgoing",
        "_sealed",
        "_sealing",
        "_secure",
        "_tls",
    )

    def __init__(
        self,
        sock: socket.socket,
        remote: str,
        limits: LimitSettings,
        handshake: Handshake,
        touch: Callable[[Wire], None],
        clock: float,
        next_ping: float,
        announce: Announce | None,
        contexts: Contexts | None,
    ) -> None:
        """`announce` takes the address out of the PROXY header, or refuses it; without it none is expected."""
        super().__init__(sock, remote, limits, handshake, touch, clock, next_ping)
        self._announce, self._contexts, self._head = announce, contexts, b""
        self._tls: ssl.SSLObject | None = None
        """There from the first byte on: who says nothing costs nothing."""
        self._secure = self._ended = False
        """Whether the handshake is done and we have not said goodbye; whether the client has."""
        self._sealed, self._sealing = b"", 0
        """What goes to the kernel, and for how many bytes of `out` it stands."""

    # -- bytes in ------------------------------------------------------------------------------------------------------
    def read(self, clock: float) -> int:
        shaking = self._contexts is not None and not self._secure
        return super().read(clock) + (HANDSHAKE_COSTS if shaking else 0)

    def receive(self, data: bytes) -> None:
        if data and self._announce is not None:
            data = self._without_header(data)
            if not data:
                return
        if data and self._contexts is not None:
            data = self._opened(data, self._contexts)
        if data or self.backlog:
            super().receive(data)
        if self._ended and not self.paused:  # what it said before comes first
            self.end()

    def _without_header(self, data: bytes) -> bytes:
        """What is behind the PROXY header, as soon as that is here."""
        assert self._announce is not None
        self._head += data
        try:
            found = read_announcement(self._head)
            if found is None:
                return b""
            if found.address:
                self._announce(self, found.address)
        except Refused as refused:
            if self._contexts is None:
                self.refuse(refused)
            else:
                self.end()
            return b""
        rest, self._head, self._announce = self._head[found.length :], b"", None
        return rest

    def _opened(self, data: bytes, contexts: Contexts) -> bytes:
        """The client's own bytes in what came."""
        if self._tls is None:
            self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            self._tls = contexts().wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._incoming.write(data)
        parts: list[bytes] = []
        try:
            if not self._secure:
                self._tls.do_handshake()
                self._secure = True
            while self._incoming.pending or self._tls.pending():
                part = self._tls.read(RECORD)
                self._ended = not part
                if self._ended:
                    break
                parts.append(part)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self._break_off(error)
            return b""
        self._owe()
        return b"".join(parts)

    def _break_off(self, error: ssl.SSLError) -> None:
        """TLS has failed: the client gets the alert that says why, and nothing more."""
        alert = self._outgoing.read()
        if not self._secure and error.reason == "HTTP_REQUEST":
            alert = plain_answer(Refused(400, "This port speaks TLS; connect to it with wss://."))
        if not self._sealed:
            with suppress(OSError):
                self.sock.send(alert)
        self._secure, self._sealed = False, b""
        self.out, self.buffered = (), 0
        self._end_session()
        self.phase = LEAVING
        self.touch()

    def _owe(self) -> None:
        """Let go out what TLS has to say by itself."""
        if self._outgoing.pending:
            self._sealed += self._outgoing.read()
            if len(self._sealed) > SEALED_AT_ONCE + OWED_AT_MOST:
                self.end()
            elif not self.out:
                self.out = [b""]  # there is something to write, though none of it is ours
                self.touch()

    # -- bytes out -----------------------------------------------------------------------------------------------------
    def write(self, clock: float) -> None:
        if self._contexts is None:
            super().write(clock)
            return
        while self.out:
            data = self.out[0] if len(self.out) == 1 else b"".join(self.out)
            if not self._sealed and not self._seal(data):
                return
            try:
                sent = self.sock.send(self._sealed)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.end()
                return
            if sent < len(self._sealed):
                self._sealed, self.out, self.writable = self._sealed[sent:], [data], False
                self.begin_stall(clock, sent)
                return
            unsent = data[self._sealing :]
            self._sealed, self._sealing, self.stalled = b"", 0, 0.0
            self.sent(unsent)

    def _seal(self, data: bytes) -> bool:
        """Seal as much as goes out at once; false when nothing can go out."""
        if not self._secure or self._tls is None:  # refused before there was a conversation: nobody could read it
            if data:
                self.end()
            else:
                self.sent(b"")
            return False
        part = data[:SEALED_AT_ONCE]
        try:
            if part:
                self._tls.write(part)
        except ssl.SSLError:
            self.end()
            return False
        self._sealed, self._sealing = self._outgoing.read(), len(part)
        if not self._sealed:
            self.sent(b"")
        return bool(self._sealed)

    def advance(self, clock: float) -> bool:
        if self._secure and self.phase >= LEAVING and not self.out:
            self._say_goodbye()
        return super().advance(clock)

    def _say_goodbye(self) -> None:
        """Our end is meant, and nobody has cut the line (close_notify: RFC 8446, 6.1)."""
        assert self._tls is not None
        self._secure = False
        with suppress(ssl.SSLError):
            self._tls.unwrap()
        with suppress(OSError):
            self.sock.send(self._outgoing.read())
