"""From the first bytes of a client to its session, or to a refusal. Synchronous; one for all connections of a node.

The request is gathered whole before `websockets` sees it: so it is bounded, costs a connection nothing but its bytes,
and frames that follow it at once are not read before it is answered.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

from websockets.exceptions import WebSocketException
from websockets.http11 import Request
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from yanchat.errors import Refused
from yanchat.gateway import admission
from yanchat.gateway.admission import Admission
from yanchat.gateway.refusals import Refusals
from yanchat.gateway.user import SUBPROTOCOL as NAME
from yanchat.model import OpenId
from yanchat.node.hub import Outlet, Session

SUBPROTOCOL: Final = Subprotocol(NAME)
LARGEST_HEAD: Final = 16384
"""Bytes of a request up to the empty line."""
LONGEST_LINE: Final = 8190
"""Bytes of one header field that `websockets` reads."""
_END = re.compile(rb"\n\r?\n")
_LINE = re.compile(rb"([A-Z]+) ([!-~]+) (HTTP/1\.[01])\r\n")
_METHOD = re.compile(rb"[A-Z]+(?: |\Z)")


class Door(Protocol):
    """Where logins go: `node/reception.py`."""

    def enter(self, openid: OpenId, user_name: str, remote: str, outlet: Outlet) -> Session: ...


class Caller(admission.Caller, Outlet, Protocol):
    """The connection that asks."""


class Opened(NamedTuple):
    """The upgrade's answer, and what came behind the request."""

    session: Session
    expires: float
    """Seconds since 1970."""
    answer: bytes
    rest: bytes


class Handshake:
    """Answers requests."""

    def __init__(self, admission: Admission, door: Door) -> None:
        self._admission, self._door, self.refusals = admission, door, Refusals()

    def answer(self, received: bytes, caller: Caller) -> Opened | None:
        """Open a session for the request; None when it is not all here yet. Refused: then there is none."""
        end = _END.search(received)
        if end is None and len(received) <= LARGEST_HEAD and _METHOD.match(received):
            return None
        if (end.end() if end else len(received)) > LARGEST_HEAD:
            raise Refused(431, f"The request has more than {LARGEST_HEAD} bytes; send fewer header fields.")
        line = _LINE.match(received)
        if end is None or line is None:
            raise _not_understood()
        self._admission.check_line(*(part.decode() for part in line.groups()))
        server = ServerProtocol(select_subprotocol=_select)
        server.receive_data(received[: end.end()])
        request = next(iter(server.events_received()), None)
        if not isinstance(request, Request):
            if max(map(len, received[: end.end()].split(b"\n"))) > LONGEST_LINE:
                raise Refused(431, f"A header field has more than {LONGEST_LINE} bytes; send a shorter one (a token?).")
            raise _not_understood()
        try:
            user = self._admission.check(request, caller)
            response = server.accept(request)
        except (ValueError, WebSocketException):
            raise _not_understood() from None
        if response.status_code != 101:
            raise Refused(response.status_code, response.body.decode().splitlines()[0])
        session = self._door.enter(user.openid, user.name, caller.remote, caller)
        return Opened(session, user.expires, response.serialize(), received[end.end() :])


def _select(_: ServerProtocol, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    return SUBPROTOCOL if SUBPROTOCOL in offered else None


def _not_understood() -> Refused:
    return Refused(400, "The request is not understood, or has a body; send a WebSocket upgrade (RFC 6455).")
