"""The one task that serves all sockets: who is read and written now, who has had their time."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import structlog
import trio

from yanchat.config import LimitSettings, Settings
from yanchat.gateway.accepting import Accepting
from yanchat.gateway.admission import Admission
from yanchat.gateway.auth import open_authenticator
from yanchat.gateway.connection import GONE, INTERNAL_ERROR
from yanchat.gateway.handshake import Door, Handshake
from yanchat.gateway.layers import LayeredWire
from yanchat.gateway.tls import Contexts, open_tls
from yanchat.gateway.wire import Wire

EVENTS_A_TURN, BYTES_A_TURN = 256, 65_536
CHECKS_AT_ONCE: Final = 1000
READ, WRITE, LOST = select.EPOLLIN, select.EPOLLOUT, select.EPOLLHUP | select.EPOLLERR


class Edge:
    """All sockets of one node. `run` serves, `sweep` keeps the deadlines; the rest may be called at any time."""

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        door: Door,
        admission: Admission,
        limits: LimitSettings,
        now: Callable[[], float],
        wall: Callable[[], int],
        contexts: Contexts | None = None,
    ) -> None:
        """`now` in monotonic seconds, `wall` in milliseconds; with `contexts` TLS is spoken."""
        self._admission, self._limits, self._now, self._wall = admission, limits, now, wall
        self._contexts = contexts
        self._handshake = Handshake(admission, door)
        self._clock = 1.0
        """Seconds that the sweep has counted. Time in which the whole node stood still is no client's fault: it does
        not count. All wires share the one number, and reading costs no look at the time."""
        self._seconds = 0.0
        """Since 1970, at the last sweep."""
        self._next_ping = self._clock + limits.ping
        """When a wire that is asked now is asked again."""
        self._epoll = select.epoll()
        self._accepting = Accepting(listeners, self._epoll, admission, self._welcome, lambda: self._contexts is None)
        self._events: list[tuple[int, int]] = []
        self._wires: dict[int, Wire] = {}
        self._touched: dict[Wire, None] = {}
        self._touching = self._touch
        """One object for all wires."""
        self._flushes = False
        self._flusher: trio.lowlevel.Task | None = None
        """The task that flushes, while it waits for something to do."""
        self._held: set[Wire] = set()
        """Read no more, so that what was read can be answered."""
        self.empty = trio.Event()
        """Set when all have gone, after `stop_accepting`."""

    @property
    def connections(self) -> int:
        return len(self._wires)

    async def run(self) -> None:
        """Serve, as long as the node lives."""
        self._accepting.begin()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._flush_what_is_touched)
                while True:
                    await trio.lowlevel.wait_readable(self._epoll.fileno())
                    self._turn()
        finally:
            for wire in list(self._wires.values()):
                self._drop(wire)
            self._epoll.close()

    def apply(self, settings: Settings) -> None:
        """Take other limits, origins, proxies, keys and certificates. Raises ConfigError: then nothing has changed.

        Sessions stay, with the new limits; what a client had to show when it came is not asked again.
        """
        authenticate, contexts = open_authenticator(settings.auth, self._wall), open_tls(settings.tls)
        self._admission.apply(settings, authenticate)
        self._contexts, self._limits = contexts, settings.limits
        for wire in self._wires.values():
            wire.apply(settings.limits)

    def _turn(self) -> None:
        """Serve what is ready, as much as a turn may take; what is left comes first in the next one."""
        events = self._events or self._epoll.poll(0, EVENTS_A_TURN)
        self._events, self._flushes, left = [], True, BYTES_A_TURN
        for n, (fd, event) in enumerate(events, 1):
            wire = self._wires.get(fd)
            if wire is None:
                self._accepting.accept(fd)
                continue
            if event & WRITE:
                wire.writable = True
                self._touched[wire] = None
            if event & (READ | LOST):
                left -= self._guarded(wire, self._read)
                if left <= 0:
                    self._events = events[n:]
                    break
        self.flush()

    def _read(self, wire: Wire) -> int:
        if wire.polled & READ:
            return wire.read(self._clock)
        wire.end()  # the connection broke while we were not reading: nobody is there any more
        return 0

    def _guarded(self, wire: Wire, call: Callable[[Wire], int]) -> int:
        """Whatever goes wrong with one connection ends that one and no other."""
        try:
            return call(wire)
        except Exception:
            structlog.get_logger().exception("edge.connection_failed", remote=wire.remote)
            try:
                wire.close(INTERNAL_ERROR, "internal error")
            except Exception:
                self._drop(wire)
            return 0

    def _welcome(self, sock: socket.socket, remote: str) -> None:
        """Serve somebody whom admission counts by now."""
        try:
            wire = self._wire(sock, remote)
        except BaseException:
            self._admission.disconnect(remote)
            raise
        self._wires[wire.fd] = wire
        try:
            self._epoll.register(wire.fd, READ)
            wire.polled = READ
        except OSError:
            self._drop(wire)
            raise

    def _wire(self, sock: socket.socket, remote: str) -> Wire:
        parts = (sock, remote, self._limits, self._handshake, self._touching, self._clock, self._next_ping)
        announce = self._admission.move if self._admission.announced(remote) else None
        if announce is None and self._contexts is None:
            return Wire(*parts)
        return LayeredWire(*parts, announce, self._contexts)

    # -- who has something to send, or has changed ---------------------------------------------------------------------
    def _touch(self, wire: Wire) -> None:
        """Flush this wire, once, when this turn or batch is over."""
        self._touched[wire] = None
        if not self._flushes and self._flusher is not None:
            self._flushes = True
            trio.lowlevel.reschedule(self._flusher)
            self._flusher = None

    async def _flush_what_is_touched(self) -> None:
        """Woken as a task, not by `run_sync_soon`, which would cost a write to a pipe and two reads of it."""

        def abort(_: object) -> trio.lowlevel.Abort:
            self._flusher = None
            return trio.lowlevel.Abort.SUCCEEDED

        while True:
            self.flush()
            self._flusher = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(abort)

    def flush(self) -> None:
        """Send what all touched connections have, and act on what has become of them."""
        self._flushes = True
        while self._touched:
            touched, self._touched = self._touched, {}
            for wire in touched:
                self._guarded(wire, self._settle)
        self._flushes = False

    def _settle(self, wire: Wire) -> int:
        if wire.seen == GONE:
            return 0
        if wire.backlog and wire not in self._held:
            wire.receive(b"")
        if wire.out and wire.writable:
            wire.write(self._clock)
        if wire.phase != wire.seen and wire.advance(self._clock):
            self._drop(wire)
            return 0
        polled = WRITE if wire.out else 0
        if wire.reading and wire not in self._held:
            polled |= READ
        if polled != wire.polled:
            if polled & READ > wire.polled & READ:
                wire.heard = self._clock
            wire.polled = polled
            self._epoll.modify(wire.fd, polled)
        return 0

    def _drop(self, wire: Wire) -> None:
        if self._wires.get(wire.fd) is not wire:
            return
        del self._wires[wire.fd]
        wire.seen = GONE
        self._held.discard(wire)
        self._admission.disconnect(wire.remote)
        try:
            wire.end()
        except Exception:
            structlog.get_logger().exception("edge.connection_failed", remote=wire.remote)
        wire.sock.close()  # which takes it out of the epoll as well
        if not self._wires:
            self.empty.set()

    # -- deadlines -----------------------------------------------------------------------------------------------------
    async def sweep(self) -> None:
        """Keep all deadlines with one look at every connection, once a second or oftener, as long as the node lives."""
        last = self._now()
        while True:
            limits = self._limits
            tick = min(1.0, max(0.05, min(limits.handshake, limits.ping, limits.idle, limits.stalled) / 4))
            await trio.sleep(tick)
            now = self._now()
            self._clock += min(now - last, 2 * tick)
            self._next_ping = self._clock + limits.ping
            last = now
            self._accepting.go_on()
            self._seconds = self._wall() / 1000
            self._handshake.refusals.sum_up()
            self.flush()
            for n, wire in enumerate(list(self._wires.values()), 1):
                self._guarded(wire, self._check)
                if n % CHECKS_AT_ONCE == 0:
                    await trio.lowlevel.checkpoint()

    def _check(self, wire: Wire) -> int:
        if wire.check(self._clock, self._next_ping, self._seconds):
            self._drop(wire)
        return 0

    # -- the end of the node (draining.py) -----------------------------------------------------------------------------
    def stop_accepting(self, *, others_listen: bool = False) -> None:
        """Close the listening sockets, and answer first who has connected already.

        `others_listen`: somebody else holds these sockets as well, and whoever is not accepted waits for him there.
        """
        self.empty = trio.Event()
        self._accepting.stop(others_listen)
        if not self._wires:
            self.empty.set()

    def wires(self) -> list[Wire]:
        """All who are connected now."""
        return list(self._wires.values())

    def hold(self, wires: Iterable[Wire]) -> None:
        """Read these no more, so that what was read can be answered; until `close`."""
        for wire in wires:
            if wire.seen != GONE:
                self._held.add(wire)
                self._touch(wire)

    def close(self, wires: Iterable[Wire], code: int, reason: str) -> None:
        """Start the closing handshake with these; who still shakes hands is refused. Who has gone stays so."""
        for wire in wires:
            self._held.discard(wire)
            if wire.seen != GONE:
                self._touch(wire)
                wire.close(code, reason)
        self.flush()
