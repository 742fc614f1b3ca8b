"""What this node holds for one user, as it is in memory while something is in flight. Rules without I/O.

A mailbox has two trays: open messages to the user, and notices that he has not been told of. Each holds the oldest
rows; a tray that is not complete has more on disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from yanchat.config import LimitSettings
from yanchat.model import OPEN, Envelope, Key, Notice, OpenId, Place, Row, Step
from yanchat.ports import Tray

HELD_AT_MOST = 256
NEVER = float("inf")
SHORTEST_BACKOFF, LONGEST_BACKOFF = 0.05, 5.0


class Item:
    """A row in memory, and where it is in flight: place → (attempt, due at)."""

    __slots__ = (
        "arrived_at",
        "attempts",
        "before",
        "envelope",
        "rank",
        "sent",
        "sent_at",
        "settled_at",
        "since",
        "told",
    )

    def __init__(self, envelope: Envelope) -> None:
        """A row that was accepted just now."""
        self.envelope = envelope
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

    @property
    def key(self) -> Key:
        return self.envelope.key

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


class TrayRows:
    """The oldest rows of one tray, by order. While a load is under way, `missed` and `left` say what it cannot know."""

    __slots__ = ("complete", "left", "loading", "missed", "rows")

    def __init__(self, complete: bool) -> None:
        self.rows: dict[int, Item] = {}
        self.complete = complete
        self.loading = self.missed = False
        self.left: set[int] = set()

    def put(self, item: Item) -> bool:
        """Take a new row, if it belongs to the oldest; else it stays on disk alone."""
        if self.complete and not self.loading and len(self.rows) < HELD_AT_MOST:
            self.rows[item.envelope.order] = item
            return True
        self.complete, self.missed = False, True
        return False

    @property
    def empty(self) -> bool:
        return self.complete and not self.rows and not self.loading

    def drop(self, order: int) -> None:
        self.rows.pop(order, None)
        if self.loading:
            self.left.add(order)

    def start_load(self) -> None:
        self.loading, self.missed, self.left = True, False, set()

    def end_load(self, items: Sequence[Item], limit: int) -> list[Item]:
        """Merge what was read (at most `limit`, oldest first); the items that are new here."""
        new = [item for item in items if item.envelope.order not in self.rows and item.envelope.order not in self.left]
        for item in new:
            self.rows[item.envelope.order] = item
        self.rows = dict(sorted(self.rows.items()))
        self.complete = len(items) < limit and not self.missed
        self.loading, self.left = False, set()
        return new

    def give_up_load(self) -> None:
        """The store could not be read."""
        self.complete = self.loading = False

    def wants_load(self, window: int) -> bool:
        return not self.complete and not self.loading and len(self.rows) < window


class Mailbox:
    """All that one node holds for one user."""

    __slots__ = (
        "_backoff",
        "_gone",
        "_window",
        "calm_until",
        "held_back",
        "looking",
        "messages",
        "next_due",
        "notices",
        "oldest",
        "openid",
        "route",
    )

    def __init__(self, openid: OpenId, complete: bool) -> None:
        self.openid = openid
        self.messages, self.notices = TrayRows(complete), TrayRows(complete)
        self.route: list[Place] = []
        self.calm_until = self._backoff = 0.0
        self._gone = False
        self.held_back = False
        """There is more than the window takes, or than is in memory."""
        self.looking = False
        """A round is under way with it."""
        self._window: list[Item] = []
        self.next_due = self.oldest = NEVER
        """Since when the oldest unsettled row is in flight."""

    def trays(self) -> tuple[tuple[Tray, TrayRows], tuple[Tray, TrayRows]]:
        return ("messages", self.messages), ("notices", self.notices)

    @property
    def empty(self) -> bool:
        return self.messages.empty and self.notices.empty

    def items(self) -> Iterator[Item]:
        yield from self.messages.rows.values()
        yield from self.notices.rows.values()

    def on_gone(self, place: Place, now: float) -> None:
        """That session is not there: look again, at once at first, then ever less often until an ack or a login."""
        for item in self.items():
            item.sent.pop(place, None)
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

        The caller enters into `Item.sent` what it sends, and calls `note_due` behind the last.
        """
        window, route, places = self._window, self.route, len(self.route)
        window.clear()
        self.held_back = not (self.messages.complete and self.notices.complete)
        for tray in (self.messages, self.notices):
            size = count = 0
            for item in tray.rows.values():
                size += len(item.envelope.text)
                if count >= limits.window or (count and size > limits.window_bytes):
                    self.held_back = True
                    break
                count += 1
                window.append(item)
                sent = item.sent
                if not sent:
                    yield item, route, []
                    continue
                known = 0
                again = []
                for place, (_, due) in list(sent.items()):
                    if place not in route:
                        del sent[place]  # not there any more; when it shows again, its hub knows what it had
                        continue
                    known += 1
                    if due <= now:
                        again.append(place)
                fresh = [place for place in route if place not in sent] if known < places else []
                if fresh or again:
                    yield item, fresh, again

    def note_due(self) -> None:
        """Note when the next row of the window is due again, and since when the oldest is in flight."""
        next_due = oldest = NEVER
        for item in self._window:
            for _, due in item.sent.values():
                next_due = min(next_due, due)
            if item.since is not None and item.since < oldest:
                oldest = item.since
        self.next_due, self.oldest = next_due, oldest
        self._window.clear()
