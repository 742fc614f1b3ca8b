"""The plainest of WebSocket clients, which reads only when it is told to; and many of them that read too slowly."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from typing import Literal

Kind = Literal["drip", "deaf"]
RECEIVE_BUFFER = 4096
AT_ONCE = 100
A_DRIP, DRIPS_A_SECOND = 8192, 2
"""Bytes. With 4 KiB a second a node throws them out (limits.stalled): its kernel says only then that something was
read when a good part of what is under way was."""
ALIVE_EVERY = 10
"""Seconds; a client that says nothing for a minute is thrown out for that."""


class Plain:
    """One connection, blocking."""

    def __init__(self, port: int, openid: str, receive_buffer: int | None = None) -> None:
        self.sock = socket.socket()
        if receive_buffer is not None:  # before it is connected: the window goes by it
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.settimeout(30)
        self.sock.connect(("127.0.0.1", port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.sendall(
            f"GET /ws?openid={openid} HTTP/1.1\r\nHost: node\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self._data = bytearray()
        while b"\r\n\r\n" not in self._data:
            self._more()
        head = bytes(self._data[: self._data.index(b"\r\n\r\n")])
        del self._data[: len(head) + 4]
        if b" 101 " not in head:
            raise RuntimeError(f"The node does not let {openid} in: {head.decode()}")

    def send(self, *payloads: bytes) -> None:
        """Each as a text frame."""
        self.sock.sendall(b"".join(map(_masked, payloads)))

    def wait_for(self, part: bytes) -> bytes:
        """The next text frame with this in it; pings are answered."""
        while True:
            opcode, payload = self._frame()
            if opcode == 9:
                self.sock.sendall(_masked(payload, 10))
            elif opcode == 8:
                raise RuntimeError(f"The node has closed the connection: {payload[2:].decode()}")
            elif part in payload:
                return payload

    def _frame(self) -> tuple[int, bytes]:
        self._have(2)
        opcode, size, head = self._data[0] & 15, self._data[1], 2
        if size >= 126:
            head = 4 if size == 126 else 10
            self._have(head)
            size = int.from_bytes(self._data[2:head])
        self._have(head + size)
        payload = bytes(self._data[head : head + size])
        del self._data[: head + size]
        return opcode, payload

    def _have(self, size: int) -> None:
        while len(self._data) < size:
            self._more()

    def _more(self) -> None:
        data = self.sock.recv(262_144)
        if not data:
            raise RuntimeError("The node has closed the connection.")
        self._data += data


def _masked(payload: bytes, opcode: int = 1) -> bytes:
    """A client's frame under the key 0, which leaves the payload as it is (RFC 6455, 5.3)."""
    size = len(payload)
    head = bytes((0x80 | opcode, 0x80 | size)) if size < 126 else bytes((0x80 | opcode, 0xFE)) + size.to_bytes(2)
    return head + b"\0\0\0\0" + payload


class SlowOnes:
    """Clients that never ack. `drip` reads a little each second, `deaf` nothing; who is thrown out does not come again.

    Most do not know that they were: the end stands behind what they have not read.
    """

    def __init__(self, port: int, number: int, kind: Kind) -> None:
        self.names = [f"{kind}-{n}" for n in range(number)]
        self._over = threading.Event()
        self._clients = [Plain(port, name, RECEIVE_BUFFER) for name in self.names]
        for client in self._clients:
            client.sock.setblocking(False)
        self._thread = threading.Thread(target=self._drip if kind == "drip" else self._over.wait, daemon=True)
        self._thread.start()

    def _drip(self) -> None:
        drips = 0
        while not self._over.wait(1 / DRIPS_A_SECOND):
            drips += 1
            for client in self._clients:
                left = A_DRIP
                with suppress(OSError):
                    while left > 0 and (some := len(client.sock.recv(left))):
                        left -= some
                if drips % (ALIVE_EVERY * DRIPS_A_SECOND) == 0:
                    with suppress(OSError):
                        client.sock.send(_masked(b"", 10))

    def __enter__(self) -> SlowOnes:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        for client in self._clients:
            client.sock.close()


class Pusher:
    """Sends each of these users messages, one each in a turn. Each is a message of its own: no two share a text."""

    def __init__(self, port: int, to: list[str], size: int) -> None:
        self._client, self._to, self._text = Plain(port, "pusher"), to, "x" * size
        self.sent = 0

    def push(self, pace: float = 0.0) -> None:
        """One turn, `AT_ONCE` messages at a time; with `pace` it waits so many seconds after those."""
        for first in range(0, len(self._to), AT_ONCE):
            some = self._to[first : first + AT_ONCE]
            self._client.send(*(_message(name, self._text) for name in some))
            for _ in some:
                answer = self._client.wait_for(b'"type":0')
                if b'"status":200' not in answer:
                    raise RuntimeError(f"The node refuses a message: {answer[-300:].decode()}")
            self.sent += len(some)
            time.sleep(pace)

    def close(self) -> None:
        self._client.sock.close()


def _message(to: str, text: str) -> bytes:
    return f'{{"type":1,"params":{{"toMessageId":"{to}","message":"{text}","fileType":0}}}}'.encode()
