"""The composition root: builds a node out of its settings, runs it until it is told to stop, takes it apart in order.

What lives here is only the order of things; each part is named once, and each gets what it needs by name.
"""

from __future__ import annotations

import datetime
import fcntl
import gc
import os
import random
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple
from zoneinfo import ZoneInfo

import structlog
import trio

from yanchat import __version__, failpoint
from yanchat.admin.server import serve_admin
from yanchat.backends.sqlite.bus import open_bus
from yanchat.backends.sqlite.cluster import open_cluster
from yanchat.backends.sqlite.store import Store, open_store
from yanchat.config import Settings
from yanchat.errors import AddressTaken, ConfigError, YanchatError
from yanchat.gateway.admission import Admission
from yanchat.gateway.auth import trusting
from yanchat.gateway.edge import Edge
from yanchat.model import Node, NodeRecord
from yanchat.names import slug
from yanchat.node.backlog import Backlog
from yanchat.node.delivery import Delivery
from yanchat.node.hub import Hub
from yanchat.node.intake import Intake
from yanchat.node.lease import LEASE, Lease
from yanchat.node.looks import Mailboxes
from yanchat.node.reception import Reception
from yanchat.node.settlement import Settlement
from yanchat.node.sweep import Sweep
from yanchat.ports import Bus, Clock, Registry
from yanchat.protocol.frames import Dates
from yanchat.protocol.ids import Orders, SessionIds
from yanchat.protocol.retry import RetryPolicy
from yanchat.telemetry import Counters

COMMITS_WITHIN: Final = 5.0
CLOSED_WITHIN: Final = 3.0
FLUSHED_WITHIN: Final = 2.0


async def serve(settings: Settings, state: Path, ready: Callable[[str], None]) -> None:
    """Run one node until SIGTERM or SIGINT; a second signal ends it at once, and nothing accepted is lost by that.

    `ready` is called once with the URL when clients can come. Raises ConfigError, AddressTaken (another process holds
    the address or the directory), StoreUnavailable; nothing is left running then.
    """
    failpoint.arm_from(os.environ)
    with _listener(settings) as listener:
        node = _name(settings, listener)
        directory = state / "nodes" / slug(node)
        with _locked(directory, node):
            async with (
                open_store(directory / "node.db", settings.limits.disk_reserve) as store,
                open_cluster(state, LEASE) as (cluster, registry),
            ):
                counters = Counters()
                async with open_bus(cluster, state, node, counters) as bus, _stop_on_signals() as stopping:
                    parts = await _build(settings, node, listener, store, registry, bus, counters)
                    bus.incarnation = parts.lease.incarnation
                    await parts.run(directory / "admin.sock", ready, stopping)


class _Parts(NamedTuple):
    """One node, built: what has to be run, and taken apart."""

    node: Node
    url: str
    listener: socket.socket
    store: Store
    bus: Bus
    mailboxes: Mailboxes
    intake: Intake
    delivery: Delivery
    settlement: Settlement
    lease: Lease
    reception: Reception
    sweep: Sweep
    edge: Edge

    async def run(self, admin_socket: Path, ready: Callable[[str], None], stopping: trio.Event) -> None:
        try:
            async with (
                self.bus.subscribe("message") as messages,
                self.bus.subscribe("ack") as acks,
                trio.open_nursery() as nursery,
            ):
                await self.mailboxes.start()
                for part in (
                    partial(self.delivery.serve, messages),
                    partial(self.settlement.serve, acks),
                    self.delivery.run,
                    self.delivery.keep_publishing,
                    self.settlement.run,
                    self.intake.run,
                    self.mailboxes.run,
                    self.lease.run,
                    self.reception.run,
                    self.sweep.run,
                    self.sweep.housekeeping,
                    partial(serve_admin, admin_socket, self.node, self.store, self.mailboxes),
                ):
                    nursery.start_soon(part)
                await self.lease.joined.wait()
                self.listener.listen(4096)
                nursery.start_soon(self.edge.run)
                nursery.start_soon(self.edge.sweep)
                gc.collect()
                gc.freeze()
                structlog.get_logger().info("node.ready", node=self.node, url=self.url, version=__version__)
                ready(self.url)
                await stopping.wait()
                await self._drain()
                nursery.cancel_scope.cancel()
        except* YanchatError as group:
            raise group.exceptions[0] from None  # the first reason ends the node; the others follow from it

    async def _drain(self) -> None:
        """Stop accepting, finish commits, close the clients, leave."""
        structlog.get_logger().info("node.draining", connections=self.edge.connections)
        self.reception.draining = True
        self.edge.stop_accepting()
        with trio.move_on_after(FLUSHED_WITHIN), suppress(YanchatError):
            await self.lease.drain()
        self.edge.hold()
        with trio.move_on_after(COMMITS_WITHIN):
            await self._idle()
        self.edge.close_all(1012, "this node restarts; connect again")
        with trio.move_on_after(CLOSED_WITHIN):
            await self.edge.empty.wait()
        with trio.move_on_after(FLUSHED_WITHIN):
            await self._idle()
            await self.bus.flush()
        with trio.move_on_after(FLUSHED_WITHIN), suppress(YanchatError):
            await self.lease.leave()
        structlog.get_logger().info("node.stopped")

    async def _idle(self) -> None:
        while not (self.intake.idle and self.delivery.idle and self.settlement.idle):  # noqa: ASYNC110 - for once, at the end
            await trio.sleep(0.005)


