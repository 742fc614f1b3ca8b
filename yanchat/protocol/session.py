"""One client's conversation: frames in, events out. A synchronous state machine without socket, clock or store.

Rule 1: everything that a client sends has a defined answer, and all that decides it lives here.
Rule 2: three frames in a row that are not understood end the conversation (1008); one good frame forgives them.
Rule 3: sends over the rate are refused (429), never stored and never silently dropped.
"""

from __future__ import annotations

import msgspec

from yanchat.errors import Refused
from yanchat.protocol import frames
from yanchat.protocol.frames import Ack, Heartbeat, Send

BAD_FRAMES_IN_A_ROW = 3


class Refusal(msgspec.Struct, frozen=True):
    """Answer with a type 0 of this status; nothing is stored. `hang_up`: then close with 1008."""

    refused: Refused
    text: str = ""
    request_id: str | None = None
    hang_up: bool = False


Event = Send | Ack | Heartbeat | Refusal


class Allowance:
    """A token bucket: `rate` a second on the long run, about twice that at once; a rate of 0 allows everything."""

    __slots__ = ("_at", "_left", "rate")

    def __init__(self, rate: float) -> None:
        self.rate, self._left, self._at = rate, 2 * rate, 0.0

    def take(self, amount: float, now: float) -> float:
        """Take it (0), or say how many seconds to wait before it is there (nothing is taken then)."""
        if not self.rate:
            return 0.0
        if amount <= self._left and now < self._at + 1.0:  # filled up once a second as long as there is enough
            self._left -= amount
            return 0.0
        self._left = min(2 * self.rate, self._left + (now - self._at) * self.rate)
        self._at = now
        amount = min(amount, 2 * self.rate)
        if amount <= self._left:
            self._left -= amount
            return 0.0
        return (amount - self._left) / self.rate


class Conversation:
    """What one client has said so far, as far as it matters for what it says next."""

    __slots__ = ("_bad", "_bytes", "_messages")

    def __init__(self, messages_per_second: float, bytes_per_second: float) -> None:
        self._bad = 0
        self._messages, self._bytes = Allowance(messages_per_second), Allowance(bytes_per_second)

    def receive(self, data: bytes | str, now: float) -> Event:
        """Understand one text frame (UTF-8 already checked); `now` in monotonic seconds. Never raises."""
        try:
            frame = frames.decode(data)
        except Refused as refused:
            self._bad += 1
            return Refusal(refused, *frames.glimpse(data), hang_up=self._bad >= BAD_FRAMES_IN_A_ROW)
        self._bad = 0
        if type(frame) is Send:
            wait = self._messages.take(1, now) or self._bytes.take(len(data) * len(frame.recipients), now)
            if wait:
                too_fast = Refused(429, "Too many messages; send more slowly.", retry_after=int(wait) + 1)
                return Refusal(too_fast, frame.text, frame.request_id)
        return frame
