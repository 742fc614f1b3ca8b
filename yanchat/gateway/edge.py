"""The one task that moves bytes for all sockets: accept, read, write, deadlines. Knows sockets and bytes, no frames.

TLS will stand between `_read` and `Connection.receive`, and between `Connection.out` and `_send`: nowhere else do
bytes cross.
"""

from __future__ import annotations

import select
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from errno import ECONNABORTED
from typing import Final

import structlog
import trio

from yanchat.config import LimitSettings
from yanchat.errors import Refused
from yanchat.gateway.admission import Admission, plain_answer
from yanchat.gateway.connection import (
    CLOSING,
    GONE,
    INTERNAL_ERROR,
    LEAVING,
    PARTED,
    TALKING,
    TOO_SLOW,
    Connection,
)
from yanchat.gateway.handshake import Door, Handshake

EVENTS_A_TURN, BYTES_A_TURN, ACCEPTS_A_TURN = 256, 65_536, 64
BYTES_A_READ: Final = 8192
"""Or what is missing of a frame. A client who floods the node with the smallest frames costs 1,400 of them a turn."""
BYTES_UNSENT: Final = 131_072
"""What the kernel takes beyond what the network does. With megabytes in there, a slow reader would look like none."""
CHECKS_AT_ONCE: Final = 1000
FULL_SECONDS: Final = 1.0
"""How long a client may read nothing when its outgoing buffer is over the limit: by answers to what was in flight,
for from half full on nothing more is read from it, and pushes wait in the hub."""
READ, WRITE, LOST = select.EPOLLIN, select.EPOLLOUT, select.EPOLLHUP | select.EPOLLERR


class Wire(Connection):
    """A connection with its socket and clocks; these are seconds of the edge's own clock, 0 for not running."""

    __slots__ = ("edge", "fd", "heard", "interest", "next_ping", "seen", "since", "sock", "stalled", "writable")

    def __init__(self, edge: Edge, sock: socket.socket, remote: str, limits: LimitSettings) -> None:
        super().__init__(remote, limits, edge.handshake)
        self.edge, self.sock, self.fd = edge, sock, sock.fileno()
        self.interest, self.writable = READ, True
        self.since = self.heard = edge.clock
        self.next_ping = edge.next_ping
        """Since when it shakes hands or closes; when it was last heard; when it is asked whether it is there."""
        self.seen = self.phase
        """The phase that the edge has acted upon."""
        self.stalled = 0.0
        """Since when the client has read nothing of what waits for it."""

    def touch(self) -> None:
        self.edge.touch(self)


