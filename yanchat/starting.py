"""What a node that starts says of what it misses: better read in its log than learnt from its clients."""

from __future__ import annotations

from typing import Final

import structlog
import trio

from yanchat.backends.sqlite.store import Store
from yanchat.config import Settings
from yanchat.ports import Bus

SILENT_AT_MOST: Final = 10.0
"""Seconds; a bus that is there is heard of sooner."""


def warn_of_room(store: Store, reserve: int) -> None:
    """Without room it accepts nothing."""
    if (free := store.free_bytes()) < reserve:
        fix = "make room: until then nothing is accepted (503), and what was accepted is delivered"
        structlog.get_logger().warning("disk.nearly_full", free_bytes=free, disk_reserve_bytes=reserve, fix=fix)


async def warn_of_silence(bus: Bus, settings: Settings) -> None:
    """Say once that it waits for Kafka; a registry that is not there says so by itself."""
    if settings.node.profile != "cluster":
        return
    while bus.silent() < SILENT_AT_MOST:  # noqa: ASYNC110 - nobody tells when it is heard
        await trio.sleep(1.0)
    brokers = ",".join(settings.kafka.brokers)
    error = f"Kafka does not answer at {brokers}; look at the brokers, or at kafka.brokers."
    structlog.get_logger().warning("bus.not_there", error=error)
