"""Counters of one node, by the names of `docs/`; imported by whoever counts. Each is a number that only grows."""

from __future__ import annotations

from dataclasses import dataclass


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
