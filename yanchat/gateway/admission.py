"""Who may come in: caps on connections, path, Origin, who asks, and the plain HTTP answers. Synchronous."""

from __future__ import annotations

import resource
import sys
from collections import Counter
from collections.abc import Iterable
from email.utils import formatdate
from http import HTTPStatus
from typing import Final, Protocol
from urllib.parse import parse_qs, urlsplit

from websockets.http11 import Request

from yanchat.config import LimitSettings, ProxySettings, Settings
from yanchat.errors import Refused
from yanchat.gateway.proxy import Proxies
from yanchat.gateway.user import Authenticator, User

PATH: Final = "/ws"
DESCRIPTORS_KEPT: Final = 128
"""For the store, the bus, the admin socket and the log: a node full of clients can still do its work."""


class Caller(Protocol):
    """Who connects."""

    remote: str


class Admission:
    """Counts connections and decides about requests; every refusal is a Refused with an HTTP status."""

    def __init__(
        self,
        limits: LimitSettings,
        origins: tuple[str, ...],
        authenticate: Authenticator,
        descriptors: int,
        proxy: ProxySettings = ProxySettings(),  # noqa: B008 - it is frozen
    ) -> None:
        self._descriptors = descriptors
        self._take(limits, origins, authenticate, proxy)
        self._addresses: Counter[str] = Counter()
        self._total = 0

    def apply(self, settings: Settings, authenticate: Authenticator) -> None:
        """Hold the next ones to other settings."""
        self._take(settings.limits, settings.origins.allow, authenticate, settings.proxy)

    def _take(
        self, limits: LimitSettings, origins: tuple[str, ...], authenticate: Authenticator, proxy: ProxySettings
    ) -> None:
        self._per_address = limits.connections_per_address
        self._most = min(limits.connections, max(1, self._descriptors - DESCRIPTORS_KEPT))
        self._origins, self._authenticate, self._proxies = frozenset(origins), authenticate, Proxies(proxy)

    def connect(self, address: str) -> None:
        """Count a new connection until `disconnect`; Refused, and not counted, when it is one too many.

        A trusted proxy has as many as it brings clients: they are counted when they are known.
        """
        if self._total >= self._most:
            raise Refused(503, "This node has as many connections as it may; try another one.", retry_after=5)
        if not self._proxies.trusts(address):
            self._check_share(address)
        self._total += 1
        self._addresses[address] += 1

    def disconnect(self, address: str) -> None:
        self._total -= 1
        self._forget(address)

    def announced(self, address: str) -> bool:
        """Whether whoever connects from here begins with a PROXY header."""
        return self._proxies.announce and self._proxies.trusts(address)

    def move(self, caller: Caller, address: str) -> None:
        """Count a connection under the address that its proxy tells; Refused, and as before, for one too many."""
        if address != caller.remote:
            self._check_share(address)
            self._addresses[address] += 1
            self._forget(caller.remote)
            caller.remote = sys.intern(address)

    def _check_share(self, address: str) -> None:
        if self._addresses[address] >= self._per_address:
            raise Refused(429, "Your address has as many connections as it may; close one.", retry_after=5)

    def _forget(self, address: str) -> None:
        self._addresses[address] -= 1
        if not self._addresses[address]:
            del self._addresses[address]

    def check_line(self, method: str, target: str, version: str) -> None:
        """What the request line alone tells."""
        try:
            path = urlsplit(target).path
        except ValueError:
            path = ""
        if path != PATH:
            raise Refused(404, f"There is nothing here; connect to {PATH} with a WebSocket.")
        if method != "GET":
            raise Refused(405, f"Only GET is answered on {PATH}.")
        if version != "HTTP/1.1":
            raise Refused(400, "A WebSocket begins with HTTP/1.1 (RFC 6455, 4.1); a proxy in between must keep to it.")

    def check(self, request: Request, caller: Caller) -> User:
        """Who asks for an upgrade, and from where; the request line has been checked."""
        headers = _joined(request.headers.raw_items())
        if "x-forwarded-for" in headers and not self._proxies.announce and self._proxies.trusts(caller.remote):
            self.move(caller, self._proxies.forwarded(caller.remote, headers["x-forwarded-for"]))
        if "websocket" not in headers.get("upgrade", "").lower():
            raise Refused(426, f"Connect to {PATH} with a WebSocket.")
        if headers.get("sec-websocket-version") != "13":
            raise Refused(426, "Only version 13 of the WebSocket protocol is spoken here (RFC 6455).")
        origin = headers.get("origin")
        if origin is not None and self._origins and origin not in self._origins:
            raise Refused(403, "This origin is not on the allow-list; add it to [origins] allow.")
        return self._authenticate(parse_qs(urlsplit(request.path).query, keep_blank_values=True), headers)


def _joined(fields: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Header fields by their names in lower case; one that comes twice is one list (RFC 9110, 5.3)."""
    headers: dict[str, str] = {}
    for name, value in fields:
        key = name.lower()
        headers[key] = f"{headers[key]}, {value}" if key in headers else value
    return headers


def plain_answer(refused: Refused, *, to_head: bool = False) -> bytes:
    """A whole HTTP answer, after which the connection is closed (RFC 9112, 9.6); a HEAD gets no body."""
    status = HTTPStatus(refused.status)
    body = f"{refused}\n".encode()
    head = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        f"Date: {formatdate(usegmt=True)}",  # RFC 9110, 6.6.1; by it `yanchat doctor` compares clocks
        "Content-Type: text/plain; charset=utf-8",
        f"Content-Length: {len(body)}",
        "Connection: close",
    ]
    if refused.status == HTTPStatus.UPGRADE_REQUIRED:
        head += ["Upgrade: websocket", "Sec-WebSocket-Version: 13"]
    if refused.status == HTTPStatus.UNAUTHORIZED:
        head.append("WWW-Authenticate: Bearer")
    if refused.status == HTTPStatus.METHOD_NOT_ALLOWED:
        head.append("Allow: GET")
    if refused.retry_after is not None:
        head.append(f"Retry-After: {refused.retry_after}")
    return "\r\n".join(head).encode() + b"\r\n\r\n" + (b"" if to_head else body)


def allow_descriptors() -> int:
    """Allow this process as many open files as the system lets it have, and say how many that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else 1 << 20