class Edge:
    """All sockets of one node. `run` serves, `sweep` keeps the deadlines; the rest may be called at any time."""

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        door: Door,
        admission: Admission,
        limits: LimitSettings,
        now: Callable[[], float],
    ) -> None:
        self._listeners = {listener.fileno(): listener for listener in listeners}
        self._admission, self._limits, self._now = admission, limits, now
        self.handshake = Handshake(admission, door)
        self.clock = 1.0
        """Seconds that the sweep has counted. Time in which the whole node stood still is no client's fault: it does
        not count. All wires share the one number, and reading costs no look at the time."""
        self.next_ping = self.clock + limits.ping
        """When a wire that is asked now is asked again."""
        self._epoll = select.epoll()
        self._events: list[tuple[int, int]] = []
        self._wires: dict[int, Wire] = {}
        self._touched: dict[Wire, None] = {}
        self._left = 0
        """Bytes that this turn may still read."""
        self._flushes = False
        self._token: trio.lowlevel.TrioToken | None = None
        self._accepting = self._reading = True
        self.empty = trio.Event()

    @property
    def connections(self) -> int:
        return len(self._wires)

    async def run(self) -> None:
        """Serve, as long as the node lives."""
        self._token = trio.lowlevel.current_trio_token()
        for fd, listener in self._listeners.items():
            listener.setblocking(False)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # what it accepts has these options, too
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, BYTES_UNSENT)
            self._epoll.register(fd, READ)
        try:
            while True:
                await trio.lowlevel.wait_readable(self._epoll.fileno())
                self._turn()
        finally:
            for wire in list(self._wires.values()):
                self._drop(wire)
            self._epoll.close()

    def _turn(self) -> None:
        """Serve what is ready, as much as a turn may take; what is left comes first in the next one."""
        events = self._events or self._epoll.poll(0, EVENTS_A_TURN)
        self._flushes, self._left = True, BYTES_A_TURN
        for n, (fd, event) in enumerate(events, 1):
            wire = self._wires.get(fd)
            if wire is None:
                if fd in self._listeners:
                    self._accept(self._listeners[fd])
                continue
            if event & WRITE:
                wire.writable = True
                self._touched[wire] = None
            if event & (READ | LOST):
                self._guarded(wire, self._read if wire.interest & READ else self._lost)
            if self._left <= 0:
                self._events = events[n:]
                break
        else:
            self._events = []
        self.flush()

    def _guarded(self, wire: Wire, call: Callable[[Wire], None]) -> None:
        """Whatever goes wrong with one connection ends that one and no other."""
        try:
            call(wire)
        except Exception:
            structlog.get_logger().exception("edge.connection_failed", remote=wire.remote)
            try:
                wire.close(INTERNAL_ERROR, "internal error")
            except Exception:
                self._drop(wire)

    # -- bytes in ------------------------------------------------------------------------------------------------------
    def _accept(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTS_A_TURN):
            try:
                sock, address = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == ECONNABORTED:
                    continue
                structlog.get_logger().warning("edge.accept_failed", error=str(error))
                self._accept_later()
                return
            try:
                self._welcome(sock, str(address[0]))
            except OSError as error:
                structlog.get_logger().warning("edge.accept_failed", error=str(error))
                sock.close()

    def _welcome(self, sock: socket.socket, remote: str) -> None:
        sock.setblocking(False)
        try:
            self._admission.connect(remote)
        except Refused as refused:  # answered and forgotten: one too many must not cost what the others cost
            with sock, suppress(OSError):
                sock.send(plain_answer(refused))
                sock.shutdown(socket.SHUT_WR)
                sock.recv(BYTES_A_READ)  # a socket closed with its request unread is reset, and the answer lost
            return
        wire = Wire(self, sock, sys.intern(remote), self._limits)
        self._wires[wire.fd] = wire
        self._epoll.register(wire.fd, READ)

    def _accept_later(self) -> None:
        """No descriptors left, or no memory: the listeners rest until the next sweep."""
        self._accepting = False
        for fd in self._listeners:
            self._epoll.modify(fd, 0)

    def _read(self, wire: Wire) -> None:
        try:
            data = wire.sock.recv(max(BYTES_A_READ, wire.missing))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._left -= len(data)
        if not data:
            wire.end()
        elif wire.phase < LEAVING:
            wire.heard = self.clock
            wire.receive(data)

    def _lost(self, wire: Wire) -> None:
        """The connection broke while we were not reading: nobody is there any more."""
        wire.end()

    # -- bytes out -----------------------------------------------------------------------------------------------------
    def touch(self, wire: Wire) -> None:
        """Flush this wire, once, when this turn or batch is over."""
        if not self._flushes and self._token is not None:
            self._flushes = True
            self._token.run_sync_soon(self.flush)
        self._touched[wire] = None

    def flush(self) -> None:
        """Send what all touched connections have, and act on what has become of them."""
        self._flushes = True
        while self._touched:
            touched, self._touched = self._touched, {}
            for wire in touched:
                self._guarded(wire, self._settle)
        self._flushes = False

    def _settle(self, wire: Wire) -> None:
        if wire.sock.fileno() < 0:
            return
        if wire.backlog and self._reading:
            wire.receive(b"")
        if wire.out and wire.writable:
            self._send(wire)
        if wire.phase != wire.seen:
            self._changed(wire)
        interest = WRITE if wire.out else 0
        if wire.reading and self._reading:
            interest |= READ
        if interest != wire.interest and wire.phase != GONE:
            if interest & READ > wire.interest & READ:
                wire.heard = self.clock
            wire.interest = interest
            self._epoll.modify(wire.fd, interest)

    def _send(self, wire: Wire) -> None:
        data = wire.out[0] if len(wire.out) == 1 else b"".join(wire.out)
        try:
            sent = wire.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            wire.end()
            return
        if sent == len(data):
            wire.stalled = 0.0
            wire.sent(b"")
        else:
            wire.writable = False
            if sent or not wire.stalled:
                wire.stalled = self.clock
            wire.sent(data[sent:])

    def _changed(self, wire: Wire) -> None:
        """Another phase: a deadline of its own, and the socket's end when it is due."""
        if wire.seen < CLOSING:
            wire.since = self.clock
        wire.seen = min(wire.phase, CLOSING)
        if wire.phase == GONE or (wire.phase == PARTED and not wire.out):
            self._drop(wire)
        elif wire.phase == LEAVING and not wire.out:
            wire.seen = LEAVING
            try:
                wire.sock.shutdown(socket.SHUT_WR)  # closed with bytes unread it would be reset: RFC 9112, 9.6
            except OSError:
                self._drop(wire)

    def _drop(self, wire: Wire) -> None:
        if self._wires.get(wire.fd) is not wire:
            return
        del self._wires[wire.fd]
        self._admission.disconnect(wire.remote)
        try:
            wire.end()
        finally:
            self._epoll.unregister(wire.fd)
            wire.sock.close()
        if not self._wires:
            self.empty.set()

    # -- deadlines -----------------------------------------------------------------------------------------------------
    async def sweep(self) -> None:
        """Keep all deadlines with one look at every connection, once a second or oftener, as long as the node lives."""
        limits = self._limits
        tick = min(1.0, max(0.05, min(limits.handshake, limits.ping, limits.idle, limits.stalled) / 4))
        last = self._now()
        while True:
            await trio.sleep(tick)
            now = self._now()
            self.clock += min(now - last, 2 * tick)
            self.next_ping = self.clock + limits.ping
            last = now
            if not self._accepting:
                self._accepting = True
                for fd in self._listeners:
                    self._epoll.modify(fd, READ)
            self.flush()
            for n, wire in enumerate(list(self._wires.values()), 1):
                self._guarded(wire, self._check)
                if n % CHECKS_AT_ONCE == 0:
                    await trio.lowlevel.checkpoint()

    def _check(self, wire: Wire) -> None:
        clock, limits = self.clock, self._limits
        if wire.phase != TALKING:
            if clock - wire.since > limits.handshake:  # the opening or the closing one; whatever else is heard
                self._drop(wire)
        elif wire.stalled:
            full = wire.buffered > limits.outgoing_buffer
            if clock - wire.stalled > (min(FULL_SECONDS, limits.stalled) if full else limits.stalled):
                wire.close(TOO_SLOW, "too slow")
        elif wire.interest & READ and clock - wire.heard > limits.idle:
            wire.close(1001, "idle")
        elif clock >= wire.next_ping:
            wire.next_ping = self.next_ping
            wire.ping(b"alive")

    # -- the end of the node -------------------------------------------------------------------------------------------
    def stop_accepting(self) -> None:
        """Close the listening sockets."""
        for fd, listener in self._listeners.items():
            self._epoll.unregister(fd)
            listener.close()
        self._listeners = {}

    def hold(self) -> None:
        """Read no more, so that what was read can be answered; until `close_all`."""
        self._reading = False
        for wire in self._wires.values():
            self.touch(wire)

    def close_all(self, code: int, reason: str) -> None:
        """Start the closing handshake with everybody; `empty` is set when all have gone."""
        self.empty = trio.Event()
        self._reading = True
        for wire in list(self._wires.values()):
            self.touch(wire)
            self._guarded(wire, lambda wire: wire.close(code, reason))
        self.flush()
        if not self._wires:
            self.empty.set()
