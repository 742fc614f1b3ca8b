"""Three WebSocket clients by three hands, each as the same few calls. All run in trio."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol
from urllib.parse import urlsplit

import trio
import wsproto
import wsproto.connection
import wsproto.events
from trio_websocket import ConnectionClosed, WebSocketConnection, open_websocket_url
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.uri import parse_uri

from tests.gateway.raw import Closed, kind


class Client(Protocol):
    """A connection to a node."""

    async def say(self, value: dict[str, Any]) -> None: ...

    async def hear(self) -> dict[str, Any]:
        """The next text frame. Closed when the connection has ended."""
        ...


Connect = Callable[[str], AbstractAsyncContextManager[Client]]


async def next_of(client: Client, wanted: int) -> dict[str, Any]:
    """The next frame of this type; others are ignored, as a client does with what it does not know."""
    while True:
        value = await client.hear()
        if kind(value) == wanted:
            return value


class TrioWebsocket:
    """trio-websocket: what `yanchat/client.py` uses."""

    def __init__(self, connection: WebSocketConnection) -> None:
        self._connection = connection

    async def say(self, value: dict[str, Any]) -> None:
        await self._connection.send_message(json.dumps(value))

    async def hear(self) -> dict[str, Any]:
        try:
            value: dict[str, Any] = json.loads(await self._connection.get_message())
        except ConnectionClosed as closed:
            reason = closed.reason
            raise Closed(reason.code if reason else 1006) from None
        return value

    @classmethod
    @asynccontextmanager
    async def connect(cls, url: str) -> AsyncIterator[Client]:
        async with open_websocket_url(url) as connection:
            try:
                yield cls(connection)
            finally:
                await connection.aclose()
                await connection._close_stream()  # it leaves the socket to the collector when the node closed first


class Wsproto:
    """wsproto, over a stream."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream, self._protocol = stream, wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
        self._text, self._heard = "", list[dict[str, Any]]()
        self.open, self.closed = False, 0

    async def say(self, value: dict[str, Any]) -> None:
        await self._stream.send_all(self._protocol.send(wsproto.events.TextMessage(json.dumps(value))))

    async def hear(self) -> dict[str, Any]:
        while not self._heard:
            if self.closed:
                raise Closed(self.closed)
            await self.take()
        return self._heard.pop(0)

    async def take(self) -> None:
        data = await self._stream.receive_some()
        self._protocol.receive_data(data or None)
        for event in self._protocol.events():
            if isinstance(event, wsproto.events.AcceptConnection):
                self.open = True
            elif isinstance(event, wsproto.events.TextMessage):
                self._text += event.data
                if event.message_finished:
                    self._heard.append(json.loads(self._text))
                    self._text = ""
            elif isinstance(event, wsproto.events.Ping):
                await self._stream.send_all(self._protocol.send(event.response()))
            elif isinstance(event, wsproto.events.CloseConnection):
                self.closed = int(event.code)
                if self._protocol.state is wsproto.connection.ConnectionState.REMOTE_CLOSING:
                    await self._stream.send_all(self._protocol.send(event.response()))

    @classmethod
    @asynccontextmanager
    async def connect(cls, url: str) -> AsyncIterator[Client]:
        parts = urlsplit(url)
        async with await trio.open_tcp_stream(str(parts.hostname), int(parts.port or 0)) as stream:
            client = cls(stream)
            request = wsproto.events.Request(host=parts.netloc, target=f"{parts.path}?{parts.query}")
            await stream.send_all(client._protocol.send(request))
            while not client.open:
                await client.take()
            yield client
            if not client.closed:
                await stream.send_all(client._protocol.send(wsproto.events.CloseConnection(1000)))
                while not client.closed:
                    await client.take()
                assert client.closed == 1000


class Websockets:
    """The sans-IO client of `websockets`, over a stream; it is asked for its compression, too."""

    def __init__(self, stream: trio.SocketStream, url: str) -> None:
        self._stream, self._protocol = stream, ClientProtocol(parse_uri(url))
        self._heard = list[dict[str, Any]]()

    async def say(self, value: dict[str, Any]) -> None:
        self._protocol.send_text(json.dumps(value).encode())
        await self.give()

    async def hear(self) -> dict[str, Any]:
        while not self._heard:
            if self._protocol.state.name == "CLOSED":
                raise Closed(self._protocol.close_code or 1006)
            await self.take()
        return self._heard.pop(0)

    async def give(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                await self._stream.send_all(data)

    async def take(self) -> None:
        data = await self._stream.receive_some()
        self._protocol.receive_data(data) if data else self._protocol.receive_eof()
        await self.give()
        for event in self._protocol.events_received():
            if isinstance(event, Frame) and event.opcode is Opcode.TEXT:
                self._heard.append(json.loads(bytes(event.data)))

    @classmethod
    @asynccontextmanager
    async def connect(cls, url: str) -> AsyncIterator[Client]:
        parts = urlsplit(url)
        async with await trio.open_tcp_stream(str(parts.hostname), int(parts.port or 0)) as stream:
            client = cls(stream, url)
            protocol = client._protocol
            protocol.send_request(protocol.connect())
            await client.give()
            while protocol.state.name == "CONNECTING":
                await client.take()
            assert protocol.handshake_exc is None
            yield client
            if protocol.state.name == "OPEN":
                protocol.send_close(1000)
                await client.give()
                while protocol.state.name != "CLOSED":
                    await client.take()
                assert protocol.close_code == 1000


ALL: tuple[Connect, ...] = (TrioWebsocket.connect, Wsproto.connect, Websockets.connect)
NAMES = ("trio-websocket", "wsproto", "websockets")
