"""Looks: the only place that sends. Nudges say "look again"; a look brings a mailbox in line with where its user is.

All that was nudged meanwhile shares one round, one locate of the registry. `Mailboxes` also keeps the books of what
is in memory: a user with anything open on disk has a mailbox here, or stands in `_awaited`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from yanchat.config import LimitSettings
from yanchat.errors import RegistryUnavailable, StoreUnavailable
from yanchat.model import ACKED, OPEN, Envelope, Key, Node, OpenId, Place, Row, SessionId
from yanchat.node.backlog import Backlog
from yanchat.node.hub import Hub
from yanchat.node.mailbox import HELD_AT_MOST, Item, Mailbox, TrayRows, new_item
from yanchat.ports import Bus, Clock, Outbox, Registry, Tray
from yanchat.protocol.records import Push, Record, Tell
from yanchat.protocol.retry import RetryPolicy
from yanchat.telemetry import Counters

GRACE = 1.0
RETRY_LOOK = 1.0


class Mailboxes:
    """The mailboxes of one node. All but `run`, `minute` and `start` is synchronous and only marks what to do."""

    def __init__(
        self,
        node: Node,
        outbox: Outbox,
        registry: Registry,
        bus: Bus,
        hub: Hub,
        backlog: Backlog,
        limits: LimitSettings,
        retry: RetryPolicy,
        clock: Clock,
        counters: Counters,
        first_order: int,
    ) -> None:
        self._node, self._outbox, self._registry, self._bus, self._hub = node, outbox, registry, bus, hub
        self._backlog, self._limits, self._retry, self._clock, self._counters = backlog, limits, retry, clock, counters
        self._first_order = first_order
        self._boxes: dict[OpenId, Mailbox] = {}
        self._items: dict[Key, Item] = {}
        self._awaited: dict[OpenId, bool] = {}
        """Users in whose pending set we stand; False: to be entered once more."""
        self._nudged: dict[OpenId, None] = {}
        self._calm: dict[OpenId, float] = {}
        self._wake = trio.Event()
        self.deliver: Callable[[Sequence[Record]], None] = lambda records: None
        """Hands records for users here to `delivery`; set by the composition root."""

    # -- nudges --------------------------------------------------------------------------------------------------------
    def nudge(self, openid: OpenId) -> None:
        """Something has changed for this user: look again."""
        if openid in self._boxes:
            self._nudged[openid] = None
            self._wake.set()

    def accepted(self, envelope: Envelope) -> None:
        """A row is on disk."""
        item = new_item(envelope)
        if self._box(envelope.recipient).messages.put(item):
            self._items[item.key] = item
        self.nudge(envelope.recipient)

    def pulled(self, openid: OpenId, stands: bool = True) -> None:
        """A session of the user was claimed; `stands`: by a node that found us in his pending set."""
        if stands:
            self._awaited.setdefault(openid, True)
        elif openid not in self._boxes and openid not in self._awaited:
            return
        self._box(openid).calm_down()
        self.nudge(openid)

    def gone(self, openid: OpenId, place: Place) -> None:
        """That session is not there (any more)."""
        box = self._boxes.get(openid)
        if box is not None:
            box.on_gone(place, self._clock.monotonic())
            self.nudge(openid)

    def peers_changed(self, nodes: set[Node]) -> None:
        """Nodes died, drained or came back as another incarnation: what was in flight to them is not any more."""
        for openid, box in self._boxes.items():
            for item in box.items():
                for place in [place for place in item.sent if place[0] in nodes]:
                    del item.sent[place]
                    self._nudged[openid] = None
        self._wake.set()

    def sweep(self) -> None:
        """Nudge what is due."""
        now = self._clock.monotonic()
        for openid, box in self._boxes.items():
            if box.next_due <= now or (openid not in self._awaited and box.oldest + GRACE <= now):
                self._nudged[openid] = None
        if self._nudged:
            self._wake.set()

    def look_at_all(self, forgotten: bool = True) -> None:
        """Look at every mailbox with anything open; `forgotten`: the registry may not know that we stand there."""
        for openid in list(self._awaited):
            if forgotten:
                self._awaited[openid] = False
            self._box(openid)
        for openid in self._boxes:
            self._nudged[openid] = None
        self._wake.set()

    def replay(self, keys: Sequence[Key]) -> int:
        """Push these open rows again, now; how many were in flight. The others go when their turn comes."""
        again = 0
        for key in keys:
            item = self._items.get(key)
            if item is not None and item.rank == OPEN and item.sent:
                item.sent = {place: (attempt, 0.0) for place, (attempt, _) in item.sent.items()}
                again += 1
        for openid in {openid for _, openid in keys}:
            self.pulled(openid, stands=openid in self._awaited)
        return again

    async def push_dead(self, rows: Sequence[Row]) -> int:
        """Push rows that were given up once more to whoever is there; how many had somebody there."""
        if not rows:
            return 0
        found = await self._registry.locate(list({row.envelope.recipient for row in rows}))
        pushed = 0
        for row in rows:
            sessions: dict[Node, list[SessionId]] = {}
            for entry in found.get(row.envelope.recipient, ()):
                sessions.setdefault(entry.node, []).append(entry.session_id)
            for node, ids in sessions.items():
                self._hand_over(node, [Push(self._node, row.envelope, tuple(ids), "retry", True)])
            pushed += bool(sessions)
        return pushed

    def holds(self, openid: OpenId) -> bool:
        """Whether anything is open here for this user."""
        return openid in self._boxes or openid in self._awaited

    async def start(self) -> None:
        """Take up every user with anything open on disk."""
        after, found = "", await self._outbox.users_with_open_rows("", 1000)
        while found:
            for openid in found:
                self._awaited.setdefault(openid, False)
            after = found[-1]
            found = await self._outbox.users_with_open_rows(after, 1000)
        self.look_at_all()

    # -- what has become of rows ---------------------------------------------------------------------------------------
    def item(self, key: Key) -> Item | None:
        return self._items.get(key)

    def settled(self, item: Item, rank: int, at: int) -> bool:
        """The rank of a row has risen; false when it was there before. The caller sees that it is written."""
        if rank <= item.rank:
            return False
        envelope = item.envelope
        if item.rank == OPEN:
            self._backlog.remove(envelope.sender, envelope.recipient)
        if rank == ACKED:
            self._counters.delivered += 1
        item.rank, item.settled_at, item.sent, item.since = rank, at, {}, None
        self._items.pop(item.key, None)
        box = self._boxes.get(envelope.recipient)
        if box is not None:
            box.messages.drop(envelope.order)
            box.calm_down()
            self.nudge(envelope.recipient)
        if item.told < rank:
            tray = self._box(envelope.sender).notices
            if envelope.order in tray.rows or tray.put(item):
                tray.rows[envelope.order] = item
                self._items[item.key] = item
        self._boxes_calm(envelope.sender)
        return True

    def told(self, item: Item, rank: int) -> bool:
        """The sender knows this rank; false when he did before."""
        if rank <= item.told or rank > item.rank:
            return False
        item.told = rank
        self._counters.told += 1
        if item.told >= item.rank:
            self._items.pop(item.key, None)
            box = self._boxes.get(item.envelope.sender)
            if box is not None:
                box.notices.drop(item.envelope.order)
        self._boxes_calm(item.envelope.sender)
        return True

    def refresh(self, openid: OpenId) -> None:
        """Rows of this user have been written that memory may not hold: read them again."""
        box = self._boxes.get(openid)
        if box is not None:
            box.messages.complete = box.notices.complete = False
            self.nudge(openid)

    def _boxes_calm(self, openid: OpenId) -> None:
        box = self._boxes.get(openid)
        if box is not None:
            box.calm_down()
            self.nudge(openid)

    def _box(self, openid: OpenId) -> Mailbox:
        box = self._boxes.get(openid)
        if box is None:
            box = self._boxes[openid] = Mailbox(openid, complete=openid not in self._awaited)
        return box

    # -- the look ------------------------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Look, round by round, as long as the node lives."""
        while True:
            with trio.move_on_at(min(self._calm.values(), default=float("inf"))):
                await self._wake.wait()
            self._wake = trio.Event()
            now = self._clock.monotonic()
            for openid in [openid for openid, until in self._calm.items() if until <= now]:
                del self._calm[openid]
                self._nudged[openid] = None
            nudged, self._nudged = self._nudged, {}
            boxes = []
            for openid in nudged:
                box = self._boxes.get(openid)
                if box is None:
                    continue
                if box.calm_until > now:
                    self._calm[openid] = box.calm_until
                else:
                    box.start_look()
                    boxes.append(box)
            if boxes:
                await self._round(boxes)

    async def _round(self, boxes: list[Mailbox]) -> None:
        done = [box for box in boxes if box.empty]
        busy = [box for box in boxes if not box.empty]
        try:
            await self._leave(done)
            if busy:
                await self._locate(busy)
                await self._await([box for box in busy if self._must_await(box)])
        except RegistryUnavailable:
            self._counters.registry_failed += 1
            for box in busy:  # the last known route serves, and everything is looked at again
                box.route = [place for place in box.route if place[0] != self._node] + self._here(box.openid)
                self._calm[box.openid] = self._clock.monotonic() + RETRY_LOOK
        try:
            await self._load([box for box in busy if box.route])
        except StoreUnavailable:
            self._counters.store_failed += 1
            for box in busy:
                self._calm[box.openid] = self._clock.monotonic() + RETRY_LOOK
        self._fill([box for box in busy if box.route])
        await self._unload([box for box in busy if not box.route and self._awaited.get(box.openid)])
        for box in busy:
            if box.empty:
                self.nudge(box.openid)

    async def _leave(self, boxes: list[Mailbox]) -> None:
        """Nothing open: leave the pending sets. What comes in between makes a mailbox of its own."""
        left = []
        for box in boxes:
            self._boxes.pop(box.openid, None)
            if self._awaited.pop(box.openid, None) is not None:
                left.append(box.openid)
        if left:
            try:
                await self._registry.leave_pending(self._node, left)
            except RegistryUnavailable:
                for openid in left:  # once more at the next look
                    self._awaited.setdefault(openid, True)
                raise

    async def _locate(self, boxes: list[Mailbox]) -> None:
        found = await self._registry.locate([box.openid for box in boxes])
        for box in boxes:
            there = [(entry.node, entry.session_id) for entry in found.get(box.openid, ()) if entry.node != self._node]
            box.route = there + self._here(box.openid)

    def _here(self, openid: OpenId) -> list[tuple[Node, SessionId]]:
        return [(self._node, session.record.session_id) for session in self._hub.of(openid) if session.ready]

    def _must_await(self, box: Mailbox) -> bool:
        late = not box.route or box.oldest + GRACE <= self._clock.monotonic()
        return late and not self._awaited.get(box.openid, False)

    async def _await(self, boxes: list[Mailbox]) -> None:
        """First into the pending set, then locate again: a login in between is not missed."""
        if boxes:
            await self._registry.enter(self._node, [box.openid for box in boxes])
            for box in boxes:
                self._awaited[box.openid] = True
            await self._locate(boxes)

    async def _load(self, boxes: list[Mailbox]) -> None:
        async def load(box: Mailbox, name: Tray, tray: TrayRows) -> None:
            tray.start_load()
            try:
                rows = await self._outbox.open_rows(box.openid, name, HELD_AT_MOST)
            except BaseException:
                tray.loading = False
                raise
            items = [
                self._items.get(row.envelope.key)
                or Item(row, row.attempts > 0 or row.envelope.order < self._first_order)
                for row in rows
            ]
            for item in tray.end_load(items, HELD_AT_MOST):
                self._items[item.key] = item

        wanted = [
            (box, name, tray) for box in boxes for name, tray in _trays(box) if tray.wants_load(self._limits.window)
        ]
        if wanted:
            try:
                async with trio.open_nursery() as nursery:
                    for one in wanted:
                        nursery.start_soon(load, *one)
            except* StoreUnavailable as group:
                raise StoreUnavailable(str(group.exceptions[0])) from None

    def _fill(self, boxes: list[Mailbox]) -> None:
        now, wall = self._clock.monotonic(), self._clock.wall()
        out: dict[Node, list[Record]] = {}
        for box in boxes:
            for item, fresh, again in box.due(self._limits, now):
                before = item.before or item.attempts > 0
                for places, cause in ((fresh, "first"), (again, "retry")):
                    if not places:
                        continue
                    redelivered = before or cause == "retry"
                    for node in dict.fromkeys(node for node, _ in places):
                        sessions = tuple(session for at, session in places if at == node)
                        out.setdefault(node, []).append(self._record(item, sessions, cause, redelivered))
                    for place in places:
                        attempt = item.sent[place][0] + 1 if place in item.sent else 0
                        item.sent[place] = attempt, now + self._retry.delay(attempt, self._clock.rng)
                item.since = now if item.since is None else item.since
                if item.rank == OPEN:
                    item.attempts += 1
                    item.sent_at = item.sent_at or wall
                    self._counters.redelivered += bool(again)
        for node, records in out.items():
            self._hand_over(node, records)

    def _hand_over(self, node: Node, records: list[Record]) -> None:
        if node == self._node:
            self.deliver(records)
        else:
            self._bus.publish(node, records)

    def _record(self, item: Item, sessions: tuple[SessionId, ...], cause: str, redelivered: bool) -> Record:
        if item.rank == OPEN:
            return Push(self._node, item.envelope, sessions, cause, redelivered)
        return Tell(self._node, item.notice(), sessions)

    async def _unload(self, boxes: list[Mailbox]) -> None:
        """The user is nowhere and we stand in his pending set: only that is kept in memory."""
        steps, idle = [], []
        for box in boxes:
            if self._boxes.get(box.openid) is not box or any(tray.loading for _, tray in _trays(box)):
                continue
            steps += [item.step() for item in box.items() if item.attempts]
            idle.append(box)
        if steps:
            try:
                await self._outbox.record(steps)
            except StoreUnavailable:
                self._counters.store_failed += 1
                return  # attempts say what must be marked redelivered: they stay in memory until they are on disk
        for box in idle:
            if box.openid not in self._nudged:  # else he came meanwhile, and a look without a mailbox does nothing
                for item in box.items():
                    self._items.pop(item.key, None)
                del self._boxes[box.openid]


def _trays(box: Mailbox) -> tuple[tuple[Tray, TrayRows], tuple[Tray, TrayRows]]:
    return ("messages", box.messages), ("notices", box.notices)
