"""The one task that moves bytes for all sockets: accept, read, write, deadlines. Knows sockets and bytes, no frames.

TLS will stand between `_read` and `Connection.receive`, and between `Connection.out` and `_send`: nowhere else do
bytes cross.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Sequence
from functools import partial

import structlog
import trio

from yanchat.config import LimitSettings
from yanchat.gateway.admission import Admission
from yanchat.gateway.connection import TOO_SLOW, Connection, Door

EVENTS_A_TURN, BYTES_A_TURN, ACCEPTS_A_TURN = 256, 65536, 64
CLOSING_SECONDS = 5.0
ACCEPT_PAUSE = 0.2
READ, WRITE = select.EPOLLIN, select.EPOLLOUT


class Wire:
    """A connection's socket and clocks; seconds of the monotonic clock, 0 for not running."""

    __slots__ = ("connection", "heard", "interest", "since", "sock", "stalled")

    def __init__(self, sock: socket.socket, connection: Connection, now: float) -> None:
        self.sock, self.connection = sock, connection
        self.interest = READ
        self.since = self.heard = now
        """Since when it shakes hands or closes; when it was last heard of."""
        self.stalled = 0.0


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
        self._door, self._admission, self._limits, self._now = door, admission, limits, now
        self._epoll = select.epoll()
        self._wires: dict[int, Wire] = {}
        self._fds: dict[Connection, int] = {}
        self._touched: dict[Connection, None] = {}
        self._in_turn = False
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
        self._in_turn = True
        try:
            for fd, event in self._epoll.poll(0, EVENTS_A_TURN):
                if fd in self._listeners:
                    self._accept(self._listeners[fd])
                    continue
                wire = self._wires.get(fd)
                if wire is None:
                    continue
                if event & (READ | select.EPOLLHUP | select.EPOLLERR):
                    self._guarded(wire, self._read)
                if event & WRITE:
                    self._touched[wire.connection] = None
        finally:
            self._in_turn = False
        self.flush()

    def _guarded(self, wire: Wire, call: Callable[[Wire], None]) -> None:
        """Whatever goes wrong with one connection ends that one and no other."""
        try:
            call(wire)
        except Exception:
            structlog.get_logger().exception("edge.connection_failed")
            try:
                wire.connection.close(1011, "internal error")
            except Exception:
                self._drop(wire)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTS_A_TURN):
            try:
                sock, address = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:  # no descriptors left, or the client has gone already
                structlog.get_logger().warning("edge.accept_failed", error=str(error))
                self._pause_accepting()
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            remote = str(address[0])
            connection = Connection(remote, self._limits, self._admission, self._door, self.touch)
            fd = sock.fileno()
            self._wires[fd] = Wire(sock, connection, self._now())
            self._fds[connection] = fd
            self._epoll.register(fd, READ)
            refused = self._admission.connect(remote)
            if refused is not None:
                connection.refuse(refused)

    def _pause_accepting(self) -> None:
        self._accepting = False
        for fd in self._listeners:
            self._epoll.modify(fd, 0)

    def _read(self, wire: Wire) -> None:
        connection = wire.connection
        if connection.paused or not self._reading:
            return
        try:
            data = wire.sock.recv(BYTES_A_TURN)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            wire.heard = self._now()
            connection.receive(data)
        else:
            connection.receive_eof()

    # -- bytes out -----------------------------------------------------------------------------------------------------
    def touch(self, connection: Connection) -> None:
        """This connection has something to send, or has changed: flush it, once, when this turn or batch is over."""
        if not self._touched and not self._in_turn and self._token is not None:
            self._token.run_sync_soon(self.flush, idempotent=True)
        self._touched[connection] = None

    def flush(self) -> None:
        """Send what all touched connections have."""
        while self._touched:
            touched, self._touched = self._touched, {}
            self._in_turn = True
            for connection in touched:
                wire = self._wires.get(self._fds.get(connection, -1))
                if wire is not None:
                    self._guarded(wire, self._send)
            self._in_turn = False

    def _send(self, wire: Wire) -> None:
        connection = wire.connection
        if connection.out:
            data = connection.out[0] if len(connection.out) == 1 else b"".join(connection.out)
            connection.out = []
            try:
                sent = wire.sock.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                connection.end()
                self._drop(wire)
                return
            unsent = data[sent:]
            if not unsent:
                wire.stalled = 0.0
            elif sent or not wire.stalled:
                wire.stalled = self._now()
            connection.sent(unsent)
            if connection.buffered > self._limits.outgoing_buffer:
                self._too_slow(wire)
        if connection.ending and not connection.out:
            self._drop(wire)
            return
        interest = (READ if self._reading and not connection.paused else 0) | (WRITE if connection.out else 0)
        if interest != wire.interest:
            wire.interest = interest
            self._epoll.modify(wire.sock.fileno(), interest)

    def _too_slow(self, wire: Wire) -> None:
        """It does not read: say so, if it ever looks, and let go."""
        if not wire.connection.closing:
            wire.connection.close(TOO_SLOW, "too slow")
            wire.since = self._now()

    def _drop(self, wire: Wire) -> None:
        fd = self._fds.pop(wire.connection, None)
        if fd is None:
            return
        del self._wires[fd]
        self._admission.disconnect(wire.connection.remote)
        self._epoll.unregister(fd)
        wire.connection.end()
        wire.sock.close()
        if not self._wires:
            self.empty.set()

    # -- deadlines -----------------------------------------------------------------------------------------------------
    async def sweep(self) -> None:
        """Keep all deadlines with one look at every connection a second, as long as the node lives."""
        while True:
            await trio.sleep(1.0)
            now = self._now()
            if not self._accepting and self._listeners:
                self._accepting = True
                for fd in self._listeners:
                    self._epoll.modify(fd, READ)
            for wire in list(self._wires.values()):
                self._guarded(wire, partial(self._check, now))
            self.flush()

    def _check(self, now: float, wire: Wire) -> None:
        connection, limits = wire.connection, self._limits
        if connection.shaking_hands:
            if now - wire.since > limits.handshake:
                self._drop(wire)
        elif connection.closing:
            wire.since = now if wire.since <= wire.heard and wire.since < now - limits.idle else wire.since
            if now - max(wire.since, wire.heard) > CLOSING_SECONDS:
                self._drop(wire)
        elif wire.stalled and now - wire.stalled > limits.stalled:
            self._too_slow(wire)
        elif now - wire.heard > limits.idle and not connection.paused:
            connection.close(1001, "idle")
        elif now - wire.heard > limits.ping and (now - wire.heard) % limits.ping < 1.0:
            connection.ping(b"alive")

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
            self.touch(wire.connection)

    def close_all(self, code: int, reason: str) -> None:
        """Start the closing handshake with everybody; `empty` is set when all have gone."""
        self.empty = trio.Event()
        self._reading = True
        for wire in list(self._wires.values()):
            self._guarded(wire, lambda wire: wire.connection.close(code, reason))
        self.flush()
        if not self._wires:
            self.empty.set()
