"""The composition root: builds a node out of its settings, runs it until it is told to stop, takes it apart in order.

What lives here is only the order of things; each part is named once, and each gets what it needs by name.
"""

from __future__ import annotations

import gc
import os
import random
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

import structlog
import trio

from yanchat import __version__, build, failpoint
from yanchat.admin.control import Control
from yanchat.admin.server import serve_admin
from yanchat.admin.tcp import Tcp, open_tcp
from yanchat.allocator import give_back_memory
from yanchat.backends import open_backends
from yanchat.backends.sqlite.store import Store, open_store
from yanchat.config import LogSettings, Settings
from yanchat.directory import Held, locked, node_directory
from yanchat.errors import YanchatError
from yanchat.gateway.admission import Admission, allow_descriptors
from yanchat.gateway.auth import open_authenticator
from yanchat.gateway.draining import send_away
from yanchat.gateway.edge import Edge
from yanchat.gateway.listening import BACKLOG, Listening, listening
from yanchat.gateway.tls import open_tls
from yanchat.model import NodeRecord
from yanchat.node.assembly import Assembly, assemble
from yanchat.node.lease import LEASE
from yanchat.ports import Clock
from yanchat.reloading import Reloading
from yanchat.signals import heard_signals
from yanchat.starting import warn_of_room, warn_of_silence
from yanchat.systemd import ServiceManager, keep_watch
from yanchat.telemetry import Counters
from yanchat.tracing import open_spans
from yanchat.trail import trail_of

GARBAGE: Final = (50_000, 20, 100)
"""Python's default looks for cycles after every 700 new objects; a message is a dozen, and none is in a cycle."""
CLOSED_WITHIN: Final = 3.0
FLUSHED_WITHIN: Final = 2.0
STOPPED_WITHIN: Final = 45.0
"""What a stop may take beyond `node.drain`: the bounds here and in draining.py, and closing the drivers."""


class Caller(NamedTuple):
    """Who runs a node, as the command line does."""

    ready: Callable[[str], None]
    """Called once with the URL when clients can come."""
    read_settings: Callable[[], Settings]
    """Reads the settings again, for a reload; may raise ConfigError."""
    configure_logs: Callable[[LogSettings], None]


