"""A connection with its socket and its deadlines: bytes from and to the kernel, and what to do when it takes too long.

What they pass between here and there, as TLS, is in layers.py.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from fcntl import ioctl
from termios import TIOCOUTQ
from typing import Final

from yanchat.config import LimitSettings
from yanchat.gateway.connection import CLOSING, LEAVING, TALKING, TOO_SLOW, Connection
from yanchat.gateway.handshake import Handshake

BYTES_A_READ: Final = 8192
"""Or what is missing of a frame. A client who floods the node with the smallest frames costs 1,400 of them a turn."""
LARGEST_READ: Final = 131_072
BYTES_UNSENT: Final = 131_072
"""What the kernel takes beyond what the network does. With megabytes in there, a slow reader would look like none."""
FULL_SECONDS: Final = 1.0
"""How long a client may read nothing when its outgoing buffer is over the limit, by answers to what was in flight:
from half full on nothing more is read from it, and pushes wait in the hub."""
IDLE: Final = 1001
EXPIRED: Final = 4003


class Wire(Connection):
    """All its times are seconds of the edge's own clock, which is handed in; 0 for not running."""

    __slots__ = (
        "_touch",
        "fd",
        "heard",
        "next_ping",
        "polled",
        "seen",
        "since",
        "sock",
        "stalled",
        "untaken",
        "writable",
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
    ) -> None:
        super().__init__(remote, limits, handshake)
        self.sock, self.fd, self._touch = sock, sock.fileno(), touch
        self.polled, self.writable = 0, True
        """The events that are waited for; whether the kernel took all it was given."""
        self.seen = self.phase
        """The phase that was acted upon."""
        self.since = self.heard = clock
        """Since when it shakes hands or closes; when it was last heard."""
        self.next_ping = next_ping
        self.stalled = 0.0
        """Since when the client has read nothing of what waits for it."""
        self.untaken = 0
        """How many bytes lay in the kernel at that time."""

    def touch(self) -> None:
        self._touch(self)

    def read(self, clock: float) -> int:
        """Read once and hand it over; how many bytes that was. The end and every failure of the socket are the end."""
        try:
            data = self.sock.recv(min(max(BYTES_A_READ, self.missing), LARGEST_READ))
        except BlockingIOError:
            return 0
        except OSError:
            data = b""
        if not data:
            self.end()
        elif self.phase < LEAVING:
            self.heard = clock
            self.receive(data)
        return len(data)

    def write(self, clock: float) -> None:
        """Send what there is, as far as the kernel takes it."""
        data = self.out[0] if len(self.out) == 1 else b"".join(self.out)
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.end()
            return
        if sent == len(data):
            self.stalled = 0.0
            self.sent(b"")
        else:
            self.writable = False
            self.begin_stall(clock, sent)
            self.sent(data[sent:])

    def begin_stall(self, clock: float, sent: int) -> None:
        """The kernel has taken no more than this: from now on the client is awaited."""
        if sent or not self.stalled:
            self.stalled, self.untaken = clock, _untaken(self.sock)

    def advance(self, clock: float) -> bool:
        """Act upon another phase; true when the socket may go."""
        if self.seen < CLOSING:
            self.since = clock
        self.seen = min(self.phase, CLOSING)
        if self.phase > LEAVING:
            return not self.out
        if self.phase == LEAVING and not self.out:
            self.seen = LEAVING
            try:
                self.sock.shutdown(socket.SHUT_WR)  # closed with bytes unread it would be reset: RFC 9112, 9.6
            except OSError:
                return True
        return False

    def check(self, clock: float, next_ping: float, wall: float) -> bool:
        """Keep the deadlines, `wall` in seconds since 1970; true when the socket must go."""
        limits = self._limits
        if self.phase != TALKING:  # the opening handshake or the closing one; what else is heard does not count
            return clock - self.since > limits.handshake
        if wall >= self.expires:
            self.close(EXPIRED, "the token has expired")
        elif self.stalled:
            full = self.buffered > limits.outgoing_buffer
            if clock - self.stalled > (min(FULL_SECONDS, limits.stalled) if full else limits.stalled):
                self._let_go_or_wait(clock)
        elif self.reading and clock - self.heard > limits.idle:
            self.close(IDLE, "idle")
        elif clock >= self.next_ping:
            self.next_ping = next_ping
            self.ping(b"alive")
        return False

    def _let_go_or_wait(self, clock: float) -> None:
        """Nothing more fits into the kernel; whoever reads so slowly that it is long until something does, reads."""
        untaken = _untaken(self.sock)
        if untaken < self.untaken:
            self.stalled, self.untaken = clock, untaken
        else:
            self.close(TOO_SLOW, "too slow")


def _untaken(sock: socket.socket) -> int:
    """Bytes that were sent and that the other side's kernel has not taken (tcp(7), SIOCOUTQ)."""
    try:
        return int(struct.unpack("i", ioctl(sock, TIOCOUTQ, b"\0" * 4))[0])
    except OSError:
        return 0
