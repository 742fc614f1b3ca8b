"""The acks of users here: record each durably, answer it, and tell every origin until it has left for there."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import structlog
import trio

from yanchat.config import LimitSettings
from yanchat.errors import StoreUnavailable
from yanchat.model import ACKED, OPEN, AckEntry, Key, MessageId, Node
from yanchat.node.hub import Hub, Session
from yanchat.node.ledger import AGAIN_AFTER, Ledger
from yanchat.node.mailboxes import Mailboxes
from yanchat.node.storing import hang_up
from yanchat.node.tray import Item
from yanchat.ports import Bus, Clock, Inbox, Outbox
from yanchat.protocol import frames
from yanchat.protocol.frames import Dates
from yanchat.protocol.ids import is_message_id, order_from_message_id
from yanchat.protocol.records import Acked
from yanchat.telemetry import Counters, Episode

CHUNK = 1000
STRANGE_AT_ONCE = 32


class _Ack(NamedTuple):
    """A client's type 15; `origins`: who waited for it when it came, also if the session has ended since."""

    session: Session
    message_id: str
    origins: tuple[Node, ...]


class _Recorded(NamedTuple):
    """What is on disk of a batch: a status for each ack, what was entered and where, our own rows in memory."""

    statuses: list[int]
    entries: dict[Key, AckEntry]
    places: list[int]
    items: dict[Key, Item]


