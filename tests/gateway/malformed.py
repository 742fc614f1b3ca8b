"""Nineteen kinds of malformed client: what each says, and how the node ends it."""

from __future__ import annotations

import struct
from typing import NamedTuple

from tests.gateway.raw import BINARY, CLOSE, CONT, PING, TEXT, UPGRADE, frame, header, text


class Malformed(NamedTuple):
    """`logged_in`: it says this as a session, else instead of a request."""

    name: str
    logged_in: bool
    says: bytes
    ends: int | None
    """The HTTP status or the close code that it gets; None: the node waits for more, and ends when it does."""


_FIELDS = "".join(f"{name}: {value}\r\n" for name, value in UPGRADE.items()).encode()
_UPGRADE = b"GET /ws?openid=odd HTTP/1.1\r\n" + _FIELDS
KINDS = (
    Malformed("says nothing", False, b"", None),
    Malformed("half a request", False, _UPGRADE[:100], None),
    Malformed("a TLS hello where there is no TLS", False, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 9, 400),
    Malformed("a request that is no upgrade", False, b"GET /ws?openid=odd HTTP/1.1\r\nHost: x\r\n\r\n", 426),
    Malformed("an upgrade without its key", False, _UPGRADE.replace(b"Sec-WebSocket-Key", b"X") + b"\r\n", 400),
    Malformed("a head without an end", False, _UPGRADE + b"X: " + b"y" * 20_000, 431),
    Malformed("half a frame", True, text('{"type":11}')[:5], None),
    Malformed("a frame that is not masked", True, frame(TEXT, b'{"type":11}', mask=b""), 1002),
    Malformed("a reserved bit", True, frame(TEXT, b'{"type":11}', rsv=4), 1002),
    Malformed("an unknown opcode", True, frame(3, b"x"), 1002),
    Malformed("a ping in fragments", True, frame(PING, b"x", fin=False), 1002),
    Malformed("a ping that is too long", True, frame(PING, b"x" * 126), 1002),
    Malformed("a continuation of nothing", True, frame(CONT, b"x"), 1002),
    Malformed("a frame of a gigabyte", True, header(TEXT, 1 << 30) + b"x" * 50_000, 1009),
    Malformed("a message that is not UTF-8", True, frame(TEXT, b'{"type":11,"x":"\xc3\x28"}'), 1007),
    Malformed("a binary message", True, frame(BINARY, b'{"type":11}'), 1003),
    Malformed("JSON ten thousand levels deep", True, text('{"type":1,"params":' + "[" * 10_000) * 3, 1008),
    Malformed("no JSON at all", True, text("hello") * 3, 1008),
    Malformed("a closing frame with a code that may not be sent", True, frame(CLOSE, struct.pack("!H", 1005)), 1002),
)
