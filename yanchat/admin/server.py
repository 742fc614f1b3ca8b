"""Serving the admin application on a Unix socket that only the node's own user may open."""

from __future__ import annotations

import importlib
import os
import socket
from pathlib import Path
from typing import Any

import trio

from yanchat.errors import ConfigError
from yanchat.node.assembly import Assembly
from yanchat.ports import Outbox

LONGEST_SOCKET_PATH = 107


async def serve_admin(
    path: Path, work: Assembly, outbox: Outbox, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
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
        listener.listen()
        task_status.started()
        try:
            await _serve(listener, work, outbox)
        finally:
            path.unlink(missing_ok=True)


def _load() -> None:
    """Load the web libraries: they take longer than all the rest of a node's start."""
    for name in ("hypercorn.trio", "yanchat.admin.app"):
        importlib.import_module(name)


async def _serve(listener: socket.socket, work: Assembly, outbox: Outbox) -> None:
    # most nodes are never asked: nothing is loaded before somebody does, and clients are served meanwhile
    await trio.lowlevel.wait_readable(listener)
    await trio.to_thread.run_sync(_load)
    from hypercorn.config import Config  # noqa: PLC0415
    from hypercorn.trio import serve  # noqa: PLC0415

    from yanchat.admin.app import build_app  # noqa: PLC0415

    config = Config()
    config.bind = [f"fd://{listener.detach()}"]
    config.errorlog = config.accesslog = None
    config.graceful_timeout = 1.0
    app = build_app(work, outbox)

    async def without_lifespan(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            raise NotImplementedError  # says, as ASGI has it, that there is nothing to start or to stop
        await app(scope, receive, send)

    await serve(without_lifespan, config, shutdown_trigger=trio.sleep_forever)
