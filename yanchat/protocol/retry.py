"""When a push that was not acked is due again, and when a row has lived too long. Pure."""

from __future__ import annotations

from random import Random
from typing import NamedTuple


class RetryPolicy(NamedTuple):
    """`first` × `factor`ⁿ seconds with jitter, at most `longest`; after `lifetime` seconds a row is given up."""

    first: float = 5.0
    factor: float = 3.0
    longest: float = 300.0
    lifetime: float = 7 * 86400.0

    def delay(self, attempt: int, rng: Random) -> float:
        """Seconds until a push that has been made `attempt` + 1 times is due again: within ±10 % of the schedule."""
        exact = self.first if attempt == 0 else min(self.first * self.factor ** min(attempt, 64), self.longest)
        return exact * (0.9 + 0.2 * rng.random())
