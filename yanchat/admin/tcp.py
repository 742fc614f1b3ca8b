"""Admin HTTP's TCP address, and the token that it asks for: both are had before the node starts, or it does not."""

from __future__ import annotations

import os
import re
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from yanchat.config import AdminSettings
from yanchat.errors import AddressTaken, ConfigError

BACKLOG: Final = 1024
"""Connections that wait to be accepted: the first question of all takes a moment."""
SHORTEST: Final = 16
MAKE_ONE: Final = "make one with `openssl rand -hex 32`"
EVERYWHERE: Final = frozenset({"0.0.0.0", "::", ""})  # noqa: S104 - that is what is asked about
_TOKEN = re.compile(rb"[A-Za-z0-9._~+/-]+=*")  # RFC 6750, 2.1


class Tcp:
    """The bound socket, the address under which others reach it, and the token; nothing is served yet."""

    def __init__(self, listener: socket.socket, address: str, token: bytes) -> None:
        self.listener, self.address = listener, address
        self.token = token
        """May be replaced by another one at any time."""


@contextmanager
def open_tcp(settings: AdminSettings) -> Iterator[Tcp | None]:
    """Bind it, if the settings ask for it; None if not.

    Raises ConfigError (no token, or one that others may read; no address to be found under), AddressTaken.
    """
    if not settings.listen:
        yield None
        return
    token = read_token(settings)
    host, _, port = settings.listen.rpartition(":")
    host = host.strip("[]")
    try:
        found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"admin.listen: {settings.listen} cannot be resolved: {error}; give HOST:PORT.") from None
    family, kind, protocol, _, address = found[0]
    if not settings.advertise and host in EVERYWHERE:
        raise ConfigError("admin.advertise: say under which HOST:PORT others reach admin; it listens everywhere.")
    with socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(BACKLOG)
        except OSError as error:
            sentence = f"admin.listen: {settings.listen} cannot be listened on: {error.strerror}; choose another one."
            raise AddressTaken(sentence) from None
        own = f"[{host}]" if ":" in host else host
        yield Tcp(listener, settings.advertise or f"{own}:{listener.getsockname()[1]}", token)


def read_token(settings: AdminSettings) -> bytes:
    """The token of `admin.token_file`. ConfigError: there is none, or anybody may read it."""
    file = settings.token_file
    if not file:
        raise ConfigError(
            f"admin.token_file: TCP is served only to whoever has a token; {MAKE_ONE}, and name its file."
        )
    try:
        with open(file, "rb") as opened:
            mode, token = os.fstat(opened.fileno()).st_mode, opened.read(4096).strip()
    except OSError as error:
        raise ConfigError(f"admin.token_file: {file} cannot be read: {error.strerror}; {MAKE_ONE}.") from None
    if mode & stat.S_IRWXO:
        raise ConfigError(f"admin.token_file: others may use {file}, so it is no secret; `chmod o= {file}`.")
    if len(token) < SHORTEST or not _TOKEN.fullmatch(token):
        raise ConfigError(
            f"admin.token_file: {file} holds no token: {SHORTEST} or more ASCII letters, digits and -._~+/; {MAKE_ONE}."
        )
    return token
