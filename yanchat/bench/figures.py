"""What a run has measured, and what is told of it. Times are seconds; no I/O."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

BUCKETS_A_DECADE = 5
"""Of the histogram: each bound is 1.58 times the one before."""


@dataclass(slots=True)
class Figures:
    """Filled while a run goes on."""

    latencies: array[float] = field(default_factory=lambda: array("d"))
    """Of each loop that closed in the measured time."""
    frames: int = 0
    """Text frames to and from the clients meanwhile."""
    took: float = 0.0
    errors: Counter[str] = field(default_factory=Counter)
    """What went wrong, as a sentence, and how often."""
    unfinished: int = 0
    """Loops that were open when the time was over and did not close in the time after."""
    logins: int = 0
    login_took: float = 0.0


class Bucket(NamedTuple):
    below: float
    """Seconds."""
    times: int


def percentile(ascending: Sequence[float], share: float) -> float:
    """The least value that `share` of all do not exceed (nearest rank); 0 of none.

    >>> percentile([1.0, 2.0, 3.0, 4.0], 0.5), percentile([1.0, 2.0, 3.0, 4.0], 0.99), percentile([], 0.5)
    (2.0, 4.0, 0.0)
    """
    if not ascending:
        return 0.0
    return ascending[max(0, math.ceil(len(ascending) * share) - 1)]


def histogram(values: Sequence[float]) -> list[Bucket]:
    """How many values are below each bound and not below the one before; bounds grow evenly on a logarithmic scale.

    >>> histogram([0.001, 0.0011, 0.002])
    [Bucket(below=0.0015848931924611134, times=2), Bucket(below=0.002511886431509582, times=1)]
    """
    counts = Counter(math.floor(math.log10(max(value, 1e-6)) * BUCKETS_A_DECADE + 1e-9) for value in values)
    if not counts:
        return []
    return [Bucket(10 ** ((step + 1) / BUCKETS_A_DECADE), counts[step]) for step in range(min(counts), max(counts) + 1)]
