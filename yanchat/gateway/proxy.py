"""A client's address as a trusted proxy tells it: X-Forwarded-For, or the PROXY protocol. From others neither counts.

The PROXY protocol is HAProxy's (proxy-protocol.txt), versions 1 and 2.
"""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from typing import Final, NamedTuple

from yanchat.config import ProxySettings
from yanchat.errors import Refused

LARGEST: Final = 2048
"""Bytes of a PROXY header, with all that version 2 may say besides the addresses."""
_LINE: Final = re.compile(rb"PROXY (?:UNKNOWN[^\r\n]*|TCP[46] (?P<source>\S+) \S+ \d{1,5} \d{1,5})\r\n")
_LONGEST_LINE: Final = 107
"""Bytes, with its end."""
_SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
_HEAD: Final = 16
_INET, _INET6 = 1, 2
_PORT: Final = re.compile(r"\[([^\]]+)\](?::\d+)?|([^:]+):\d+")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Announced(NamedTuple):
    """What a PROXY header says: the client's address, "" when it says none; and its length."""

    address: str
    length: int


class Proxies:
    """Whom to believe, and in which of the two forms."""

    def __init__(self, settings: ProxySettings) -> None:
        self._networks = [ipaddress.ip_network(network) for network in settings.trusted]
        self.announce = settings.header == "proxy-protocol"
        """A trusted proxy begins each connection with a PROXY header."""
        self.trusts = lru_cache(10_000)(self._trusts)

    def _trusts(self, address: str) -> bool:
        """Whether what comes from this address is believed."""
        found = _address(address) if self._networks else None
        return found is not None and any(found in network for network in self._networks)

    def forwarded(self, peer: str, header: str) -> str:
        """Who asks, by the X-Forwarded-For of a trusted peer: the last address in it that no trusted proxy has.

        What stands before that anybody may have written.
        """
        for part in reversed(header.split(",")):
            found = _address(part.strip())
            if found is None:
                break
            peer = str(found)
            if not self.trusts(peer):
                break
        return peer


def read_announcement(data: bytes) -> Announced | None:
    """The PROXY header at the beginning; None when it is not all here yet. Raises Refused when there is none."""
    if data.startswith(_SIGNATURE[: len(data)]):
        return _binary(data)
    end = data.find(b"\n")
    if end < 0 and len(data) < _LONGEST_LINE and b"PROXY ".startswith(data[:6]):
        return None
    match = _LINE.match(data, 0, _LONGEST_LINE)
    if match is None:
        raise _no_header()
    if match["source"] is None:
        return Announced("", match.end())
    return Announced(_checked(match["source"].decode(errors="replace")), match.end())


def plain_address(text: str) -> str:
    """An address as it is compared and shown: an IPv4 address that came over an IPv6 socket is that IPv4 address."""
    return text[7:] if text.startswith("::ffff:") and "." in text else text


def _binary(data: bytes) -> Announced | None:
    if len(data) < _HEAD:
        return None
    length = _HEAD + int.from_bytes(data[14:16], "big")
    version, command, family = data[12] >> 4, data[12] & 0x0F, data[13] >> 4
    if version != 2 or command > 1 or length > LARGEST:
        raise _no_header()
    if len(data) < length:
        return None
    size = {_INET: 4, _INET6: 16}.get(family)
    if command == 0 or size is None:  # LOCAL: the proxy looks whether we are alive
        return Announced("", length)
    if length < _HEAD + 2 * size + 4:
        raise _no_header()
    return Announced(_checked(str(ipaddress.ip_address(data[_HEAD : _HEAD + size]))), length)


def _checked(text: str) -> str:
    found = _address(text)
    if found is None:
        raise _no_header()
    return str(found)


def _address(text: str) -> Address | None:
    """An address, also one with a port behind it."""
    match = _PORT.fullmatch(text)
    if "%" in text:  # the name of an interface: of whoever wrote it, and any text
        return None
    try:
        found = ipaddress.ip_address((match[1] or match[2]) if match else text)
    except ValueError:
        return None
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return mapped or found


def _no_header() -> Refused:
    return Refused(400, "A PROXY header is expected here (proxy.header of this node), and this is none.")
