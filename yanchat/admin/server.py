"""Serving the admin application: on a Unix socket that only the node's own user may open, and on TCP by token."""

from __future__ import annotations

import importlib
import os
import socket
from pathlib import Path

import trio

from yanchat.admin.control import Control
from yanchat.admin.tcp import BACKLOG, Tcp
from yanchat.errors import ConfigError
from yanchat.node.assembly import Assembly
from yanchat.ports import Inbox, Outbox

LONGEST_SOCKET_PATH = 107


async def serve_admin(
    path: Path,
    tcp: Tcp | None,
    work: Assembly,
    outbox: Outbox,
    inbox: Inbox,
    control: Control,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; started when questions are taken. The path is over 107 bytes: ConfigError."""
    if len(os.fsencode(path)) > LONGEST_SOCKET_PATH:
        raise ConfigError(f"{path} is too long for a Unix socket; choose a shorter state directory.")
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as listener:
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        listener.listen(BACKLOG)
        task_status.started()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_serve, listener, None, work, outbox, inbox, control)
                if tcp is not None:
                    nursery.start_soon(_serve, tcp.listener, tcp, work, outbox, inbox, control)
        finally:
            path.unlink(missing_ok=True)


def _load() -> None:
    """Load the web libraries: they take longer than all the rest of a node's start."""
    for name in ("yanchat.admin.connections", "yanchat.admin.app", "yanchat.admin.guard"):
        importlib.import_module(name)


async def _serve(
    listener: socket.socket, tcp: Tcp | None, work: Assembly, outbox: Outbox, inbox: Inbox, control: Control
) -> None:
    # most nodes are never asked: nothing is loaded before somebody does, and clients are served meanwhile
    await trio.lowlevel.wait_readable(listener)
    await trio.to_thread.run_sync(_load)
    from yanchat.admin.app import build_app  # noqa: PLC0415
    from yanchat.admin.connections import serve_connections  # noqa: PLC0415
    from yanchat.admin.guard import Guard  # noqa: PLC0415

    guard = Guard(build_app(work, outbox, inbox, control), tcp, control.limits)
    await serve_connections(listener, guard, guard.may_ask)