async def _build(
    settings: Settings,
    node: Node,
    listener: socket.socket,
    store: Store,
    registry: Registry,
    bus: Bus,
    counters: Counters,
) -> _Parts:
    limits, redelivery = settings.limits, settings.redelivery
    rng = random.Random()  # noqa: S311 - it names and spreads; nothing is secret
    clock = Clock(lambda: time.time_ns() // 1_000_000, trio.current_time, rng)
    zone = datetime.UTC if settings.node.time_zone == "UTC" else ZoneInfo(settings.node.time_zone)
    dates = Dates(zone)
    url = f"ws://{node}/ws"
    record = NodeRecord(node, f"{rng.getrandbits(64):016x}", store.store_id, url, clock.wall(), __version__)
    orders = Orders(await store.last_order())
    second = max(clock.wall() // 1000, await store.mark("session-second", 0)) + 1
    await store.mark("session-second", second)

    hub, backlog = Hub(), Backlog(limits)
    for waiting in await store.waiting():
        backlog.add(waiting.sender, waiting.recipient, waiting.rows)
    retry = RetryPolicy(redelivery.first, redelivery.factor, redelivery.longest, redelivery.lifetime)
    mailboxes = Mailboxes(
        node, store, registry, bus, hub, backlog, limits, retry, clock, counters, first_order=orders.last + 1
    )
    intake = Intake(store, mailboxes, backlog, orders, dates, clock, limits.inflight, counters)
    delivery = Delivery(node, hub, store, store, mailboxes, bus, dates, clock, counters)
    settlement = Settlement(node, store, mailboxes, delivery, bus, clock, counters)
    lease = Lease(registry, record, mailboxes, clock, counters)
    reception = Reception(
        node,
        hub,
        registry,
        bus,
        lease,
        intake,
        delivery,
        settlement,
        mailboxes,
        SessionIds(node, second),
        dates,
        clock,
        limits,
        single=settings.node.sessions == "single",
    )
    sweep = Sweep(hub, store, mailboxes, settlement, redelivery, clock)
    admission = Admission(limits, settings.origins.allow, trusting)
    edge = Edge([listener], reception, admission, limits, clock.monotonic)
    mailboxes.deliver = delivery.take
    lease.claim_all = reception.claim_all
    return _Parts(
        node, url, listener, store, bus, mailboxes, intake, delivery, settlement, lease, reception, sweep, edge
    )


@asynccontextmanager
async def _stop_on_signals() -> AsyncIterator[trio.Event]:
    """The event is set by the first signal; the second one cancels the body."""
    stopping = trio.Event()

    async def watch(scope: trio.CancelScope) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for _ in signals:
                if stopping.is_set():
                    structlog.get_logger().warning("node.stopped_at_once")
                    scope.cancel()
                stopping.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch, nursery.cancel_scope)
        yield stopping
        nursery.cancel_scope.cancel()


@contextmanager
def _listener(settings: Settings) -> Iterator[socket.socket]:
    """The bound socket; it listens when the node is ready."""
    host, port = _split(settings.node.listen, "node.listen")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigError(
            f"node.listen: {host!r} cannot be resolved: {error}; give an address of this machine."
        ) from None
    family, kind, protocol, _, address = found[0]
    if not settings.node.insecure and settings.auth.mode == "none" and not _loopback(str(address[0])):
        raise ConfigError(
            f"node.listen: with auth mode none anybody who reaches {settings.node.listen} may be anybody;"
            " listen on 127.0.0.1, or give --insecure if that is what you want."
        )
    with socket.socket(family, kind, protocol) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            raise AddressTaken(
                f"{settings.node.listen} cannot be listened on: {error.strerror}; choose another --listen."
            ) from None
        yield listener


def _loopback(address: str) -> bool:
    return address.startswith("127.") or address == "::1"


def _split(address: str, key: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"{key}: {address!r} is not HOST:PORT, as 127.0.0.1:8084 is.")
    return host.strip("[]"), int(port)


def _name(settings: Settings, listener: socket.socket) -> Node:
    """The address under which the other nodes know this one."""
    if settings.node.advertise:
        _split(settings.node.advertise, "node.advertise")
        return Node(settings.node.advertise)
    host, _ = _split(settings.node.listen, "node.listen")
    if host in {"0.0.0.0", "::", ""}:  # noqa: S104 - that is what is asked about
        raise ConfigError("node.advertise: say under which HOST:PORT others find this node; it listens everywhere.")
    return Node(f"[{host}]:{listener.getsockname()[1]}" if ":" in host else f"{host}:{listener.getsockname()[1]}")


@contextmanager
def _locked(directory: Path, node: Node) -> Iterator[None]:
    """The node's directory, held by this process alone; the kernel lets go of it when the process ends, however."""
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"{directory} cannot be used: {error.strerror}; choose another --state-dir.") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AddressTaken(
                f"Another process serves as {node} out of {directory}; stop it, or choose another --listen."
            ) from None
        yield
    finally:
        os.close(lock)
