"""A client's session with a node over WebSocket: connect, send, receive, ack; and how it is kept over reconnections.

Used by the command line, the tests, and Python programs.
"""

from __future__ import annotations

import math
import os
import random
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import SplitResult, quote, urlencode, urlsplit

import trio
from trio_websocket import (
    ConnectionClosed,
    ConnectionRejected,
    HandshakeError,
    WebSocketConnection,
    wrap_client_stream,
)
from wsproto.utilities import LocalProtocolError

from yanchat.errors import NotAllowed, Unreachable, UsageError, YanchatError
from yanchat.protocol import client_frames
from yanchat.protocol.client_frames import Frame, HeartbeatAnswer, Hello, Message

CONNECT_SECONDS: Final = 5.0
CLOSE_SECONDS: Final = 1.0
SILENCE_SECONDS: Final = 30.0
ANSWER_SECONDS: Final = 15.0
FIRST_PAUSE: Final = 0.2
LONGEST_PAUSE: Final = 10.0
REASONS: Final = {
    1003: "it takes text frames only",
    1007: "a frame was not UTF-8",
    1008: "it refuses what this client sends",
    1009: "a message was too large for it; see limits.message_size in its settings",
    1012: "it restarts",
    4001: "a newer login of the same user has taken its place",
    4002: "an operator has closed this session",
    4003: "the token has expired",
    4008: "this client did not read what it was sent",
}
"""Close codes in words."""
FINAL_CODES: Final = frozenset({1003, 1007, 1008, 1009, 4001, 4002, 4003})
"""Close codes after which coming back as before would only end the same way."""


class Disconnected(Unreachable):
    """The conversation has ended; `code` is the close code, 1006 when there was none."""

    def __init__(self, code: int, reason: str) -> None:
        why = REASONS.get(code) or reason or f"code {code}"
        super().__init__("The connection broke." if code == 1006 else f"The node has closed the connection: {why}.")
        self.code = code


