"""The sessions open on this node, and what each was given and has not acked. Synchronous; sends through outlets."""

from __future__ import annotations

from typing import Protocol

from yanchat.model import MessageId, OpenId

UNACKED_REMEMBERED = 1024
UNTOLD_AT_ONCE = 500
PING_DELAY = 1.0

NoticeKey = tuple[MessageId, OpenId, int]
"""Message id, recipient, rank: a 200 after a 410 is another notice."""


class Outlet(Protocol):
    """What a session needs of its connection. Nothing here blocks or raises, also after the connection has ended."""

    @property
    def congested(self) -> bool:
        """The outgoing buffer is at least half full: pushes wait until `Session.drained` is called."""

    def send(self, frame: bytes) -> None:
        """Queue one text frame."""

    def ping(self, payload: bytes) -> None:
        """Queue a ping behind all that was sent so far; its answer comes to `Session.pong`."""

    def close(self, code: int, reason: str) -> None:
        """Start the closing handshake behind all that was sent so far."""

    def resume(self) -> None:
        """Go on reading: what made `Session.receive` answer False has passed."""
