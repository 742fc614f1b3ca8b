"""A client of bare bytes: it can say what no library would, and shows exactly what comes back."""

from __future__ import annotations

import json
import select
import socket
import struct
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

from tests.running import DEADLINE

CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
UPGRADE = {
    "Host": "127.0.0.1",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
}


def frame(
    opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, mask: bytes = b"\x12\x34\x56\x78"
) -> bytes:
    """One frame as a client sends it; with an empty `mask`, as no client may."""
    return header(opcode, len(payload), fin=fin, rsv=rsv, mask=mask) + masked(payload, mask)


def header(opcode: int, length: int, *, fin: bool = True, rsv: int = 0, mask: bytes = b"\x12\x34\x56\x78") -> bytes:
    """The beginning of a frame, mask included, up to its payload."""
    first, bit = fin << 7 | rsv << 4 | opcode, 0x80 if mask else 0
    if length < 126:
        return bytes((first, bit | length)) + mask
    if length < 1 << 16:
        return struct.pack("!BBH", first, bit | 126, length) + mask
    return struct.pack("!BBQ", first, bit | 127, length) + mask


def masked(payload: bytes, mask: bytes) -> bytes:
    if not mask:
        return payload
    return bytes(byte ^ mask[n % 4] for n, byte in enumerate(payload)) if mask != bytes(4) else payload


def text(value: Any) -> bytes:
    """A text frame: of a dict as JSON, of a str or bytes as they are."""
    data = json.dumps(value) if isinstance(value, dict) else value
    return frame(TEXT, data if isinstance(data, bytes) else data.encode(), mask=bytes(4))


def close(code: int | None, reason: str = "") -> bytes:
    return frame(CLOSE, b"" if code is None else struct.pack("!H", code) + reason.encode())


def send(to: str, words: str, **more: Any) -> dict[str, Any]:
    """Type 1."""
    return {"type": 1, "params": {"toMessageId": to, "message": words, "fileType": 0}, **more}


def ack(push: Mapping[str, Any]) -> dict[str, Any]:
    """Type 15 for a type 2."""
    users = push["msg"]["params"]
    names = {"fromUser": users["fromUser"]["openid"], "toUser": users["toUser"]["openid"]}
    return {"type": 15, "params": {"from": "client", "msgid": push["messageId"], **names}}


def kind(message: Mapping[str, Any]) -> int:
    """The type of a frame, also of one in an envelope."""
    return int(message["type"] if "type" in message else message["msg"]["type"])