async def serve(settings: Settings, state: Path, caller: Caller) -> None:
    """Run one node until SIGTERM or SIGINT; a second signal ends it at once, and nothing accepted is lost by that.

    SIGHUP takes up changed settings. Raises ConfigError, AddressTaken (another process holds the address or the
    directory), StoreUnavailable; nothing is left running then.
    """
    failpoint.arm_from(os.environ)
    manager = ServiceManager(os.environ)
    rng = random.Random()  # noqa: S311 - it names and spreads; nothing is secret
    offset = trio.current_time() - time.perf_counter()  # trio's own clock, without asking trio each time
    clock = Clock(lambda: time.time_ns() // 1_000_000, lambda: time.perf_counter() + offset, rng)
    with listening(settings, manager.sockets()) as places, open_tcp(settings.admin) as tcp:
        node = places.node
        directory = node_directory(state, node)
        taken = f"Another process serves as {node} out of {directory}, or moves its messages to another node; stop it,"
        with locked(directory, f"{taken} or choose another --listen.") as held:
            manager.tell(STATUS="Starting: opens the message table, waits for registry and bus")
            counters = Counters()
            async with (
                heard_signals() as orders,
                open_store(
                    directory / "node.db", settings.limits.disk_reserve, counters.commit_seconds.observe
                ) as store,
                open_spans(settings.tracing.otel, node, __version__) as spans,
                open_backends(settings, state, node, LEASE, counters) as (registry, bus),
            ):
                orders.opened = True
                warn_of_room(store, settings.limits.disk_reserve)
                counters.trail = trail_of(settings.log.level, spans)
                record = NodeRecord(
                    node,
                    f"{rng.getrandbits(64):016x}",
                    store.store_id,
                    places.url,
                    clock.wall(),
                    __version__,
                    admin="" if tcp is None else tcp.address,
                )
                work = await assemble(record, settings, store, store, registry, bus, clock, counters)
                authenticate, contexts = open_authenticator(settings.auth, clock.wall), open_tls(settings.tls)
                admission = Admission(
                    settings.limits, settings.origins.allow, authenticate, allow_descriptors(), settings.proxy
                )
                edge = Edge(
                    places.sockets, work.reception, admission, settings.limits, clock.monotonic, clock.wall, contexts
                )
                reloading = Reloading(
                    settings,
                    caller.read_settings,
                    caller.configure_logs,
                    manager,
                    places,
                    edge,
                    work,
                    store,
                    tcp,
                    spans,
                )
                orders.reload = reloading.reload
                control = Control(
                    drain=orders.stopping.set,
                    reload=reloading.reload,
                    lanes=lambda: {**registry.lanes(), **bus.lanes(), **store.lanes()},
                    connections=lambda: edge.connections,
                    limits=lambda: reloading.settings.limits,
                )
                running = _Running(places, edge, work, store, tcp, control, manager, reloading, orders.stopping, held)
                await _run(running, directory / "admin.sock", caller.ready)


class Status:
    """How it goes, in a line for the service manager."""

    def __init__(self, work: Assembly, edge: Edge) -> None:
        self._work, self._edge = work, edge
        self._at, self._accepted = work.clock.monotonic(), work.counters.accepted

    def __call__(self) -> str:
        work, connections = self._work, self._edge.connections
        if work.reception.draining:
            return f"Draining: {connections} connections left"
        now, accepted = work.clock.monotonic(), work.counters.accepted
        rate = (accepted - self._accepted) / max(now - self._at, 0.001)
        self._at, self._accepted = now, accepted
        line = f"{connections} connections, {len(work.hub.all())} sessions, {rate:.0f} messages/s, {work.intake.open}"
        return f"{line} pending{work.lease.trouble and f'; registry: {work.lease.trouble}'}"


class _Running(NamedTuple):
    """The parts of one node that its beginning and its end have to do with."""

    places: Listening
    edge: Edge
    work: Assembly
    store: Store
    tcp: Tcp | None
    control: Control
    manager: ServiceManager
    reloading: Reloading
    stopping: trio.Event
    held: Held


async def _run(it: _Running, admin_socket: Path, ready: Callable[[str], None]) -> None:
    status, first = Status(it.work, it.edge), None
    try:
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as starting:
                nursery.start_soon(_cancel_when, it.stopping, starting)
                async with trio.open_nursery() as waiting:
                    waiting.start_soon(warn_of_silence, it.work.bus, it.reloading.settings)
                    await nursery.start(it.work.run)
                    waiting.cancel_scope.cancel()
                it.held.keep = True
                for listener in it.places.sockets:
                    listener.listen(BACKLOG)
                nursery.start_soon(it.edge.run)
                nursery.start_soon(it.edge.sweep)
                await nursery.start(serve_admin, admin_socket, it.tcp, it.work, it.store, it.store, it.control)
                gc.collect()
                gc.freeze()
                gc.set_threshold(*GARBAGE)
                structlog.get_logger().info(
                    "node.ready", node=it.work.node, url=it.places.url, version=__version__, build=build()
                )
                it.manager.tell(READY=1)
                nursery.start_soon(keep_watch, it.manager, it.control.lanes, status)
                nursery.start_soon(give_back_memory)
                ready(it.places.url)
            await it.stopping.wait()
            if starting.cancelled_caught:  # it was told to stop while it waited for the registry or the bus
                it.manager.tell(STOPPING=1)
            else:
                await _drain(it)
            await _leave(it.work)
            nursery.cancel_scope.cancel()
    except* YanchatError as group:
        first = _first(group)  # the first reason ends the node; the others follow from it
    if first is not None:
        raise first from None


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _cancel_when(stopping: trio.Event, scope: trio.CancelScope) -> None:
    await stopping.wait()
    scope.cancel()


async def _drain(it: _Running) -> None:
    """Send everybody away, answer what was read, and let the disk and the bus have it."""
    work, edge, within = it.work, it.edge, it.reloading.settings.node.drain
    structlog.get_logger().info("node.draining", connections=edge.connections)
    it.manager.tell(STOPPING=1, STATUS="Draining", EXTEND_TIMEOUT_USEC=int((within + STOPPED_WITHIN) * 1e6))
    work.reception.draining = True
    edge.stop_accepting(others_listen=it.places.handed_over)
    with trio.move_on_after(FLUSHED_WITHIN), suppress(YanchatError):
        await work.lease.drain()
    await send_away(edge, within, work.clock.rng)
    with trio.move_on_after(CLOSED_WITHIN):
        await edge.empty.wait()
    with trio.move_on_after(FLUSHED_WITHIN):
        await work.idle()


async def _leave(work: Assembly) -> None:
    if work.lease.joined.is_set():
        with trio.move_on_after(FLUSHED_WITHIN), suppress(YanchatError):
            await work.lease.leave()
    structlog.get_logger().info("node.stopped")
