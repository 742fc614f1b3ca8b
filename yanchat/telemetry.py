"""What one node counts and measures, and what is logged of a trouble; imported by whoever counts.

All of it is plain numbers, so that counting costs next to nothing; `admin/metrics.py` says what they are called.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import structlog

from yanchat.trail import Trail

ACCEPT_MS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
LOOP_MS: Final = (*ACCEPT_MS, 30_000, 60_000, 600_000, 3_600_000, 86_400_000, 604_800_000)
COMMIT_SECONDS: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
LAG_SECONDS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
BATCH: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


class Histogram:
    """How many values lay up to each bound, and their sum. One thread observes; any may read."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """Of values up to each bound and above the one before; the last is of those above all."""
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


@dataclass(slots=True)
class Counters:
    """One for each node; every part counts into the one it was given. Numbers only grow."""

    accepted: int = 0
    """Rows stored: one for each (message, recipient)."""
    duplicates: int = 0
    """Sends that were there already, and pushes that were acked before."""
    pushed: int = 0
    redelivered: int = 0
    acked: int = 0
    """Acks recorded here for users here."""
    delivered: int = 0
    """Rows of ours that were acked."""
    expired: int = 0
    told: int = 0
    refused: Counter[int] = field(default_factory=Counter)
    """Sends answered with another status than 200, by status."""
    bus_published: int = 0
    """Records handed to the bus."""
    bus_unreadable: int = 0
    """Records of an unknown kind or form, ignored."""
    bus_failed: int = 0
    """Batches of records that perhaps were not stored."""
    registry_failed: int = 0
    store_failed: int = 0

    trail: Trail | None = None
    """Whom to tell what becomes of each message; None when nobody wants to know."""

    accept_ms: Histogram = field(default_factory=partial(Histogram, ACCEPT_MS))
    """Of each message, from its coming to its receipt."""
    loop_ms: Histogram = field(default_factory=partial(Histogram, LOOP_MS))
    """Of each row of ours that was acked, from its acceptance to the ack's coming."""
    accept_batch: Histogram = field(default_factory=partial(Histogram, BATCH))
    """Messages that one commit accepts."""
    commit_seconds: Histogram = field(default_factory=partial(Histogram, COMMIT_SECONDS))
    """Of the message table, from the start of a writing transaction until it is on disk; its lane observes."""
    loop_lag_seconds: Histogram = field(default_factory=partial(Histogram, LAG_SECONDS))
    """How much later than asked the loop woke a sleeper."""


class Episode:
    """Something that fails for a while: logged when it begins and when it is over, not each time it fails."""

    def __init__(self, event: str) -> None:
        self._event, self._times = event, 0

    def failed(self, error: Exception) -> None:
        self._times += 1
        if self._times == 1:
            structlog.get_logger().error(f"{self._event}_fails", error=str(error))

    def worked(self) -> None:
        if self._times:
            structlog.get_logger().info(f"{self._event}_works_again", failed_times=self._times)
            self._times = 0
