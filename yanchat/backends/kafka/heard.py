"""What librdkafka's statistics say of a topic, so that nobody is asked: its partitions, when their leaders last spoke.

A consumer always has a fetch under way, so a broker that is there answers within `fetch.wait.max.ms` (0.5 s), records
or not; one that is gone leaves its partitions without a leader.
"""

from __future__ import annotations

import time
from typing import Final

import msgspec

STATISTICS_MS: Final = 5000


class Heard:
    """Made and told in the consumer's thread; any may read."""

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._at = time.monotonic()
        self.partitions: set[int] = set()
        """Those that the topic has, as last said; who follows that up empties it."""

    @property
    def age(self) -> float:
        """Seconds since the one that has said nothing for longest spoke, or since this was made."""
        return time.monotonic() - self._at

    def statistics(self, text: str) -> None:
        """For librdkafka's `stats_cb`."""
        told = _DECODER.decode(text)
        idle = {one.nodeid: one.rxidle for one in told.brokers.values() if one.source != "logical" and one.rxidle >= 0}
        topic = told.topics.get(self._topic, _Topic({}))
        self.partitions = {one.partition for one in topic.partitions.values() if one.partition >= 0}
        leaders = {one.leader for one in topic.partitions.values() if one.partition >= 0}
        if leaders and leaders <= idle.keys():
            self._at = max(self._at, time.monotonic() - max(idle[leader] for leader in leaders) / 1e6)

    def not_listened(self, seconds: float) -> None:
        """The thread did something else for so long: that is nobody's silence."""
        self._at += seconds


class _Broker(msgspec.Struct):
    nodeid: int
    source: str
    rxidle: int
    """Microseconds since it was last heard of; -1 for never."""


class _Partition(msgspec.Struct):
    partition: int
    leader: int


class _Topic(msgspec.Struct):
    partitions: dict[str, _Partition]


class _Statistics(msgspec.Struct):
    brokers: dict[str, _Broker]
    topics: dict[str, _Topic]


_DECODER: Final = msgspec.json.Decoder(_Statistics)