class Answer(NamedTuple):
    """An HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes


class Closed(Exception):
    """The connection has ended; `code` 1006 when no closing frame came."""

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(f"{code} {reason}")
        self.code, self.reason = code, reason


class Raw:
    """A blocking socket to a node. Reads answer pings by themselves unless `pongs` is false."""

    def __init__(self, url: str, *, source: str = "", pongs: bool = True, receive_buffer: int = 0) -> None:
        parts = urlsplit(url)
        self.sock = socket.socket()
        self.sock.settimeout(DEADLINE)
        if receive_buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if source:
            self.sock.bind((source, 0))
        self.sock.connect((parts.hostname, parts.port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.pongs = pongs
        self.pings: list[bytes] = []
        self.buffer = b""

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def say(self, data: bytes) -> None:
        """Bytes as they are."""
        self.sock.sendall(data)

    def reset(self) -> None:
        """Break the connection: the other side gets a RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def more(self) -> bool:
        """Wait for bytes; false when there will be none."""
        try:
            data = self.sock.recv(1 << 18)
        except ConnectionResetError:
            return False
        self.buffer += data
        return bool(data)

    # -- HTTP ----------------------------------------------------------------------------------------------------------
    def request(
        self, openid: str | None = "ann", *, target: str = "", headers: Mapping[str, str | None] | None = None
    ) -> bytes:
        """An upgrade request; a header that is None is left out."""
        target = target or ("/ws" if openid is None else f"/ws?{urlencode({'openid': openid})}")
        lines = {**UPGRADE, **(headers or {})}
        head = [f"GET {target} HTTP/1.1", *(f"{name}: {value}" for name, value in lines.items() if value is not None)]
        return "\r\n".join(head).encode() + b"\r\n\r\n"

    def answer(self) -> Answer:
        """Read an HTTP answer; its body only when it is no upgrade."""
        while b"\r\n\r\n" not in self.buffer:
            assert self.more(), f"no whole answer, only {self.buffer!r}"
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        version, status, _ = first.split(" ", 2)
        assert version == "HTTP/1.1"
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        if int(status) != 101:
            while self.more():
                pass
        body, self.buffer = (b"", self.buffer) if int(status) == 101 else (self.buffer, b"")
        return Answer(int(status), headers, body)

    def login(self, openid: str = "ann", **more: Any) -> dict[str, Any]:
        """Upgrade; the type 6 that follows."""
        self.say(self.request(openid, **more))
        answer = self.answer()
        assert answer.status == 101, answer
        hello = self.json()
        assert kind(hello) == 6
        return hello

    # -- frames --------------------------------------------------------------------------------------------------------
    def frame(self) -> tuple[int, bytes]:
        """The next frame, opcode and payload. Closed when the connection has ended."""
        while True:
            whole = self._cut()
            if whole is not None:
                return whole
            if not self.more():
                raise Closed(1006)

    def _cut(self) -> tuple[int, bytes] | None:
        data = self.buffer
        if len(data) < 2:
            return None
        assert data[0] & 0xF0 == 0x80, "a node sends whole messages, and no reserved bits"
        assert not data[1] & 0x80, "a node masks nothing"
        length, head = data[1] & 0x7F, 2
        if length >= 126:
            head = 4 if length == 126 else 10
            length = int.from_bytes(data[2:head], "big")
        if len(data) < head + length:
            return None
        self.buffer = data[head + length :]
        return data[0] & 0x0F, data[head : head + length]

    def json(self, wanted: int | None = None) -> dict[str, Any]:
        """The next text frame (of this type, if one is given). Closed when a closing frame comes or the end does."""
        while True:
            opcode, payload = self.frame()
            if opcode == TEXT:
                value: dict[str, Any] = json.loads(payload)
                if wanted is None or kind(value) == wanted:
                    return value
            elif opcode == PING:
                self.pings.append(payload)
                if self.pongs:
                    self.say(frame(PONG, payload))
            elif opcode == CLOSE:
                code = struct.unpack("!H", payload[:2])[0] if payload else 1005
                raise Closed(code, payload[2:].decode())

    def pour(self, data: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
        """Send all this and read meanwhile, as an eager client does; each frame that comes, without an end."""
        parts, left = iter(data), memoryview(b"")
        while True:
            left = left or memoryview(next(parts, b""))
            readable, writable, _ = select.select([self.sock], [self.sock] if left else [], [], DEADLINE)
            assert readable or writable, f"stuck with {len(left)} bytes to send"
            if writable:
                left = left[self.sock.send(left, socket.MSG_DONTWAIT) :]
            if readable and not self.more():
                raise Closed(1006)
            while (whole := self._cut()) is not None:
                yield whole

    def ends(self) -> Closed:
        """Read to the closing frame, answer it, and see the connection end; how it ended."""
        try:
            while True:
                self.json()
        except Closed as closed:
            if closed.code != 1006:
                try:
                    self.say(close(closed.code) if closed.code != 1005 else close(None))
                except OSError:
                    pass
                while self.more():
                    pass
            return closed

    def silent_for(self, seconds: float) -> bool:
        """Whether nothing at all comes in this time."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.sock.settimeout(left)
            try:
                if self.sock.recv(1, socket.MSG_PEEK):
                    return False
            except TimeoutError:
                break
            finally:
                self.sock.settimeout(DEADLINE)
        return True


def talker(url: str, openid: str = "ann", **more: Any) -> Raw:
    """A client that is logged in."""
    raw = Raw(url, **more)
    try:
        raw.login(openid)
    except BaseException:
        raw.sock.close()
        raise
    return raw
