"""Asking a running node's admin HTTP as a program would, and as one that misbehaves."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.running import RunningNode


def admin(node: RunningNode, token: str | None = None) -> httpx.Client:
    """A client of a node's Unix socket; with a token, of its TCP address."""
    if token is None:
        return httpx.Client(transport=httpx.HTTPTransport(uds=str(socket_of(node))), base_url="http://node", timeout=20)
    return httpx.Client(base_url=f"http://{address_of(node)}", timeout=20, headers={"Authorization": f"Bearer {token}"})


def socket_of(node: RunningNode) -> Path:
    return node.directory / "admin.sock"


def address_of(node: RunningNode) -> str:
    """The admin address under which the registry knows the node."""
    with admin(node) as http:
        servers = http.get("/servers").json()["servers"]
    return str(next(one["admin"] for one in servers if one["node"] == node.node))


def token_file(directory: Path, token: str | None = None, mode: int = 0o600) -> Path:
    """A file with a token, which others may not read."""
    file = directory / f"token-{secrets.token_hex(4)}"
    file.write_text(f"{secrets.token_hex(32) if token is None else token}\n")
    file.chmod(mode)
    return file


def with_tcp(file: Path) -> dict[str, str]:
    """The environment of a node that serves admin over TCP on whatever port is free."""
    return {"YANCHAT_ADMIN_LISTEN": "127.0.0.1:0", "YANCHAT_ADMIN_TOKEN_FILE": str(file)}


@contextmanager
def raw(node: RunningNode) -> Iterator[socket.socket]:
    """A bare connection to the Unix socket."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(str(socket_of(node)))
        yield connection
