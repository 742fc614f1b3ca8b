"""The sockets that clients come to: bound here, perhaps shared with other nodes, or handed over to this process."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from yanchat.config import Settings
from yanchat.errors import AddressTaken, ConfigError
from yanchat.model import Node
from yanchat.names import LONGEST_NODE, is_node

EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 - that is what is asked about
BACKLOG = 65_535
"""How many may wait to be accepted, as far as the system lets them (net.core.somaxconn, mostly 4,096). Whoever finds
no place is tried again after 1, 3, 7, 15, 31 and 63 s (tcp(7), tcp_syn_retries): an overflow costs a minute."""


class Listening(NamedTuple):
    """Sockets, and the name under which the other nodes know this one."""

    sockets: Sequence[socket.socket]
    node: Node
    url: str
    """Where a client connects to come to this node, or to one that shares its address."""
    handed_over: bool
    """Who handed them over holds them as well."""


@contextmanager
def listening(settings: Settings, given: Sequence[socket.socket]) -> Iterator[Listening]:
    """The sockets: those that are `given`, else the one of node.listen, bound; closed behind.

    They listen from `listen` on. Raises ConfigError, or AddressTaken when another process holds the address.
    """
    with ExitStack() as stack:
        sockets = [stack.enter_context(one) for one in given] or [stack.enter_context(_bound(settings))]
        refuse_strangers(settings, sockets)
        node = _name(settings, sockets[0], named=not given)
        scheme = "wss" if settings.tls.cert_file else "ws"
        address = str(node)
        if settings.node.reuse_port and not given:
            address = f"{node.rpartition(':')[0]}:{sockets[0].getsockname()[1]}"
        yield Listening(sockets, node, f"{scheme}://{address}/ws", bool(given))


def _bound(settings: Settings) -> socket.socket:
    host, port = split(settings.node.listen, "node.listen")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigError(
            f"node.listen: {host!r} cannot be resolved: {error}; give an address of this machine."
        ) from None
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if settings.node.reuse_port:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise AddressTaken(
            f"{settings.node.listen} cannot be listened on: {error.strerror}; choose another --listen."
        ) from None
    return listener


def refuse_strangers(settings: Settings, sockets: Sequence[socket.socket]) -> None:
    """ConfigError when others than this machine reach one of the sockets, and nobody asks who they are."""
    for one in sockets:
        host, port = one.getsockname()[:2]
        if not (settings.node.insecure or settings.auth.mode != "none" or host.startswith("127.") or host == "::1"):
            raise ConfigError(
                f"node.listen: with auth mode none anybody who reaches {host}:{port} may be anybody; set up tokens"
                " ([auth]), listen on 127.0.0.1, or give --insecure if that is what you want."
            )


def split(address: str, key: str) -> tuple[str, int]:
    """HOST:PORT in two; ConfigError with the key when it is not that."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"{key}: {address!r} is not HOST:PORT, as 127.0.0.1:8084 is.")
    return host.strip("[]"), int(port)


def _name(settings: Settings, listener: socket.socket, *, named: bool) -> Node:
    """The address under which the other nodes know this one: what is advertised, else where it listens."""
    if settings.node.advertise:
        split(settings.node.advertise, "node.advertise")
        return _usable(settings.node.advertise)
    if settings.node.reuse_port:
        raise ConfigError(
            "node.advertise: each of the nodes that share a port needs one of its own; give it HOST:PORT."
        )
    bound, port = listener.getsockname()[:2]
    host = split(settings.node.listen, "node.listen")[0] if named else str(bound)
    if host in EVERYWHERE:
        raise ConfigError("node.advertise: say under which HOST:PORT others find this node; it listens everywhere.")
    return _usable(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")


def _usable(address: str) -> Node:
    if not is_node(address):
        raise ConfigError(
            f"node.advertise: {address!r} cannot name a node; give it a HOST:PORT of ASCII letters, digits, - and dots,"
            f" {LONGEST_NODE} characters at most."
        )
    return Node(address)
