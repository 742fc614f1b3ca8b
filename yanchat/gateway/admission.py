"""Who may come in: caps on connections, path, Origin, and the plain HTTP answers. Synchronous."""

from __future__ import annotations

from collections import Counter
from http import HTTPStatus
from urllib.parse import parse_qs, urlsplit

from websockets.http11 import Request

from yanchat.config import LimitSettings
from yanchat.errors import Refused
from yanchat.gateway.auth import Authenticator, User

PATH = "/ws"


class Admission:
    """Counts connections and decides about requests; every refusal is a Refused with an HTTP status."""

    def __init__(self, limits: LimitSettings, origins: tuple[str, ...], authenticate: Authenticator) -> None:
        self._limits, self._origins, self._authenticate = limits, frozenset(origins), authenticate
        self._addresses: Counter[str] = Counter()
        self._total = 0

    def connect(self, address: str) -> Refused | None:
        """Count a new connection; the refusal when it is one too many (it counts all the same until it has gone)."""
        self._total += 1
        self._addresses[address] += 1
        if self._total > self._limits.connections:
            return Refused(503, "This node has as many connections as it may; try another one.", retry_after=5)
        if self._addresses[address] > self._limits.connections_per_address:
            return Refused(429, "Your address has as many connections as it may; close one.", retry_after=5)
        return None

    def disconnect(self, address: str) -> None:
        self._total -= 1
        self._addresses[address] -= 1
        if not self._addresses[address]:
            del self._addresses[address]

    def check(self, request: Request) -> User:
        """Who asks for an upgrade on our path."""
        url = urlsplit(request.path)
        if url.path != PATH:
            raise Refused(404, f"There is nothing here; connect to {PATH} with a WebSocket.")
        if request.method != "GET":
            raise Refused(405, f"Only GET is answered on {PATH}.")
        headers = {name.lower(): value for name, value in request.headers.raw_items()}
        if "websocket" not in headers.get("upgrade", "").lower():
            raise Refused(426, f"Connect to {PATH} with a WebSocket.")
        origin = headers.get("origin")
        if origin is not None and self._origins and origin not in self._origins:
            raise Refused(403, "This origin is not on the allow-list; add it to [origins] allow.")
        return self._authenticate(parse_qs(url.query, keep_blank_values=True), headers)


def plain_answer(refused: Refused) -> bytes:
    """A whole HTTP answer, after which the connection is closed (RFC 9112, 9.6)."""
    status = HTTPStatus(refused.status)
    body = f"{refused}\n".encode()
    head = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        "Content-Type: text/plain; charset=utf-8",
        f"Content-Length: {len(body)}",
        "Connection: close",
    ]
    if refused.status == HTTPStatus.UPGRADE_REQUIRED:
        head += ["Upgrade: websocket", "Sec-WebSocket-Version: 13"]
    if refused.status == HTTPStatus.METHOD_NOT_ALLOWED:
        head.append("Allow: GET")
    if refused.retry_after is not None:
        head.append(f"Retry-After: {refused.retry_after}")
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body
