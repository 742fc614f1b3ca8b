"""The mailboxes of one node: what is in memory of its open rows, what has become of them, and whom to look at again.

A user with anything open on disk has a mailbox here, or stands in `awaited`. All is synchronous; nothing is sent here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice

import structlog
import trio

from yanchat.config import LimitSettings
from yanchat.model import ACKED, OPEN, Envelope, Key, Node, OpenId, Place, Row
from yanchat.node.backlog import Backlog
from yanchat.node.hub import Hub
from yanchat.node.mailbox import Mailbox
from yanchat.node.tray import Item, held_of
from yanchat.ports import Tray
from yanchat.telemetry import Counters

ROUND = 1000
"""Users looked at together."""
AT_LEISURE = 100
"""Users looked at in passing, with those of a round for whom something has changed."""
GRACE = 1.0
"""Seconds in flight without an ack after which a row counts as not arrived: its user is awaited."""


class Mailboxes:
    """`now` in monotonic seconds."""

    def __init__(
        self, hub: Hub, backlog: Backlog, counters: Counters, now: Callable[[], float], limits: LimitSettings
    ) -> None:
        self._hub, self._backlog, self._counters, self._now = hub, backlog, counters, now
        self._held = held_of(limits)
        self.boxes: dict[OpenId, Mailbox] = {}
        self.items: dict[Key, Item] = {}
        self.awaited: dict[OpenId, bool] = {}
        """Users for whom rows are on disk alone, or in whose pending set we stand (True)."""
        self.routes: dict[OpenId, list[Place]] = {}
        """Where users were when they were last found."""
        self.moved: set[OpenId] = set()
        """Of whom it was said that they have come or gone: what the registry remembers of them is old."""
        self._nudged: dict[OpenId, None] = {}
        self._later: dict[OpenId, None] = {}
        """Who is looked at only because everybody is: nobody for whom something has changed waits for all of them."""
        self._wake = trio.Event()

    def apply(self, limits: LimitSettings) -> None:
        """Hold what comes from now on to other limits."""
        self._held = held_of(limits)
        for box in self.boxes.values():
            box.messages.held = box.notices.held = self._held

    # -- nudges --------------------------------------------------------------------------------------------------------
    def nudge(self, openid: OpenId) -> None:
        """Something has changed for this user: look again."""
        if openid in self.boxes:
            self._nudged[openid] = None
            self._wake.set()

    async def nudged(self) -> dict[OpenId, None]:
        """Wait for nudges and take them, a bounded number at a time."""
        await self._wake.wait()
        nudged, self._nudged = _take(self._nudged, ROUND)
        for openid in nudged:
            self._later.pop(openid, None)
        later, self._later = _take(self._later, AT_LEISURE)
        for openid in later:
            if self.holds(openid):
                self.box(openid)
                nudged[openid] = None
        if not self._nudged and not self._later:
            self._wake = trio.Event()
        return nudged

    def is_nudged(self, openid: OpenId) -> bool:
        return openid in self._nudged

    def accepted(self, envelope: Envelope, *, quiet: bool = False) -> None:
        """A row is on disk; `quiet`: its sender wants no notice."""
        item = Item(envelope)
        if quiet:
            item.told = ACKED
        known = item.key in self.items  # it was read in the very transaction that stored it
        if not known and self.box(envelope.recipient).messages.put(item):
            self.items[item.key] = item
        self.nudge(envelope.recipient)

    def adopted(self, row: Row) -> None:
        """Another node's row is on disk, perhaps older than what is in memory; it is read when its turn comes."""
        envelope = row.envelope
        if row.rank == OPEN:
            self._backlog.add(envelope.sender, envelope.recipient)
        elif row.told >= row.rank:
            return
        if row.rank == OPEN:
            self.missed(envelope.recipient, "messages")
        else:
            self.missed(envelope.sender, "notices")

    def missed(self, openid: OpenId, tray: Tray) -> None:
        """There may be rows on disk that are not in memory, nor waited for."""
        if openid not in self.boxes:
            self.awaited.setdefault(openid, False)
        box = self.box(openid)
        dict(box.trays())[tray].miss()
        box.calm_down()
        self.nudge(openid)

    def pulled(self, openid: OpenId, stands: bool = True) -> None:
        """A session of the user was claimed; `stands`: by a node that found us in his pending set."""
        if stands:
            self.awaited.setdefault(openid, True)
        elif not self.holds(openid):
            return
        self.moved.add(openid)
        self.box(openid).calm_down()
        self.nudge(openid)

    def gone(self, openid: OpenId, place: Place) -> None:
        """That session is not there (any more)."""
        route = self.routes.get(openid, [])
        if place in route:
            self.routes[openid] = [known for known in route if known != place]
        box = self.boxes.get(openid)
        if box is not None:
            self.moved.add(openid)
            box.on_gone(place, self._now())
            self.nudge(openid)

    def peers_changed(self, nodes: set[Node]) -> None:
        """Nodes died, drained or came back as another incarnation: what was in flight to them is not any more."""
        for openid, box in self.boxes.items():
            if box.leave(lambda place: place[0] in nodes):
                self.nudge(openid)

    def sweep(self) -> None:
        """Nudge what is due."""
        now = self._now()
        for openid, box in self.boxes.items():
            if box.next_due <= now or (box.oldest + GRACE <= now and not self.awaited.get(openid)):
                self.nudge(openid)

    def look_at_all(self) -> None:
        """Look at everybody with anything open; the registry may not know any more that we stand in a pending set."""
        self.awaited = dict.fromkeys(self.awaited, False)
        self._later = dict.fromkeys((*self.boxes, *self.awaited))
        self._wake.set()

    def replay(self, keys: Sequence[Key]) -> int:
        """Push these open rows again, now; how many were in flight. The others go when their turn comes."""
        again = 0
        for key in keys:
            item = self.items.get(key)
            if item is not None and item.rank == OPEN and item.sent:
                item.sent = {place: (attempt, 0.0) for place, (attempt, _) in item.sent.items()}
                self.boxes[key[1]].messages.changed = True
                again += 1
        for openid in {openid for _, openid in keys}:
            self.pulled(openid, stands=False)
        return again

    def holds(self, openid: OpenId) -> bool:
        """Whether anything is open here for this user."""
        return openid in self.boxes or openid in self.awaited

    def on_disk_alone(self, openid: OpenId) -> bool:
        """Whether there may be open messages to this user that are not in memory."""
        box = self.boxes.get(openid)
        return openid in self.awaited if box is None else not box.messages.complete

    def here(self, openid: OpenId) -> list[Place]:
        """The user's sessions on this node that have been greeted."""
        return [(session.record.node, session.record.session_id) for session in self._hub.of(openid) if session.ready]

    # -- what has become of rows ---------------------------------------------------------------------------------------
    def settled(self, item: Item, rank: int, at: int) -> bool:
        """The rank of a row has risen; false when it was there before. The caller sees that it is written."""
        if rank <= item.rank:
            return False
        self._count(item.envelope, item.rank, rank, at)
        self._raise(item, rank, at)
        return True

    def followed(self, row: Row, rank: int, at: int) -> None:
        """The disk has raised a row that was not in memory; `row` as it was before. Memory follows."""
        self._count(row.envelope, row.rank, rank, at)
        item = self.items.get(row.envelope.key) or Item.read(row, before=True)
        if rank > item.rank:
            self._raise(item, rank, at)

    def _count(self, envelope: Envelope, before: int, rank: int, at: int) -> None:
        if before == OPEN:
            self._backlog.remove(envelope.sender, envelope.recipient)
        if rank == ACKED:
            self._counters.delivered += 1
            self._counters.loop_ms.observe(at - envelope.accepted_at)
            if self._counters.trail is not None:
                self._counters.trail.delivered(envelope)
        else:
            self._counters.expired += 1
            names = {"sender": envelope.sender, "recipient": envelope.recipient}
            structlog.get_logger().info("message.expired", message_id=envelope.message_id, **names)

    def _raise(self, item: Item, rank: int, at: int) -> None:
        envelope = item.envelope
        self.items.pop(item.key, None)
        box = self.boxes.get(envelope.recipient)
        if box is not None:
            box.messages.drop(envelope.order)
            self._calm(box)
        item.rank, item.settled_at, item.sent, item.since = rank, at, {}, None
        if item.told < rank:
            item.lighten()
            box = self.box(envelope.sender)
            if box.notices.put(item):
                self.items[item.key] = item
            box.calm_down()
            self.nudge(envelope.sender)

    def told(self, item: Item, rank: int) -> bool:
        """The sender knows this rank; false when he did before."""
        if rank <= item.told or rank > item.rank:
            return False
        item.told = rank
        self._counters.told += 1
        if self._counters.trail is not None:
            self._counters.trail.told(item.envelope, rank)
        if item.told >= item.rank:
            self.items.pop(item.key, None)
            box = self.boxes.get(item.envelope.sender)
            if box is not None:
                box.notices.drop(item.envelope.order)
                self._calm(box)
        return True

    def _calm(self, box: Mailbox) -> None:
        """Something has gone out of it: a reason to look only if that lets something else go on."""
        held_back = box.held_back or box.calm_until > 0.0
        box.calm_down()
        if not box.empty:
            if held_back:
                self.nudge(box.openid)
        elif box.looking or box.openid in self.awaited:
            self.nudge(box.openid)
        else:
            del self.boxes[box.openid]
            self._nudged.pop(box.openid, None)

    def box(self, openid: OpenId) -> Mailbox:
        """The user's mailbox, made when there is none."""
        box = self.boxes.get(openid)
        if box is None:
            box = self.boxes[openid] = Mailbox(openid, openid not in self.awaited, self._held)
        return box

    def forget(self, box: Mailbox) -> None:
        """What is open stays on disk alone; its user stands in `awaited`."""
        for item in box.items():
            self.items.pop(item.key, None)
        del self.boxes[box.openid]


def _take(users: dict[OpenId, None], most: int) -> tuple[dict[OpenId, None], dict[OpenId, None]]:
    """The first of them, and the others."""
    if len(users) <= most:
        return users, {}
    taken = dict.fromkeys(islice(users, most))
    for openid in taken:
        del users[openid]
    return taken, users
