"""What this node holds for one user, as it is in memory while something is in flight. Rules without I/O.

A mailbox has two trays: open messages to the user, and notices that he has not been told of. Each holds the oldest
rows; a tray that is not complete has more on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from yanchat.config import LimitSettings
from yanchat.model import OPEN, Envelope, Notice, OpenId, Place, Row, Step
from yanchat.ports import Tray

HELD_WINDOWS = 4
"""How many windows of rows a tray has in memory; the others are on disk alone."""
NEVER = float("inf")
SHORTEST_BACKOFF, LONGEST_BACKOFF = 0.05, 5.0


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

    def end_load(self, items: Sequence[Item], asked: Bounds) -> list[Item]:
        """Merge what was read, oldest first, of at most as many as were asked for; the items that are new here."""
        new = [item for item in items if item.envelope.order not in self.rows and item.envelope.order not in self.left]
        last_in_flight = max((order for order, item in self.rows.items() if item.sent), default=0)
        self.mixed |= any(item.envelope.order < last_in_flight for item in new)
        for item in new:
            self.rows[item.envelope.order] = item
            self.size += len(item.envelope.text)
        self.rows = dict(sorted(self.rows.items()))
        read = sum(len(item.envelope.text) for item in items)
        self.complete = not self.missed and asked.has_room(len(items), read)
        self.loading, self.left, self.changed = False, set(), True
        return new

    def give_up_load(self) -> None:
        """The store could not be read."""
        self.complete = self.loading = False

    def wants_load(self, window: Bounds) -> bool:
        return not self.complete and not self.loading and window.has_room(len(self.rows), self.size)


class Mailbox:
    """All that one node holds for one user."""

    __slots__ = (
        "_backoff",
        "_filled",
        "_gone",
        "calm_until",
        "held_back",
        "looking",
        "messages",
        "next_due",
        "notices",
        "openid",
        "route",
    )

    def __init__(self, openid: OpenId, complete: bool, held: Bounds) -> None:
        self.openid = openid
        self.messages, self.notices = TrayRows(complete, held), TrayRows(complete, held)
        self.route: list[Place] = []
        self._filled: list[Place] = []
        self.calm_until = self._backoff = 0.0
        self._gone = False
        self.held_back = False
        """There is more than the window takes, or than is in memory."""
        self.looking = False
        """A round is under way with it."""
        self.next_due = NEVER
        """When a row of the window may be due again."""

    def trays(self) -> tuple[tuple[Tray, TrayRows], tuple[Tray, TrayRows]]:
        return ("messages", self.messages), ("notices", self.notices)

    @property
    def empty(self) -> bool:
        return self.messages.empty and self.notices.empty

    @property
    def oldest(self) -> float:
        """Since when the oldest unsettled row is in flight."""
        return min(self.messages.oldest, self.notices.oldest)

    def items(self) -> Iterator[Item]:
        yield from self.messages.rows.values()
        yield from self.notices.rows.values()

    def leave(self, wanted: Callable[[Place], bool]) -> bool:
        """Nothing is in flight to these places any more. Was anything?"""
        left = False
        for _, tray in self.trays():
            for item in tray.rows.values():
                for place in [place for place in item.sent if wanted(place)]:
                    del item.sent[place]
                    left = tray.changed = True
        return left

    def on_gone(self, place: Place, now: float) -> None:
        """That session is not there: look again, at once at first, then ever less often until an ack or a login."""
        self.leave(lambda other: other == place)
        if not self._gone:  # once for each look, however many records say it
            self._gone = True
            self._backoff = min(max(self._backoff * 2, SHORTEST_BACKOFF), LONGEST_BACKOFF)
            self.calm_until = now + self._backoff

    def calm_down(self) -> None:
        """An ack or a login: no reason to wait any more."""
        self.calm_until = self._backoff = 0.0

    def start_look(self) -> None:
        self._gone, self.looking = False, True

    def due(self, limits: LimitSettings, now: float) -> Iterator[tuple[Item, list[Place], list[Place]]]:
        """Each open row within the window, oldest first: to which sessions it goes first, and to which again.

        The caller enters into `Item.sent` what it sends, before it asks for the next.
        """
        route, all_again = self.route, now >= self.next_due or self.route != self._filled
        self._filled, self.held_back = route, not (self.messages.complete and self.notices.complete)
        next_due = NEVER if all_again or self.messages.changed or self.notices.changed else self.next_due
        for tray in (self.messages, self.notices):
            if all_again or next_due == NEVER:
                tray.flying = tray.flying_bytes = 0
            tray.changed = False
            for item in islice(tray.rows.values(), tray.flying, None):
                size = len(item.envelope.text)
                if tray.flying >= limits.window or (tray.flying and tray.flying_bytes + size > limits.window_bytes):
                    self.held_back = True
                    break
                tray.flying += 1
                tray.flying_bytes += size
                fresh, again = _owed(item.sent, route, now) if item.sent else (route, [])
                if fresh or again:
                    yield item, fresh, again
                for _, due in item.sent.values():
                    next_due = min(next_due, due)
        self.next_due = next_due


def _owed(sent: dict[Place, tuple[int, float]], route: list[Place], now: float) -> tuple[list[Place], list[Place]]:
    """To which places a row goes first, and to which it is due again. What is not in the route is forgotten."""
    for place in [place for place in sent if place not in route]:
        del sent[place]  # when it shows again, its hub knows what it had
    return [place for place in route if place not in sent], [place for place, (_, due) in sent.items() if due <= now]
