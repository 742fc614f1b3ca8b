"""Looks: the only place that sends. A look brings a mailbox in line with what is open and where its user is.

All that was nudged meanwhile shares one round, and a round one locate of the registry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import trio

from yanchat.config import LimitSettings
from yanchat.errors import RegistryUnavailable
from yanchat.model import OPEN, Node, OpenId, Place, Row, SessionId, SessionRecord
from yanchat.node.ledger import Ledger
from yanchat.node.loads import Loads
from yanchat.node.mailbox import Mailbox
from yanchat.node.mailboxes import GRACE, Mailboxes
from yanchat.node.tray import Item
from yanchat.ports import Bus, Clock, Registry
from yanchat.protocol.records import Push, Record, Tell
from yanchat.protocol.retry import RetryPolicy
from yanchat.telemetry import Counters, Episode

AGAIN_AFTER = 1.0
ROUTES_REMEMBERED = 50_000
"""Users whose last known places serve while the registry cannot be reached, or our lease not renewed."""


class Looks:
    """`run` looks, round by round, at whom `Mailboxes` says."""

    def __init__(
        self,
        node: Node,
        mailboxes: Mailboxes,
        loads: Loads,
        ledger: Ledger,
        registry: Registry,
        bus: Bus,
        limits: LimitSettings,
        retry: RetryPolicy,
        clock: Clock,
        counters: Counters,
        deliver: Callable[[Sequence[Record]], None],
        doubtful: Callable[[], bool],
    ) -> None:
        """`doubtful`: our own lease cannot be renewed, so what the registry says of others' counts for little."""
        self._node, self._mailboxes, self._loads, self._ledger = node, mailboxes, loads, ledger
        self._registry, self._bus, self._limits, self._retry = registry, bus, limits, retry
        self._clock, self._counters, self._deliver, self._doubtful = clock, counters, deliver, doubtful
        self._locating = Episode("registry.locate")
        self._calm: dict[OpenId, float] = {}

    def apply(self, limits: LimitSettings) -> None:
        """Hold what comes from now on to other limits."""
        self._limits = limits

    async def run(self) -> None:
        """Look, as long as the node lives."""
        while True:
            nudged = await self._nudged()
            now = self._clock.monotonic()
            boxes = []
            for openid in nudged:
                box = self._mailboxes.boxes.get(openid)
                if box is None:
                    continue
                if box.calm_until > now:
                    self._calm[openid] = box.calm_until
                else:
                    box.start_look()
                    boxes.append(box)
            if boxes:
                await self._round(boxes)
                for box in boxes:
                    box.looking = False
                    if box.empty:
                        self._mailboxes.nudge(box.openid)

    async def _nudged(self) -> dict[OpenId, None]:
        """Wait until somebody is to be looked at."""
        if not self._calm:
            return await self._mailboxes.nudged()
        nudged: dict[OpenId, None] = {}
        with trio.move_on_at(min(self._calm.values())):
            nudged = await self._mailboxes.nudged()
        now = self._clock.monotonic()
        for openid in [openid for openid, until in self._calm.items() if until <= now]:
            del self._calm[openid]
            nudged[openid] = None
        return nudged

    async def _round(self, boxes: list[Mailbox]) -> None:
        busy = [box for box in boxes if not box.empty]
        moved = [box.openid for box in boxes if box.openid in self._mailboxes.moved]
        if moved:
            self._registry.forget(moved)
            self._mailboxes.moved.difference_update(moved)
        try:
            await self._leave([box for box in boxes if box.empty])
            if busy:
                await self._locate(busy)
                await self._await([box for box in busy if self._must_await(box)])
                self._locating.worked()
        except RegistryUnavailable as error:
            self._locating.failed(error)
            self._counters.registry_failed += 1
            for box in busy:  # the last known route serves, and everything is looked at again
                box.route = self._mailboxes.routes.get(box.openid, []) + self._mailboxes.here(box.openid)
                self._calm[box.openid] = self._clock.monotonic() + AGAIN_AFTER
        there = [box for box in busy if box.route]
        for box in there:
            self._loads.want(box)
        self._fill(there)
        self._unload([box for box in busy if not box.route and self._mailboxes.awaited.get(box.openid)])

    async def _leave(self, boxes: list[Mailbox]) -> None:
        """Nothing open: leave the pending sets. What comes in between makes a mailbox of its own."""
        left = []
        for box in boxes:
            self._mailboxes.forget(box)
            if self._mailboxes.awaited.pop(box.openid, None) is not None:
                left.append(box.openid)
        if left:
            try:
                await self._registry.leave_pending(self._node, left)
            except RegistryUnavailable:
                for openid in left:  # once more when everybody is looked at
                    self._mailboxes.awaited.setdefault(openid, True)
                raise

    async def _locate(self, boxes: list[Mailbox]) -> None:
        found: Mapping[OpenId, Sequence[SessionRecord]]
        found = await self._registry.locate([box.openid for box in boxes])
        for box in boxes:
            openid = box.openid
            box.route = [(entry.node, entry.session_id) for entry in found.get(openid, ()) if entry.node != self._node]
            if not box.route and self._doubtful():
                box.route = self._mailboxes.routes.get(openid, [])
            self._mailboxes.routes.pop(openid, None)
            if box.route:
                self._mailboxes.routes[openid] = box.route
            box.route = box.route + self._mailboxes.here(openid)  # about itself a node asks its own hub
        while len(self._mailboxes.routes) > ROUTES_REMEMBERED:
            del self._mailboxes.routes[next(iter(self._mailboxes.routes))]

    def _must_await(self, box: Mailbox) -> bool:
        late = not box.route or box.oldest + GRACE <= self._clock.monotonic()
        return late and not self._mailboxes.awaited.get(box.openid, False)

    async def _await(self, boxes: list[Mailbox]) -> None:
        """First into the pending set, then locate again: a login in between is not missed."""
        if boxes:
            await self._registry.enter(self._node, [box.openid for box in boxes])
            for box in boxes:
                self._mailboxes.awaited[box.openid] = True
            await self._locate(boxes)

    def _fill(self, boxes: list[Mailbox]) -> None:
        now, wall = self._clock.monotonic(), self._clock.wall()
        trail = self._counters.trail
        out: dict[Node, list[Record]] = {}
        for box in boxes:
            for item, fresh, again in box.due(self._limits, now):
                before = item.before or item.attempts > 0
                for places, cause in ((fresh, "first"), (again, "retry")):
                    if not places:
                        continue
                    redelivered = before or cause == "retry"
                    for node, sessions in _by_node(places):
                        out.setdefault(node, []).append(self._record(item, sessions, cause, redelivered))
                        if trail is not None:
                            what = item.envelope if item.rank == OPEN else item.notice()
                            trail.forwarded(what, node, sessions, cause)
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
            self._deliver(records)
        else:
            self._bus.publish(node, records)

    def _record(self, item: Item, sessions: tuple[SessionId, ...], cause: str, redelivered: bool) -> Record:
        if item.rank == OPEN:
            return Push(self._node, item.envelope, sessions, cause, redelivered)
        return Tell(self._node, item.notice(), sessions)

    def _unload(self, boxes: list[Mailbox]) -> None:
        """The user is nowhere and we stand in his pending set: only that is kept in memory."""
        for box in boxes:
            if any(tray.loading for _, tray in box.trays()) or self._mailboxes.is_nudged(box.openid):
                continue
            self._ledger.put([item.step() for item in box.items() if item.attempts])
            self._mailboxes.forget(box)

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


def _by_node(places: list[Place]) -> list[tuple[Node, tuple[SessionId, ...]]]:
    if len(places) == 1:
        return [(places[0][0], (places[0][1],))]
    nodes = dict.fromkeys(node for node, _ in places)
    return [(node, tuple(session for at, session in places if at == node)) for node in nodes]
