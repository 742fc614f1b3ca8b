"""No client of admin HTTP, however it behaves, holds up its node, ends it, or keeps others from being answered."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.admin.asking import address_of, admin, raw, socket_of, token_file, with_tcp
from tests.running import RunningNode, wait_until

TOKEN = "0123456789abcdef-0123456789"
WHOLE = b"GET /outbox?limit=10000 HTTP/1.1\r\nHost: n\r\n\r\n"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    directory = tmp_path_factory.mktemp("t")
    with RunningNode(directory / "s", env=with_tcp(token_file(directory, TOKEN))) as running:
        fill(running)
        yield running


def fill(running: RunningNode) -> None:
    """So many rows that an answer with all of them fits into no socket's buffer."""
    with admin(running) as http:
        for number in range(30):
            order = {"to": [f"u{n}" for n in range(100)], "message": str(number)}
            assert http.post("/message/send", json=order).status_code == 200


def serves(running: RunningNode) -> bool:
    with admin(running) as http:
        return http.get("/healthz").status_code == 200


def tcp_of(running: RunningNode) -> tuple[str, int]:
    host, _, port = address_of(running).rpartition(":")
    return host, int(port)


def test_a_client_that_reads_nothing_does_not_keep_its_node_from_stopping(tmp_path: Path) -> None:
    """It is stopped like any other, with exit code 0."""
    with RunningNode(tmp_path / "s") as running:
        fill(running)
        with raw(running) as stuck:
            stuck.sendall(WHOLE)
            assert stuck.recv(1000).startswith(b"HTTP/1.1 200")
            assert serves(running)
            assert running.terminate() == 0


GARBAGE = {
    "nothing": b"",
    "no-http": b"\x16\x03\x01" + os.urandom(500),
    "half-a-line": b"GET /heal",
    "no-host": b"GET /healthz HTTP/1.1\r\n\r\n",
    "endless-line": b"GET /" + b"x" * 300_000,
    "endless-headers": b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 50_000,
    "two-lengths": b"POST /kick HTTP/1.1\r\nHost: n\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
    "smuggled": b"POST /kick HTTP/1.1\r\nHost: n\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"0\r\n\r\nGET",
    "no-length": b"POST /kick HTTP/1.1\r\nHost: n\r\nContent-Length: -5\r\n\r\n",
    "bad-chunk": b"POST /kick HTTP/1.1\r\nHost: n\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "websocket": b"GET /ws HTTP/1.1\r\nHost: n\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    "http2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(200),
    "http2-nonsense": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00\xff\xff\xff\xff\xff",
    "pipelined": WHOLE * 50,
}


@pytest.mark.parametrize("sent", GARBAGE.values(), ids=GARBAGE.keys())
@pytest.mark.parametrize("over_tcp", [False, True])
def test_whatever_is_said_the_node_goes_on(node: RunningNode, sent: bytes, over_tcp: bool) -> None:
    with ExitStack() as stack:
        if over_tcp:
            connection = stack.enter_context(socket.create_connection(tcp_of(node), timeout=20))
        else:
            connection = stack.enter_context(raw(node))
        try:
            connection.sendall(sent)
            connection.settimeout(0.3)
            connection.recv(1 << 16)
        except (TimeoutError, ConnectionError):
            pass
        assert serves(node)
    assert serves(node)
    assert node.process is not None
    assert node.process.poll() is None


def test_more_connections_than_there_may_be_are_refused_in_a_sentence(tmp_path: Path) -> None:
    """When all of them have shown the token; they leave the Unix socket free."""
    with ExitStack() as stack:
        node = stack.enter_context(RunningNode(tmp_path / "s", env=with_tcp(token_file(tmp_path, TOKEN))))
        there = tcp_of(node)
        waiting = b"POST /message/send HTTP/1.1\r\nHost: n\r\nAuthorization: Bearer %b\r\nContent-Length: 9\r\n\r\n{"

        def take_one() -> None:
            taken = stack.enter_context(socket.create_connection(there, timeout=20))
            with suppress(ConnectionError):
                taken.sendall(waiting % TOKEN.encode())

        def refused() -> bool:
            take_one()  # for one that was not known yet, and had to go for the next
            with socket.create_connection(there, timeout=20) as one_more:
                one_more.sendall(b"GET /healthz HTTP/1.1\r\nHost: n\r\n\r\n")
                answer = one_more.recv(1 << 16)
            return all(part in answer for part in (b"HTTP/1.1 503", b"Retry-After: 1", b"Too many connections"))

        for _ in range(127):
            take_one()
        wait_until(refused, "all 128 are known, and the next is refused")
        assert serves(node)


def test_strangers_keep_nobody_out_who_has_the_token(tmp_path: Path) -> None:
    """However many they are and however slowly they speak: the oldest of them goes. Who has shown it stays."""
    with ExitStack() as stack:
        node = stack.enter_context(RunningNode(tmp_path / "s", env=with_tcp(token_file(tmp_path, TOKEN))))
        there = tcp_of(node)
        with admin(node, TOKEN) as early, admin(node, TOKEN) as late:
            assert early.get("/healthz").status_code == 200
            dripping = [stack.enter_context(socket.create_connection(there, timeout=20)) for _ in range(200)]
            for connection in dripping:
                with suppress(ConnectionError):  # it has gone already
                    connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: n\r\n")
            assert late.get("/healthz").status_code == 200
            assert early.get("/healthz").status_code == 200
        assert dripping[0].recv(1) == b""
        dripping[-1].sendall(b"\r\n")
        assert dripping[-1].recv(1000).startswith(b"HTTP/1.1 401")


def test_descriptors_return_to_where_they_were(node: RunningNode) -> None:
    """After two hundred clients that leave in the midst of their question, or of the answer."""
    assert serves(node)
    fds = Path(f"/proc/{node.pid}/fd")
    before = len(list(fds.iterdir()))
    for number in range(200):
        with raw(node) as connection:
            connection.sendall(WHOLE if number % 2 else WHOLE[:20])
    # who is answered stood behind all of them
    wait_until(lambda: serves(node) and len(list(fds.iterdir())) <= before + 1, "the descriptors are closed")


def test_a_connection_counts_no_longer_than_its_client_stays(node: RunningNode) -> None:
    """A program that connects anew for each question may do so as often as it likes."""
    for _ in range(300):
        assert serves(node)


def test_curl_may_wait_for_a_word_before_it_sends_its_body(node: RunningNode) -> None:
    """Expect: 100-continue (RFC 9110, 10.1.1)."""
    with raw(node) as connection:
        body = b'{"to": "bob", "message": "hello"}'
        head = b"POST /message/send HTTP/1.1\r\nHost: n\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
        connection.sendall(head % len(body))
        assert connection.recv(1000).startswith(b"HTTP/1.1 100")
        connection.sendall(body)
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")


def test_the_socket_is_for_its_own_user_alone(node: RunningNode) -> None:
    assert socket_of(node).stat().st_mode & 0o777 == 0o600


def test_a_socket_that_a_dead_node_left_is_served_again(tmp_path: Path) -> None:
    with RunningNode(tmp_path / "s") as running:
        running.restart()
        assert serves(running)
