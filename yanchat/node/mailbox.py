"""What this node holds for one user, as it is in memory while something is in flight. Rules without I/O.

A mailbox has two trays: open messages to the user, and notices that he has not been told of. Each holds the oldest
rows; a tray that is not complete has more on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

from yanchat.config import LimitSettings
from yanchat.model import OpenId, Place
from yanchat.node.tray import NEVER, Bounds, Item, TrayRows
from yanchat.ports import Tray

SHORTEST_BACKOFF, LONGEST_BACKOFF = 0.05, 5.0


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
