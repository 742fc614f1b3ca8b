"""The composition root: builds a node out of its settings, runs it until it is told to stop, takes it apart in order.

What lives here is only the order of things; each part is named once, and each gets what it needs by name.
"""

from __future__ import annotations

import gc
import os
import random
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Final

import structlog
import trio

from yanchat import __version__, failpoint
from yanchat.admin.control import Control
from yanchat.admin.server import serve_admin
from yanchat.admin.tcp import Tcp, open_tcp
from yanchat.backends import open_backends
from yanchat.backends.sqlite.store import Store, open_store
from yanchat.config import Settings
from yanchat.directory import locked, node_directory
from yanchat.errors import AddressTaken, ConfigError, YanchatError
from yanchat.gateway.admission import Admission, allow_descriptors
from yanchat.gateway.auth import open_authenticator
from yanchat.gateway.edge import Edge
from yanchat.gateway.tls import open_tls
from yanchat.model import Node, NodeRecord
from yanchat.node.assembly import Assembly, assemble
from yanchat.node.lease import LEASE
from yanchat.ports import Clock
from yanchat.telemetry import Counters

GARBAGE: Final = (50_000, 20, 100)
"""Python's default looks for cycles after every 700 new objects; a message is a dozen, and none is in a cycle."""
COMMITS_WITHIN: Final = 5.0
CLOSED_WITHIN: Final = 3.0
FLUSHED_WITHIN: Final = 2.0


async def serve(settings: Settings, state: Path, ready: Callable[[str], None]) -> None:
    """Run one node until SIGTERM or SIGINT; a second signal ends it at once, and nothing accepted is lost by that.

    `ready` is called once with the URL when clients can come. Raises ConfigError, AddressTaken (another process holds
    the address or the directory), StoreUnavailable; nothing is left running then.
    """
    failpoint.arm_from(os.environ)
    rng = random.Random()  # noqa: S311 - it names and spreads; nothing is secret
    offset = trio.current_time() - time.perf_counter()  # trio's own clock, without asking trio each time
    clock = Clock(lambda: time.time_ns() // 1_000_000, lambda: time.perf_counter() + offset, rng)
    with _listener(settings) as listener, open_tcp(settings.admin) as tcp:
        node = _name(settings, listener)
        directory = node_directory(state, node)
        taken = f"Another process serves as {node} out of {directory}, or moves its messages to another node; stop it,"
        with locked(directory, f"{taken} or choose another --listen.") as held:
            counters = Counters()
            async with (
                _stop_on_signals() as (stopping, opening),
                open_store(
                    directory / "node.db", settings.limits.disk_reserve, counters.commit_seconds.observe
                ) as store,
                open_backends(settings, state, node, LEASE, counters) as (registry, bus),
            ):
                opening.done = held.keep = True
                incarnation = f"{rng.getrandbits(64):016x}"
                record = NodeRecord(
                    node,
                    incarnation,
                    store.store_id,
                    f"ws://{node}/ws",
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
                    [listener], work.reception, admission, settings.limits, clock.monotonic, clock.wall, contexts
                )
                control = Control(
                    drain=stopping.set,
                    reload=lambda: None,
                    lanes=lambda: {**registry.lanes(), **bus.lanes(), **store.lanes()},
                    connections=lambda: edge.connections,
                    limits=lambda: settings.limits,
                )
                await _run(
                    work, edge, listener, record.url, directory / "admin.sock", tcp, store, control, ready, stopping
                )


async def _run(
    work: Assembly,
    edge: Edge,
    listener: socket.socket,
    url: str,
    admin_socket: Path,
    tcp: Tcp | None,
    store: Store,
    control: Control,
    ready: Callable[[str], None],
    stopping: trio.Event,
) -> None:
    try:
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as starting:
                nursery.start_soon(_cancel_when, stopping, starting)
                await nursery.start(work.run)
                listener.listen(4096)
                nursery.start_soon(edge.run)
                nursery.start_soon(edge.sweep)
                await nursery.start(serve_admin, admin_socket, tcp, work, store, store, control)
                gc.collect()
                gc.freeze()
                gc.set_threshold(*GARBAGE)
                structlog.get_logger().info("node.ready", node=work.node, url=url, version=__version__)
                ready(url)
            await stopping.wait()
            if not starting.cancelled_caught:  # else it was told to stop while it waited for the registry or the bus
                await _drain(work, edge)
            await _leave(work)
            nursery.cancel_scope.cancel()
    except* YanchatError as group:
        raise _first(group) from None  # the first reason ends the node; the others follow from it


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _cancel_when(stopping: trio.Event, scope: trio.CancelScope) -> None:
    await stopping.wait()
    scope.cancel()


async def _drain(work: Assembly, edge: Edge) -> None:
    """Stop accepting, finish commits, close the clients."""
    structlog.get_logger().info("node.draining", connections=edge.connections)
    work.reception.draining = True
    edge.stop_accepting()
    with trio.move_on_after(FLUSHED_WITHIN), suppress(YanchatError):
        await work.lease.drain()
    edge.hold()
    with trio.move_on_after(COMMITS_WITHIN):
        await work.idle()
    edge.close_all(1012, "this node restarts; connect again")
    with trio.move_on_after(CLOSED_WITHIN):
        await edge.empty.wait()
    with trio.move_on_after(FLUSHED_WITHIN):
        await work.idle()


async def _leave(work: Assembly) -> None:
    if work.lease.joined.is_set():
        with trio.move_on_after(FLUSHED_WITHIN), suppress(YanchatError):
            await work.lease.leave()
    structlog.get_logger().info("node.stopped")


class _Opening:
    """Whether the store, the registry and the bus are open: as long as they are not, there is nothing to take apart."""

    done = False


@asynccontextmanager
async def _stop_on_signals() -> AsyncIterator[tuple[trio.Event, _Opening]]:
    """The event is set by the first signal; the second one cancels the body, and so does any during the opening."""
    stopping, opening = trio.Event(), _Opening()

    async def watch(scope: trio.CancelScope, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            task_status.started()
            async for _ in signals:
                if stopping.is_set() or not opening.done:
                    structlog.get_logger().warning("node.stopped_at_once")
                    scope.cancel()
                stopping.set()

    async with trio.open_nursery() as nursery:
        await nursery.start(watch, nursery.cancel_scope)
        yield stopping, opening
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
