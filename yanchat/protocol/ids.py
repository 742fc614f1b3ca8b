"""Ids: the order of acceptance, message ids of version 7 and 8, session ids. Pure; time and chance are arguments."""

from __future__ import annotations

import datetime
from hashlib import blake2b
from random import Random

from yanchat.model import MessageId, Node, OpenId, SessionId

COUNTER_BITS = 16
LAST_ORDER = (1 << 62) - 1
_MASK_128 = (1 << 128) - 1


class Orders:
    """Gives orders: 48 bits of milliseconds, 16 bits of counter; ascending whatever the clock does."""

    def __init__(self, last: int) -> None:
        self.last = last

    def take(self, now_ms: int, count: int = 1) -> int:
        """The first of `count` consecutive orders."""
        first = max(self.last + 1, now_ms << COUNTER_BITS)
        self.last = first + count - 1
        return first


def order_text(order: int) -> str:
    """16 hex digits, as on the wire."""
    return f"{order:016x}"


def message_id_from_order(order: int, rng: Random) -> MessageId:
    """A UUIDv7 (RFC 9562, 5.7) that carries the whole order, so that a row is found without an index of ids."""
    milliseconds, counter = order >> COUNTER_BITS, order & 0xFFFF
    value = (
        (milliseconds << 80)
        | (7 << 76)
        | ((counter >> 4) << 64)
        | (0b10 << 62)
        | ((counter & 0xF) << 58)
        | rng.getrandbits(58)
    )
    return MessageId(f"{value:032x}")


def order_from_message_id(message_id: str) -> int:
    """The order that a UUIDv7 of ours carries; 0 for other ids. Another node's ids give an order of that node.

    Clients may name any id: what would be an order after the year 4000 is none, and all fit into SQLite's integers.
    """
    if message_id[12:13] != "7":
        return 0
    value = int(message_id, 16)
    counter = ((value >> 64) & 0xFFF) << 4 | (value >> 58) & 0xF
    order = (value >> 80) << COUNTER_BITS | counter
    return order if order <= LAST_ORDER else 0


def message_id_from_request(sender: str, request_id: str, file_type: int, text: str) -> MessageId:
    """A UUIDv8 (RFC 9562, 5.8) that follows from the request alone, on every node and at any time."""
    content = b"\0".join(part.encode() for part in (sender, request_id, str(file_type), text))
    value = int.from_bytes(blake2b(content, digest_size=16).digest(), "big")
    value = value & ~(0xF << 76) | (8 << 76)
    value = value & ~(0b11 << 62) | (0b10 << 62)
    return MessageId(f"{value & _MASK_128:032x}")


def request_id(message_id: MessageId) -> str:
    """For a message whose sender named no request: its own id, in the usual form of a UUID."""
    return f"{message_id[:8]}-{message_id[8:12]}-{message_id[12:16]}-{message_id[16:20]}-{message_id[20:]}"


def is_message_id(text: str) -> bool:
    """32 lower-case hex digits."""
    return len(text) == 32 and not text.strip("0123456789abcdef")


def parse_message_id(text: str) -> MessageId | None:
    """The id as a person writes it: in whatever case, and perhaps in the usual form of a UUID. None: it is none.

    >>> parse_message_id(" C41C4561-1AF4-4A36-A79A-93D5193AA116 ")
    'c41c45611af44a36a79a93d5193aa116'
    """
    text = text.strip().lower()
    if [len(part) for part in text.split("-")] == [8, 4, 4, 4, 12]:
        text = text.replace("-", "")
    return MessageId(text) if is_message_id(text) else None


def openid_of(session_id: SessionId) -> OpenId:
    """Whose session that is: an address ends with its port, and only then comes the openid."""
    return OpenId(session_id.rpartition("_")[0].partition(":")[2].partition("_")[2])


class SessionIds:
    """Gives session ids, never one twice: their seconds never go back, nor below what an earlier process used.

    They are seconds of UTC: a time zone with summer time has one hour twice.
    """

    def __init__(self, node: Node, first_second: int) -> None:
        self._node = node
        self._second = first_second
        self._given: dict[OpenId, int] = {}

    def take(self, openid: OpenId, now_ms: int) -> SessionId:
        second = now_ms // 1000
        if second > self._second:
            self._second = second
            self._given.clear()
        count = self._given[openid] = self._given.get(openid, 0) + 1
        stamp = datetime.datetime.fromtimestamp(self._second, datetime.UTC).strftime("%Y%m%d%H%M%S")
        suffix = f"-{count}" if count > 1 else ""
        return SessionId(f"{self._node}_{openid}_{stamp}{suffix}")
