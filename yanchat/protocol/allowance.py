"""How much may be sent: token buckets, of one connection and of all connections of a user or from an address together.

Synchronous; `now` is in monotonic seconds.
"""

from __future__ import annotations

from collections import deque
from typing import Final

BURST_SECONDS: Final = 2.0
"""So many seconds of the rate may be sent at once; and in so many an empty bucket is full again."""


class Allowance:
    """A token bucket: `rate` a second on the long run, about twice that at once; a rate of 0 allows everything.

    What is more than a full bucket holds may go when it is full, and is paid off before the next.
    """

    __slots__ = ("_at", "_left", "rate")

    def __init__(self, rate: float) -> None:
        self.rate, self._left, self._at = rate, BURST_SECONDS * rate, 0.0

    def take(self, amount: float, now: float) -> float:
        """Take it (0), or say how many seconds to wait before it is there (nothing is taken then)."""
        if not self.rate:
            return 0.0
        if amount <= self._left and now < self._at + 1.0:  # filled up once a second as long as there is enough
            self._left -= amount
            return 0.0
        self._left = min(BURST_SECONDS * self.rate, self._left + (now - self._at) * self.rate)
        self._at = now
        enough = min(amount, BURST_SECONDS * self.rate)
        if enough <= self._left:
            self._left -= amount
            return 0.0
        return (enough - self._left) / self.rate

    def full(self, now: float) -> bool:
        """Whether it is as a new one."""
        return self._left + (now - self._at) * self.rate >= BURST_SECONDS * self.rate


class Share:
    """What several connections may send together."""

    __slots__ = ("bytes", "holders", "messages", "whose")

    def __init__(self, whose: str, messages_per_second: float, bytes_per_second: float) -> None:
        self.whose, self.holders = whose, 0
        self.messages, self.bytes = Allowance(messages_per_second), Allowance(bytes_per_second)

    def take(self, size: int, now: float) -> float:
        """Take one message of this size, or say how many seconds to wait."""
        return self.messages.take(1, now) or self.bytes.take(size, now)

    def forgettable(self, now: float) -> bool:
        """Whether nobody would notice that it is a new one."""
        return not self.holders and self.messages.full(now) and self.bytes.full(now)


class Shares:
    """The shares of all who are here, by user or by address.

    One that nobody holds any more is kept until it would be full again: who comes back at once gains nothing.
    """

    def __init__(self, whose: str, messages_per_second: float, bytes_per_second: float) -> None:
        self._whose, self._messages, self._bytes = whose, messages_per_second, bytes_per_second
        self._shares: dict[str, Share] = {}
        self._left: deque[tuple[float, str]] = deque()

    def join(self, key: str, now: float) -> tuple[Share, ...]:
        """The share of one more connection, until it leaves; none when there is no limit."""
        if not self._messages and not self._bytes:
            return ()
        while self._left and self._left[0][0] < now - BURST_SECONDS:
            _, left = self._left.popleft()
            gone = self._shares.get(left)
            if gone is not None and gone.forgettable(now):
                del self._shares[left]
            elif gone is not None and not gone.holders:
                self._left.append((now, left))
        share = self._shares.get(key)
        if share is None:
            share = self._shares[key] = Share(self._whose, self._messages, self._bytes)
        share.holders += 1
        return (share,)

    def leave(self, key: str, now: float) -> None:
        """One connection that has joined goes."""
        share = self._shares.get(key)
        if share is not None:
            share.holders -= 1
            if not share.holders:
                self._left.append((now, key))

    def __len__(self) -> int:
        return len(self._shares)
