"""One client's conversation: frames in, events out. A synchronous state machine without socket, clock or store.

Rule 1: everything that a client sends has a defined answer, and all that decides it lives here.
Rule 2: three frames in a row that are not understood end the conversation (1008); one good frame forgives them.
Rule 3: sends over the rate are refused (429), never stored and never silently dropped.
"""

from __future__ import annotations

import msgspec

from yanchat.errors import Refused
from yanchat.protocol import frames
from yanchat.protocol.allowance import Allowance, Share
from yanchat.protocol.shapes import Ack, Heartbeat, Send

BAD_FRAMES_IN_A_ROW = 3


class Refusal(msgspec.Struct, frozen=True):
    """Answer with a type 0 of this status; nothing is stored. `hang_up`: then close with 1008."""

    refused: Refused
    text: str = ""
    request_id: str | None = None
    hang_up: bool = False


Event = Send | Ack | Heartbeat | Refusal


class Conversation:
    """What one client has said so far, as far as it matters for what it says next."""

    __slots__ = ("_bad", "_bytes", "_messages", "_shares")

    def __init__(self, messages_per_second: float, bytes_per_second: float, shares: tuple[Share, ...] = ()) -> None:
        self._bad = 0
        self.limit(messages_per_second, bytes_per_second, shares)

    def limit(self, messages_per_second: float, bytes_per_second: float, shares: tuple[Share, ...] = ()) -> None:
        """Hold it to these rates from now on; `shares` are those that it has with other connections."""
        self._messages, self._bytes, self._shares = Allowance(messages_per_second), Allowance(bytes_per_second), shares

    def receive(self, data: bytes | str, now: float) -> Event:
        """Understand one text frame (UTF-8 already checked); `now` in monotonic seconds. Never raises."""
        try:
            frame = frames.decode(data)
        except Refused as refused:
            self._bad += 1
            return Refusal(refused, *frames.glimpse(data), hang_up=self._bad >= BAD_FRAMES_IN_A_ROW)
        self._bad = 0
        if type(frame) is Send:
            size = len(data) * len(frame.recipients)
            wait = self._messages.take(1, now) or self._bytes.take(size, now)
            whose = ""
            if not wait and self._shares:
                wait, whose = self._take_shared(size, now)
            if wait:
                too_fast = Refused(429, f"Too many messages{whose}; send more slowly.", retry_after=int(wait) + 1)
                return Refusal(too_fast, frame.text, frame.request_id)
        return frame

    def _take_shared(self, size: int, now: float) -> tuple[float, str]:
        for share in self._shares:
            wait = share.take(size, now)
            if wait:
                return wait, share.whose
        return 0.0, ""
