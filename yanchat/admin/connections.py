"""The connections of admin HTTP: hypercorn speaks on each, and none of them holds up or ends the node.

That is why they are kept here: hypercorn's own server lets a client that reads nothing stop the node from stopping, and
an error of its own in one connection ends all.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, Final

import structlog
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState

SENT_WITHIN: Final = 30.0
"""Seconds in which a client must take what it is sent next."""
MOST: Final = 128
"""Connections of one listener; they are a program's or a person's, and short.

When all are taken, the one goes that has been there longest without a question that may be asked (on TCP: the token).
"""
_SENTENCE: Final = b'{"error":"Too many connections to admin; try again shortly."}'
ONE_TOO_MANY: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: %d\r\nRetry-After: 1\r\n"
    b"Connection: close\r\n\r\n%b" % (len(_SENTENCE), _SENTENCE)
)


class _Stream:
    """A socket, as hypercorn wants it, on which sending ends in time."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream, self.socket = stream, stream.socket
        self.receive_some, self.send_eof, self.aclose = stream.receive_some, stream.send_eof, stream.aclose

    async def send_all(self, data: bytes) -> None:
        with trio.move_on_after(SENT_WITHIN):
            await self._stream.send_all(data)
            return
        raise trio.BrokenResourceError("the client does not read")


class _Server(TCPServer):
    """One connection, which ends when its client goes: hypercorn would keep it until it has been idle for long."""

    async def _read_data(self) -> None:
        await super()._read_data()
        await self.idle_task.stop()


async def serve_connections(
    listener: socket.socket, app: Callable[..., Any], may_ask: Callable[[dict[str, Any]], bool]
) -> None:
    """Serve an ASGI application on a listening socket until cancelled; then all connections are closed at once.

    `may_ask` tells of a request's scope whether whoever asks has shown what the application wants to see.
    """
    config = Config()
    config.errorlog = config.accesslog = None
    config.include_server_header = False
    context = WorkerContext(None)
    open_now: set[trio.SocketStream] = set()
    strangers: dict[trio.SocketStream, None] = {}  # those of `open_now` that have asked nothing yet, the oldest first

    async def handle(stream: trio.SocketStream) -> None:
        if len(open_now) >= MOST and not strangers:
            await _refuse(stream)
            return
        if len(open_now) >= MOST:
            let_go(next(iter(strangers)))
        open_now.add(stream)
        strangers[stream] = None

        async def asked(scope: Any, receive: Any, send: Any) -> None:
            if stream in strangers and may_ask(scope):
                del strangers[stream]
            await app(scope, receive, send)

        try:
            patient: Any = _Stream(stream)
            await _Server(ASGIWrapper(asked), config, context, ConnectionState({}), patient).run()
        except Exception:
            structlog.get_logger().exception("admin.connection_failed")
        finally:
            let_go(stream)

    def let_go(stream: trio.SocketStream) -> None:
        open_now.discard(stream)
        strangers.pop(stream, None)
        stream.socket.close()

    async def close_all() -> None:
        """Hypercorn sends behind a shield: a client that does not read would not let it be cancelled."""
        try:
            await trio.sleep_forever()
        finally:
            for stream in open_now:
                stream.socket.close()

    listening = trio.SocketListener(trio.socket.from_stdlib_socket(listener.dup()))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(close_all)
        await trio.serve_listeners(handle, [listening])


async def _refuse(stream: trio.SocketStream) -> None:
    with trio.move_on_after(1.0):
        async with stream:
            try:
                await stream.send_all(ONE_TOO_MANY)
                await stream.send_eof()
                await stream.receive_some()  # a socket closed with its request unread is reset, and the answer lost
            except trio.BrokenResourceError:
                pass
