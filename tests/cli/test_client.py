"""The client that the command line uses, against peers that behave badly: what comes out of `connect` is plain."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio
from websockets.http11 import Request
from websockets.server import ServerProtocol

from yanchat.client import Client, Disconnected, _reason, connect, stay_connected
from yanchat.errors import NotAllowed, Unreachable, UsageError

HELLO = b'{"type":6,"params":{"openid":"ann","userName":"ann","sessionId":"n_ann_1","node":"n","pending":false}}'
PING, CLOSE = b"\x89\x01x", b"\x88\x02\x03\xe8"
Then = Callable[[trio.SocketStream], Awaitable[None]]


async def peer(nursery: trio.Nursery, then: Then, first: bytes = HELLO) -> str:
    """A WebSocket server that shakes hands, says one thing, and goes on as the test wants; its URL."""

    async def serve(stream: trio.SocketStream) -> None:
        protocol = ServerProtocol()
        while not protocol.events_received():
            protocol.receive_data(await stream.receive_some())
            for event in protocol.events_received():
                assert isinstance(event, Request)
                protocol.send_response(protocol.accept(event))
                protocol.send_text(first)
                await stream.send_all(b"".join(protocol.data_to_send()))
                await then(stream)
                return

    listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
    return f"ws://127.0.0.1:{listeners[0].socket.getsockname()[1]}"


async def ping_while_closing(stream: trio.SocketStream) -> None:
    await stream.receive_some()  # the client's closing frame
    await stream.send_all(PING + CLOSE)


async def say_nothing(stream: trio.SocketStream) -> None:
    while await stream.receive_some():
        pass


async def hang_up(stream: trio.SocketStream) -> None:
    await stream.aclose()


async def kick(stream: trio.SocketStream) -> None:
    await stream.send_all(b"\x88\x02" + (4002).to_bytes(2, "big"))
    await say_nothing(stream)


async def test_a_ping_that_comes_while_the_client_closes_is_no_error(nursery: trio.Nursery) -> None:
    """A node pings to learn whether a notice has arrived, at any time."""
    async with connect(await peer(nursery, ping_while_closing), "ann") as client:
        assert client.hello.node == "n"
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("then", [ping_while_closing, say_nothing, hang_up])
async def test_the_error_of_the_body_comes_out_whatever_the_peer_does(nursery: trio.Nursery, then: Then) -> None:
    """Closing goes wrong in many ways, and hides nothing."""
    url = await peer(nursery, then)
    with pytest.raises(ZeroDivisionError):
        async with connect(url, "ann"):
            1 / 0  # noqa: B018
    nursery.cancel_scope.cancel()


async def test_a_peer_that_hangs_up_ends_the_conversation(nursery: trio.Nursery) -> None:
    """Without a closing frame it is 1006."""
    url = await peer(nursery, hang_up)
    with pytest.raises(Disconnected) as ended:
        async with connect(url, "ann") as client:
            await client.receive()
    assert ended.value.code == 1006
    nursery.cancel_scope.cancel()


async def test_being_cancelled_inside_is_being_cancelled(nursery: trio.Nursery) -> None:
    """No error instead of it, and no second is lost on a peer that does not answer."""
    url = await peer(nursery, say_nothing)
    with trio.move_on_after(0.1) as scope:
        async with connect(url, "ann"):
            await trio.sleep_forever()
    assert scope.cancelled_caught
    nursery.cancel_scope.cancel()


async def test_a_peer_that_greets_with_something_else_is_no_node(nursery: trio.Nursery) -> None:
    """It speaks WebSocket, but not ours."""
    url = await peer(nursery, say_nothing, b"welcome")
    with pytest.raises(Unreachable, match="does not speak yanchat"):
        async with connect(url, "ann"):
            raise AssertionError
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n", NotAllowed),
        (b"HTTP/1.1 400 Bad Request\r\nContent-Length: 4\r\n\r\nwhy?", UsageError),
        (b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", Unreachable),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", Unreachable),
        (b"SSH-2.0-OpenSSH_9.2\r\n", Unreachable),
        (b"", Unreachable),
    ],
)
async def test_a_refused_login_says_why(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch, answer: bytes, error: type[Exception]
) -> None:
    """Plain HTTP before the upgrade; whatever else answers is no node."""
    monkeypatch.setattr("yanchat.client.CONNECT_SECONDS", 0.5)

    async def serve(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(answer)
        await stream.aclose()

    listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
    url = f"ws://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
    with pytest.raises(error) as raised:
        async with connect(url, "ann"):
            raise AssertionError
    assert url in str(raised.value)
    nursery.cancel_scope.cancel()


async def test_a_conversation_goes_on_at_the_next_node_that_answers(nursery: trio.Nursery) -> None:
    """Nodes that are listed and do not answer are passed over; a session that breaks is followed by another."""
    broken, good = await peer(nursery, hang_up), await peer(nursery, say_nothing)
    asked = 0
    lost: list[str] = []

    async def find() -> list[str]:
        nonlocal asked
        asked += 1
        return ["ws://127.0.0.1:1", broken if asked == 1 else good]

    async def converse(client: object) -> None:
        if asked == 1:
            await client.receive()  # type: ignore[attr-defined]

    await stay_connected(find, "ann", converse, lost=lost.append)
    assert asked == 2
    assert lost == ["The connection broke."]
    nursery.cancel_scope.cancel()


async def test_a_session_that_ends_for_good_is_not_followed_by_another(nursery: trio.Nursery) -> None:
    """So nobody is told that it is; the error says why."""
    url = await peer(nursery, kick)

    async def find() -> list[str]:
        return [url]

    async def converse(client: Client) -> None:
        await client.receive()

    lost: list[str] = []
    with pytest.raises(Disconnected, match="an operator has closed this session"):
        await stay_connected(find, "ann", converse, lost=lost.append)
    assert lost == []
    nursery.cancel_scope.cancel()


async def test_when_no_node_takes_the_first_session_that_is_the_end(nursery: trio.Nursery) -> None:
    """A person who has forgotten to start a node is told at once."""

    async def find() -> list[str]:
        return ["ws://127.0.0.1:1"]

    async def converse(client: object) -> None:
        raise AssertionError

    with pytest.raises(Unreachable, match="Connection refused"):
        await stay_connected(find, "ann", converse, lost=print)


async def test_what_comes_out_when_a_connection_breaks_cancels_nobody_else() -> None:
    """While the library's reader fails, one task of the body is told so and another one is cancelled.

    That Cancelled belongs to a nursery that is over: whatever nursery it met next would end without a word.
    """
    with trio.CancelScope() as scope:
        scope.cancel()
        try:
            await trio.lowlevel.checkpoint()
        except trio.Cancelled as error:
            stale = error
            assert _reason(BaseExceptionGroup("", [error]), error) is error, "we are to end"
    broken = BaseExceptionGroup("", [Disconnected(1006, ""), BaseExceptionGroup("", [stale])])
    for body, count in ((broken, 1), (BaseExceptionGroup("", [stale]), 0), (stale, 0)):
        reason = _reason(BaseExceptionGroup("", [body]), body)
        assert isinstance(reason, ExceptionGroup if count else Disconnected)
