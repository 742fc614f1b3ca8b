"""A client of a node over WebSocket: connect, send, receive, ack; reconnecting with full jitter. Used by the CLI."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import urlencode, urlsplit

import trio
from trio_websocket import (
    ConnectionClosed,
    ConnectionRejected,
    ConnectionTimeout,
    DisconnectionTimeout,
    HandshakeError,
    WebSocketConnection,
    open_websocket_url,
)

from yanchat.errors import ConfigError, NotAllowed, Unreachable, YanchatError
from yanchat.protocol import client_frames
from yanchat.protocol.client_frames import Frame, Hello, Message

CONNECT_SECONDS: Final = 5.0
LONGEST_PAUSE: Final = 10.0


class Disconnected(Unreachable):
    """The conversation has ended; `code` is the close code, 1006 when there was none."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"The node closed the connection ({code} {reason}); connect again.".replace(" )", ")"))
        self.code = code


class Client:
    """One session. Made by `connect`; ends with it. Each call raises Disconnected when the connection has ended."""

    def __init__(self, websocket: WebSocketConnection, hello: Hello) -> None:
        self._websocket, self.hello = websocket, hello

    async def send(
        self, recipients: tuple[str, ...], text: str, file_type: int = 0, request_id: str | None = None
    ) -> None:
        """Send a type 1; its receipt comes as a frame. Repeat it with the same request id after a failure."""
        await self.send_raw(client_frames.send(recipients, text, file_type, request_id))

    async def ack(self, message: Message) -> None:
        """Say that we have it. Repeated: answered again."""
        await self.send_raw(client_frames.ack(message))

    async def send_raw(self, frame: str) -> None:
        try:
            await self._websocket.send_message(frame)
        except ConnectionClosed as closed:
            raise _disconnected(closed) from None

    async def receive(self) -> Frame:
        """The next frame."""
        return client_frames.decode(await self.receive_raw())

    async def receive_raw(self) -> str:
        try:
            frame: str | bytes = await self._websocket.get_message()
        except ConnectionClosed as closed:
            raise _disconnected(closed) from None
        return frame if isinstance(frame, str) else frame.decode(errors="replace")


def _disconnected(closed: ConnectionClosed) -> Disconnected:
    reason = closed.reason
    return Disconnected(reason.code if reason else 1006, (reason.reason or "") if reason else "")


@asynccontextmanager
async def connect(url: str, openid: str, name: str = "", token: str = "") -> AsyncIterator[Client]:
    """A session at a node. Raises Unreachable, NotAllowed (401, 403) or ConfigError (no URL of a WebSocket)."""
    parts = urlsplit(url)
    if parts.scheme not in {"ws", "wss"} or not parts.hostname:
        raise ConfigError(f"{url!r} is no WebSocket URL; write it as ws://127.0.0.1:8084/ws.")
    query = urlencode({"openid": openid} | ({"userName": name} if name else {}))
    target = parts._replace(path=parts.path if parts.path not in {"", "/"} else "/ws", query=query).geturl()
    headers = [(b"authorization", b"Bearer " + token.encode())] if token else []
    try:
        async with open_websocket_url(
            target,
            extra_headers=headers,
            connect_timeout=CONNECT_SECONDS,
            disconnect_timeout=1.0,
            max_message_size=16 << 20,
            message_queue_size=256,
        ) as websocket:
            frame = client_frames.decode(await _first(websocket, url))
            if not isinstance(frame, Hello):
                raise Unreachable(f"{url} does not speak yanchat; give the URL of a node.")
            yield Client(websocket, frame)
    except ConnectionRejected as rejected:
        text = (rejected.body or b"").decode(errors="replace").strip() or f"status {rejected.status_code}"
        kind: type[YanchatError] = NotAllowed if rejected.status_code in {400, 401, 403} else Unreachable
        raise kind(f"{url} refuses: {text}") from None
    except (HandshakeError, ConnectionTimeout) as error:
        raise Unreachable(f"No node answers at {url} ({_why(error)}); start one with `yanchat serve`.") from None
    except DisconnectionTimeout:
        pass  # the node did not answer our closing frame: we have gone all the same


async def _first(websocket: WebSocketConnection, url: str) -> str | bytes:
    try:
        with trio.fail_after(CONNECT_SECONDS):
            return await websocket.get_message()
    except ConnectionClosed as closed:
        raise _disconnected(closed) from None
    except trio.TooSlowError:
        raise Unreachable(f"{url} does not greet; is it a node of yanchat?") from None


def _why(error: BaseException) -> str:
    """The root of it: one reason is enough when several attempts failed."""
    while isinstance(error, BaseExceptionGroup) or error.__cause__ is not None:
        error = error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error.__cause__ or error
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def pauses() -> AsyncIterator[float]:
    """Sleeps with full jitter, each time up to twice as long, at most 10 s; yields how long it slept."""

    async def sleep() -> AsyncIterator[float]:
        longest = 0.2
        while True:
            pause = random.uniform(0, longest)  # noqa: S311 - it only spreads load
            await trio.sleep(pause)
            yield pause
            longest = min(longest * 2, LONGEST_PAUSE)

    return sleep()