class Acks:
    """`acked` takes them, `run` records and answers, `keep_publishing` sees that they leave."""

    def __init__(
        self,
        node: Node,
        hub: Hub,
        inbox: Inbox,
        outbox: Outbox,
        ledger: Ledger,
        mailboxes: Mailboxes,
        bus: Bus,
        dates: Dates,
        clock: Clock,
        inflight: int,
        counters: Counters,
        adopters: Collection[Node],
    ) -> None:
        self._node, self._hub, self._inbox, self._outbox, self._ledger = node, hub, inbox, outbox, ledger
        self._mailboxes, self._bus, self._dates, self._clock, self._counters = mailboxes, bus, dates, clock, counters
        self._inflight, self._adopters = inflight, tuple(node for node in adopters if node != self._node)
        self._storing = Episode("store.ack")
        self._queue: list[_Ack] = []
        self._strange: list[_Ack] = []
        """Acks of what nobody here was given: each costs a look at the disk, so they come a few at a time."""
        self._wake = trio.Event()
        self._busy = False
        self._unpublished: set[tuple[int, Node]] = set()
        self._last_place = self._watermark = 0
        self._failed: list[tuple[Node, list[tuple[Key, int]]]] = []

    def apply(self, limits: LimitSettings) -> None:
        """Hold what comes from now on to other limits."""
        self._inflight = limits.inflight

    def acked(self, session: Session, message_id: str) -> None:
        """A client's type 15. Repeated: answered again."""
        ack = _Ack(session, message_id, self._hub.owed_to(session.openid, MessageId(message_id)))
        (self._queue if ack.origins else self._strange).append(ack)
        session.expect(self._inflight)
        self._wake.set()

    @property
    def idle(self) -> bool:
        return not (self._queue or self._strange or self._busy)

    async def run(self) -> None:
        """Record acks batch by batch, then answer them, as long as the node lives."""
        while True:
            await self._wake.wait()
            batch, self._queue, self._busy = self._queue + self._strange[:STRANGE_AT_ONCE], [], True
            self._strange = self._strange[STRANGE_AT_ONCE:]
            if not self._strange:
                self._wake = trio.Event()
            try:
                await self._serve(batch)
            except Exception:
                hang_up("acks.failed", (ack.session for ack in batch))
            self._busy = False

    async def _serve(self, batch: list[_Ack]) -> None:
        now = self._clock.wall()
        try:
            recorded = await self._record(batch, now)
        except StoreUnavailable as error:
            self._storing.failed(error)
            self._counters.store_failed += 1
            self._refuse(batch)
        except Exception:  # a bug: whichever ack shows it, the others are recorded
            half = len(batch) // 2
            if half:
                await self._serve(batch[:half])
                await self._serve(batch[half:])
                return
            structlog.get_logger().exception("store.ack_failed", message_id=batch[0].message_id[:32])
            self._refuse(batch)
        else:
            self._storing.worked()
            self._follow(batch, recorded, now)

    def _refuse(self, batch: list[_Ack]) -> None:
        """Not acked: they will be pushed again."""
        date = self._dates(self._clock.wall())
        for ack in batch:
            self._answer(ack, 503, date)

    async def _record(self, batch: list[_Ack], now: int) -> _Recorded:
        entries: dict[Key, AckEntry] = {}
        items: dict[Key, Item] = {}
        rest: list[Key] = []
        statuses: list[int] = []
        for ack in batch:
            key = (MessageId(ack.message_id), ack.session.openid)
            status, origins = (200, ack.origins) if ack.origins else await self._unknown(ack)
            statuses.append(status)
            if not origins:
                continue
            item = self._mailboxes.items.get(key)  # also when it was another node that he had it from
            if item is not None:
                items[key] = item
            elif self._node in origins or self._may_stand_on_disk(key):
                rest.append(key)
            entries[key] = _entry(key, tuple(node for node in origins if node != self._node), item, now)
        if rest:  # our own rows that are on disk alone
            await self._ledger.flushed()
            rows = await self._outbox.settle(rest, rank=ACKED, told=OPEN, at=now)
            for row in rows:
                self._mailboxes.followed(row, ACKED, now)
        places = await self._inbox.ack(list(entries.values())) if entries else []
        return _Recorded(statuses, entries, places, items)

    def _follow(self, batch: list[_Ack], recorded: _Recorded, now: int) -> None:
        """They are on disk: answer, let memory follow, tell the origins."""
        statuses, entries, places, items = recorded
        date = self._dates(now)
        for ack, status in zip(batch, statuses, strict=True):
            self._answer(ack, status, date)
        remote: dict[Node, list[tuple[Key, int]]] = {}
        for entry, place in zip(entries.values(), places, strict=True):
            self._counters.acked += 1
            self._hub.acked(entry.key[1], entry.key[0])
            item = items.get(entry.key) or self._mailboxes.items.get(entry.key)
            if item is not None and self._mailboxes.settled(item, ACKED, now) and entry.key not in items:
                self._ledger.put([item.step()])  # accepted while the ack was being recorded
            for node in entry.origins:
                remote.setdefault(node, []).append((entry.key, place))
        for node, acks in remote.items():
            self._publish(node, acks)

    async def _unknown(self, ack: _Ack) -> tuple[int, tuple[Node, ...]]:
        """An ack of what no session here was given: 200 when it was acked before, 403, 404, or our own open row."""
        if not is_message_id(ack.message_id):
            return 404, ()
        rows, acked = await self._inbox.recipients(MessageId(ack.message_id))
        if ack.session.openid in acked:
            return 200, ()
        if ack.session.openid in rows:
            return 200, (self._node,)
        return (403 if rows or acked else 404), ()

    async def pass_on(self, keys: Sequence[Key]) -> None:
        """Not all of these acks settle something here. Of what has moved away whoever has adopted any is told, once.

        They stand in the inbox, as those of users here do: so they leave, and are not passed to and fro.
        """
        if not self._adopters:
            return
        rows = await self._outbox.find(keys)
        away = [row.envelope.key for row in rows if row is not None and row.moved_at]
        known = await self._inbox.known(away)
        now = self._clock.wall()
        entries = [AckEntry(key, self._adopters, at=now) for key, there in zip(away, known, strict=True) if not there]
        places = await self._inbox.ack(entries) if entries else []
        for node in self._adopters if entries else ():
            self._publish(node, [(entry.key, place) for entry, place in zip(entries, places, strict=True)])

    def _may_stand_on_disk(self, key: Key) -> bool:
        """Whether the recipient of another node's message may have it here as well: its request was repeated here."""
        return not order_from_message_id(key[0]) and self._mailboxes.on_disk_alone(key[1])

    def _answer(self, ack: _Ack, status: int, date: bytes) -> None:
        if self._counters.trail is not None:
            self._counters.trail.acked(MessageId(ack.message_id), ack.session.openid, status)
        receipt = frames.ack_receipt(date, ack.message_id, status)
        ack.session.answer(receipt, self._inflight)

    # -- on their way back ---------------------------------------------------------------------------------------------
    def _publish(self, node: Node, acks: list[tuple[Key, int]]) -> None:
        """Tell an origin; what may not have left is published again after a second."""
        places = {(place, node) for _, place in acks}
        self._unpublished |= places
        self._last_place = max(self._last_place, *(place for place, _ in places))

        def stored(ok: bool) -> None:
            if ok:
                self._unpublished.difference_update(places)
            else:
                self._failed.append((node, acks))

        self._bus.publish(node, [Acked(self._node, tuple(key for key, _ in acks))], stored)

    async def publish_again(self) -> None:
        """Publish what an earlier life of this node may not have: all behind the watermark."""
        after = 0
        while found := await self._inbox.unsent(after, CHUNK):
            by_node: dict[Node, list[tuple[Key, int]]] = {}
            for place, entry in found:
                for node in entry.origins:
                    by_node.setdefault(node, []).append((entry.key, place))
            for node, acks in by_node.items():
                self._publish(node, acks)
            after = found[-1][0]

    async def keep_publishing(self) -> None:
        """Publish again what failed, and move the watermark, as long as the node lives."""
        while True:
            await trio.sleep(AGAIN_AFTER)
            failed, self._failed = self._failed, []
            for node, acks in failed:
                self._publish(node, acks)
            watermark = min(self._unpublished)[0] - 1 if self._unpublished else self._last_place
            if watermark <= self._watermark:
                continue
            try:
                await self._inbox.published(watermark)
                self._watermark = watermark
            except StoreUnavailable:
                self._counters.store_failed += 1


def _entry(key: Key, others: tuple[Node, ...], item: Item | None, now: int) -> AckEntry:
    if item is None:
        return AckEntry(key, others, at=now)
    return AckEntry(key, others, item.envelope.order, item.attempts, item.sent_at, now)
