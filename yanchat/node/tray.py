"""The rows that this node has in memory for one user: items, and the trays that hold the oldest of them.

Rules without I/O.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from msgspec.structs import replace

from yanchat.config import LimitSettings
from yanchat.model import OPEN, Envelope, Notice, Place, Row, Step

HELD_WINDOWS = 4
"""How many windows of rows a tray has in memory; the others are on disk alone."""
LIGHT: Final = 256
"""Characters of a text that a notice keeps, which has no use for them: making it lighter would cost more."""
NEVER = float("inf")


class Item:
    """A row in memory, and where it is in flight: place → (attempt, due at)."""

    __slots__ = (
        "arrived_at",
        "attempts",
        "before",
        "envelope",
        "key",
        "rank",
        "sent",
        "sent_at",
        "settled_at",
        "since",
        "told",
    )

    def __init__(self, envelope: Envelope) -> None:
        """A row that was accepted just now."""
        self.envelope, self.key = envelope, envelope.key
        self.rank = self.told = OPEN
        self.attempts = self.sent_at = self.arrived_at = self.settled_at = 0
        self.before = False
        """The user may have had it from an earlier life of this node."""
        self.sent: dict[Place, tuple[int, float]] = {}
        self.since: float | None = None

    @classmethod
    def read(cls, row: Row, before: bool) -> Item:
        """A row as it stands on disk."""
        item = cls(row.envelope)
        item.rank, item.told, item.before = row.rank, row.told, before
        item.attempts, item.sent_at = row.attempts, row.sent_at
        item.arrived_at, item.settled_at = row.arrived_at, row.settled_at
        return item

    def lighten(self) -> None:
        """It is a notice from now on, and takes no more room than one, in memory and in the window."""
        if len(self.envelope.text) > LIGHT:
            self.envelope = replace(self.envelope, text="")

    def notice(self) -> Notice:
        envelope = self.envelope
        return Notice(
            envelope.order,
            envelope.message_id,
            envelope.recipient,
            envelope.sender,
            envelope.request_id,
            self.rank,
            self.settled_at,
            envelope.traceparent,
        )

    def step(self, told_at: int = 0) -> Step:
        """All that has happened to the row, to be written."""
        return Step(
            self.envelope.order,
            self.rank,
            self.told,
            self.attempts,
            self.sent_at,
            self.arrived_at,
            self.settled_at,
            told_at,
        )


class Bounds(NamedTuple):
    """Of rows: how many, and the characters of all their texts."""

    rows: int
    size: int

    def has_room(self, rows: int, size: int) -> bool:
        """Whether one more may come to so many."""
        return rows < self.rows and (size < self.size or not rows)


def window_of(limits: LimitSettings) -> Bounds:
    return Bounds(limits.window, limits.window_bytes)


def held_of(limits: LimitSettings) -> Bounds:
    """What a tray has in memory. Never less than a window, or it would be read again and again."""
    return Bounds(HELD_WINDOWS * limits.window, HELD_WINDOWS * limits.window_bytes)


class TrayRows:
    """The oldest rows of one tray, by order; those in flight come first.

    While a load is under way, `missed` and `left` say what it cannot know.
    """

    __slots__ = (
        "changed",
        "complete",
        "flying",
        "flying_bytes",
        "held",
        "left",
        "loading",
        "missed",
        "mixed",
        "rows",
        "size",
    )

    def __init__(self, complete: bool, held: Bounds) -> None:
        self.rows: dict[int, Item] = {}
        self.size = 0
        """Of the texts of all rows."""
        self.complete, self.held = complete, held
        self.flying = self.flying_bytes = 0
        """How many of the first rows are within the window, and the size of their texts."""
        self.changed = False
        """Rows have changed otherwise than by coming last and going: all of the window is to be looked at."""
        self.mixed = False
        """Older rows have come, adopted, before some in flight: those are perhaps not in the window any more."""
        self.loading = self.missed = False
        self.left: set[int] = set()

    @property
    def empty(self) -> bool:
        return self.complete and not self.rows and not self.loading

    @property
    def oldest(self) -> float:
        """Since when the first row is in flight."""
        first = next(iter(self.rows.values()), None)
        return NEVER if first is None or first.since is None else first.since

    def put(self, item: Item) -> bool:
        """Take a new row, if it belongs to the oldest; else it stays on disk alone. One that is here starts anew."""
        if item.envelope.order in self.rows:
            self.rows[item.envelope.order], self.changed = item, True
            return True
        if self.complete and not self.loading and self.held.has_room(len(self.rows), self.size):
            self.rows[item.envelope.order] = item
            self.size += len(item.envelope.text)
            return True
        self.miss()
        return False

    def miss(self) -> None:
        """There is a row that is on disk alone."""
        self.complete, self.missed = False, True

    def drop(self, order: int) -> None:
        item = self.rows.pop(order, None)
        if item is not None:
            self.size -= len(item.envelope.text)
            if item.sent:
                self.flying -= 1
                self.flying_bytes -= len(item.envelope.text)
                self.changed |= self.mixed
        if self.loading:
            self.left.add(order)

    def start_load(self) -> None:
        self.loading, self.missed, self.left = True, False, set()

    def end_load(self, items: Sequence[Item], asked: Bounds, read: Bounds) -> list[Item]:
        """Merge what was read, oldest first; the items that are new here.

        `read`: how many rows the disk had, and the size of their texts there, of at most as many as were `asked` for.
        """
        new = [item for item in items if item.envelope.order not in self.rows and item.envelope.order not in self.left]
        last_in_flight = max((order for order, item in self.rows.items() if item.sent), default=0)
        self.mixed |= any(item.envelope.order < last_in_flight for item in new)
        for item in new:
            self.rows[item.envelope.order] = item
            self.size += len(item.envelope.text)
        self.rows = dict(sorted(self.rows.items()))
        self.complete = not self.missed and asked.has_room(*read)
        self.loading, self.left, self.changed = False, set(), True
        return new

    def give_up_load(self) -> None:
        """The store could not be read."""
        self.complete = self.loading = False

    def wants_load(self, window: Bounds) -> bool:
        return not self.complete and not self.loading and window.has_room(len(self.rows), self.size)
