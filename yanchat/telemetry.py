"""Counters of one node, each a number that only grows, and what is logged of a trouble; imported by whoever counts."""

from __future__ import annotations

from dataclasses import dataclass

import structlog


@dataclass(slots=True)
class Counters:
    """One for each node; every part counts into the one it was given."""

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
    refused: int = 0
    """Sends answered with another status than 200."""
    bus_unreadable: int = 0
    """Records of an unknown kind or form, ignored."""
    bus_failed: int = 0
    """Batches of records that perhaps were not stored."""
    registry_failed: int = 0
    store_failed: int = 0


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