class Client:
    """One session. Made by `connect`; ends with it. Each call raises Disconnected when the connection has ended."""

    def __init__(self, websocket: WebSocketConnection, hello: Hello) -> None:
        self._websocket, self.hello = websocket, hello

    async def send(
        self,
        recipients: tuple[str, ...],
        text: str,
        file_type: int = 0,
        request_id: str | None = None,
        traceparent: str = "",
    ) -> None:
        """Send a type 1; its receipt comes as a frame. Repeat it with the same request id after a failure."""
        await self.send_raw(client_frames.send(recipients, text, file_type, request_id, traceparent))

    async def ack(self, message: Message) -> None:
        """Say that we have it. Repeated: answered again."""
        await self.send_raw(client_frames.ack(message))

    async def confirm(self) -> None:
        """Let the node know that all notices so far have arrived, before the session ends.

        What comes meanwhile is lost, so this stands at the end. The node asks by a ping, before it answers a heartbeat;
        a ping that was out before asks for less, which is why there are two heartbeats. Cancelled: it may not know.
        """
        for _ in range(2):
            await self.send_raw(client_frames.HEARTBEAT)
            while not isinstance(await self.receive(), HeartbeatAnswer):
                pass

    async def send_raw(self, frame: str) -> None:
        try:
            await self._websocket.send_message(frame)
        except ConnectionClosed as closed:
            raise _disconnected(closed) from None
        except LocalProtocolError:  # the node's closing frame is here, and the library has not come to it yet
            raise Disconnected(1006, "") from None

    async def receive(self) -> Frame:
        """The next frame. Cancelled: none is lost."""
        return client_frames.decode(await self.receive_raw())

    async def receive_raw(self) -> str:
        """The next frame as it came. A node that says nothing for long is asked, and Disconnected when it is mute."""
        with trio.move_on_after(SILENCE_SECONDS):
            return await self._get()
        await self.send_raw(client_frames.HEARTBEAT)
        with trio.move_on_after(ANSWER_SECONDS):
            return await self._get()
        raise Disconnected(1006, "")

    async def _get(self) -> str:
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
    """A session at a node; with a token, that says the name, too.

    Raises Unreachable, NotAllowed (401, 403) or UsageError (400, or no URL of a WebSocket).
    """
    try:
        parts = urlsplit(url)
        valid = parts.scheme in {"ws", "wss"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise UsageError(f"{url!r} is no WebSocket URL; write it as ws://127.0.0.1:8084/ws.")
    if not name.isprintable() or not re.fullmatch(r"[\w.=-]*", token, re.ASCII):
        raise UsageError("A name has printable characters only, and a token letters, digits and -_.= only.")
    query = urlencode({"openid": openid} | ({"userName": name} if name and not token else {}))
    resource = f"{quote(parts.path, safe='/%') if parts.path not in {'', '/'} else '/ws'}?{query}"
    headers = [(b"authorization", b"Bearer " + token.encode())] if token else []
    inside: BaseException | None = None
    try:
        async with _websocket(parts, resource, headers) as websocket:
            frame = client_frames.decode(await _first(websocket, url))
            if not isinstance(frame, Hello):
                raise Unreachable(f"{url} does not speak yanchat; give the URL of a node.")
            try:
                yield Client(websocket, frame)
            except BaseException as error:
                inside = error
                raise
    except ConnectionRejected as rejected:
        text = (rejected.body or b"").decode(errors="replace").strip()
        if not text or "\n" in text:  # a page of some other server
            text = f"status {rejected.status_code}"
        kinds = {400: UsageError, 401: NotAllowed, 403: NotAllowed}
        raise kinds.get(rejected.status_code, Unreachable)(f"{url} refuses: {text}") from None
    except (HandshakeError, trio.TooSlowError, OSError) as error:
        if inside is error:
            raise
        raise Unreachable(f"No node answers at {url} ({_why(error)}); start one with `yanchat serve`.") from None


@asynccontextmanager
async def _websocket(
    parts: SplitResult, resource: str, headers: list[tuple[bytes, bytes]]
) -> AsyncIterator[WebSocketConnection]:
    """The library's connection on a stream of our own, which is closed whatever happens to the handshake."""
    host, secure = parts.hostname or "", parts.scheme == "wss"
    port = parts.port or (443 if secure else 80)
    with trio.fail_after(CONNECT_SECONDS):
        stream: trio.abc.Stream
        if secure:
            stream = await _secure_stream(host, port)
        else:
            stream = await trio.open_tcp_stream(host, port)
    body: BaseException | None = None
    closing = False
    try:
        async with stream, trio.open_nursery() as nursery:
            with trio.fail_after(CONNECT_SECONDS):
                websocket = await wrap_client_stream(
                    nursery,
                    stream,
                    parts.netloc.rpartition("@")[2],
                    resource,
                    extra_headers=headers,
                    max_message_size=16 << 20,
                    message_queue_size=256,
                )
            try:
                yield websocket
            except BaseException as error:
                body = error
                raise
            finally:  # not shielded: when we are cancelled, so is the library's reader, and no answer is seen
                closing = True
                with trio.move_on_after(CLOSE_SECONDS):
                    await websocket.aclose()
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        if body is None and closing:
            return  # the library stumbles over a ping that comes after it has begun to close
        raise _reason(group, body) from None


def _reason(group: BaseExceptionGroup[BaseException], body: BaseException | None) -> BaseException:
    """One is enough: what came out of the body, else the library's own.

    Unless we are cancelled from outside, what is Cancelled in it comes from a nursery that is over. It would pass any
    `except*`, and end whatever nursery it meets without a word.
    """
    if body is None:
        reasons = [error for error in group.exceptions if not isinstance(error, trio.Cancelled)]
        return (reasons or group.exceptions)[0]
    if trio.current_effective_deadline() == -math.inf:
        return body
    rest: BaseException | None = body
    if isinstance(body, trio.Cancelled):
        rest = None
    elif isinstance(body, BaseExceptionGroup):
        rest = body.split(trio.Cancelled)[1]
    return rest or Disconnected(1006, "")


async def _secure_stream(host: str, port: int) -> trio.SSLStream[trio.SocketStream]:
    stream = await trio.open_ssl_over_tcp_stream(host, port, https_compatible=True)
    try:
        await stream.do_handshake()
    except trio.BrokenResourceError as broken:
        await trio.aclose_forcefully(stream)
        if isinstance(broken.__cause__, ssl.SSLCertVerificationError):
            raise Unreachable(
                f"The certificate of {host}:{port} is not trusted: {broken.__cause__.verify_message}; if its authority"
                " is your own, name its file in the variable SSL_CERT_FILE."
            ) from None
        raise OSError(0, f"it does not speak TLS: {_why(broken)}") from None
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return stream


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
    if isinstance(error, trio.TooSlowError):
        return f"no answer within {CONNECT_SECONDS:.0f} s"
    while isinstance(error, BaseExceptionGroup) or error.__cause__ is not None:
        error = error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error.__cause__ or error
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno) if error.errno > 0 else str(error.strerror)
    return str(error) or type(error).__name__


async def stay_connected(
    find: Callable[[], Awaitable[Sequence[str]]],
    openid: str,
    conversation: Callable[[Client], Awaitable[None]],
    *,
    lost: Callable[[str], None],
    name: str = "",
    token: str = "",
) -> None:
    """Hold a conversation, in a new session whenever one ends before it has returned; pauses with full jitter between.

    `find` says at which URLs there are nodes now, and is asked anew each time; `lost` is told why a session ended
    that is followed by another. When no node takes the first session, or one ends for good (`FINAL_CODES`), that error
    is raised.
    """
    met, longest = False, FIRST_PAUSE
    while True:
        failure: YanchatError = Unreachable("No node runs; start one with `yanchat serve`.")
        ended = False
        try:
            urls = await find()
        except Unreachable as error:
            urls, failure = (), error
        for url in urls:
            try:
                async with connect(url, openid, name, token) as client:
                    met = ended = True
                    longest = FIRST_PAUSE
                    await conversation(client)
                    return
            except* Unreachable as group:
                failure = _first_of(group)
            if ended:
                break
        if not met or (isinstance(failure, Disconnected) and failure.code in FINAL_CODES):
            raise failure
        if ended:
            lost(str(failure))
        await trio.sleep(random.uniform(0, longest))  # noqa: S311 - it only spreads load
        longest = min(longest * 2, LONGEST_PAUSE)


def _first_of(group: BaseExceptionGroup[YanchatError]) -> YanchatError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, YanchatError)
    return error
