"""What stands before the admin application: the token on TCP, the size of a request, how long its body may take."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

import trio
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from yanchat.admin.answers import refuse
from yanchat.admin.tcp import Tcp
from yanchat.config import LimitSettings

BODY_WITHIN: Final = 30.0
"""Seconds for all of a body."""
BODY_BESIDE_TEXT: Final = 64 * 1024
"""Bytes that the rest of an order may take: a hundred recipients, and room for spaces."""
BYTES_ESCAPED: Final = 3
"""A byte of UTF-8 takes up to so many when a library writes it as a \\u escape."""


class Guard:
    """An ASGI application around another one; `tcp` has the token that it asks for, None asks for none."""

    def __init__(self, app: ASGIApp, tcp: Tcp | None, limits: Callable[[], LimitSettings]) -> None:
        self._app, self._tcp, self._limits = app, tcp, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise NotImplementedError  # there is nothing to start or to stop (ASGI, lifespan), and no WebSocket
        refusal = self._refusal(scope)
        if refusal is None:
            body = await self._body(receive)
            if isinstance(body, Response):
                refusal = body
            elif body is None:
                return  # gone before the end of the question
            else:
                await self._app(scope, _replay(body, receive), send)
                return
        await refusal(scope, receive, send)

    def may_ask(self, scope: MutableMapping[str, Any]) -> bool:
        """Whether a request has the token, where one is asked for."""
        if self._tcp is None or scope["type"] != "http":
            return self._tcp is None
        given = [value for name, value in scope["headers"] if name.lower() == b"authorization"]
        kind, _, token = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        return kind.lower() == b"bearer" and hmac.compare_digest(token.strip(), self._tcp.token)

    def _refusal(self, scope: MutableMapping[str, Any]) -> Response | None:
        if self.may_ask(scope):
            return None
        challenge = {"WWW-Authenticate": "Bearer", "Connection": "close"}
        return refuse(401, "Say `Authorization: Bearer` and the token of this cluster's admin.token_file.", challenge)

    async def _body(self, receive: Receive) -> bytes | Response | None:
        """The whole body, read before anything is done; None when the client went away meanwhile."""
        most = self._limits().message_size * BYTES_ESCAPED + BODY_BESIDE_TEXT
        parts: list[bytes] = []
        size = 0
        with trio.move_on_after(BODY_WITHIN):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > most:
                    return refuse(413, f"The body is longer than {most} bytes.", {"Connection": "close"})
                if not message.get("more_body", False):
                    return b"".join(parts)
        return refuse(408, f"The body did not come within {BODY_WITHIN:.0f} s.", {"Connection": "close"})


def _replay(body: bytes, receive: Receive) -> Callable[[], Awaitable[Message]]:
    """Hand over the body that was read, then whatever else comes."""
    said = False

    async def again() -> Message:
        nonlocal said
        if said:
            return await receive()
        said = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
