"""What arrives for users here: push it, and take their acks. The recipient's side of every message."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import structlog
import trio

from yanchat.errors import StoreUnavailable
from yanchat.model import ACKED, AckEntry, Key, MessageId, Node, OpenId, SessionId
from yanchat.node.hub import Hub, Session
from yanchat.node.looks import Mailboxes
from yanchat.node.mailbox import Item
from yanchat.ports import Batch, Bus, Clock, Inbox, Outbox
from yanchat.protocol import frames
from yanchat.protocol.frames import Dates
from yanchat.protocol.ids import is_message_id
from yanchat.protocol.records import Acked, Arrived, Close, Gone, Pull, Push, Record, Tell
from yanchat.telemetry import Counters

AGAIN_AFTER = 1.0


class Delivery:
    """`take` serves local records, `serve` the bus's topic `message`, `run` the acks of users here."""

    def __init__(
        self,
        node: Node,
        hub: Hub,
        inbox: Inbox,
        outbox: Outbox,
        mailboxes: Mailboxes,
        bus: Bus,
        dates: Dates,
        clock: Clock,
        counters: Counters,
    ) -> None:
        self._node, self._hub, self._inbox, self._outbox = node, hub, inbox, outbox
        self._mailboxes, self._bus = mailboxes, bus
        self._dates, self._clock, self._counters = dates, clock, counters
        self._acks: list[tuple[Session, str]] = []
        self._wake = trio.Event()
        self._busy = False
        self._unpublished: set[int] = set()
        self._last_place = 0
        self._failed: list[tuple[Node, list[tuple[Key, int]]]] = []

    # -- what arrives --------------------------------------------------------------------------------------------------
    async def serve(self, batches: AsyncIterator[Batch]) -> None:
        """Serve the bus, as long as the node lives."""
        async for batch in batches:
            while True:
                try:
                    await self._batch(batch.records)
                    await batch.commit()
                    break
                except StoreUnavailable as error:
                    structlog.get_logger().warning("delivery.store_failed", error=str(error))
                    self._counters.store_failed += 1
                    await trio.sleep(AGAIN_AFTER)

    async def _batch(self, records: Sequence[Record]) -> None:
        pushes = [record for record in records if isinstance(record, Push)]
        keys = [push.envelope.key for push in pushes]
        known = dict(zip(keys, await self._inbox.known(keys), strict=True)) if keys else {}
        again: dict[Node, list[Key]] = {}
        fresh: list[Record] = []
        for record in records:
            if isinstance(record, Push) and known[record.envelope.key]:  # acked before: say so again, push nothing
                self._counters.duplicates += 1
                again.setdefault(record.origin, []).append(record.envelope.key)
            else:
                fresh.append(record)
        for node, acked in again.items():
            self._bus.publish(node, [Acked(self._node, tuple(acked))])
        self.take(fresh)

    def take(self, records: Sequence[Record]) -> None:  # noqa: PLR0912 - one branch for each kind of record
        """Hand records to the sessions they name; say which of those are gone, and what has arrived."""
        arrived: dict[Node, list[Key]] = {}
        gone: dict[Node, list[tuple[OpenId, SessionId]]] = {}
        for record in records:
            match record:
                case Push(envelope=envelope):
                    for session in self._named(record, envelope.recipient, record.sessions, gone):
                        session.push(envelope, record.origin, record.cause, record.redelivered)
                        self._counters.pushed += 1
                        arrived.setdefault(record.origin, []).append(envelope.key)
                case Tell(notice=notice):
                    date = self._dates(self._clock.wall())
                    for session in self._named(record, notice.sender, record.sessions, gone):
                        session.tell(notice, record.origin, date, self._clock.monotonic())
                case Pull():
                    self._mailboxes.pulled(record.openid)
                case Close():
                    for session in self._hub.all():
                        if session.record.session_id == record.session_id:
                            session.outlet.close(record.code, record.reason)
                case _:
                    pass  # belongs to the other topic
        for node, keys in arrived.items():
            if node == self._node:
                self.arrived(keys)
            else:
                self._bus.publish(node, [Arrived(self._node, tuple(keys))])
        for node, sessions in gone.items():
            self.tell_gone(node, sessions)

    def arrived(self, keys: Sequence[Key]) -> None:
        for key in keys:
            item = self._mailboxes.item(key)
            if item is not None:
                item.arrived_at = item.arrived_at or self._clock.wall()

    def _named(
        self,
        record: Push | Tell,
        openid: OpenId,
        session_ids: Sequence[SessionId],
        gone: dict[Node, list[tuple[OpenId, SessionId]]],
    ) -> list[Session]:
        found = []
        for session_id in session_ids:
            session = self._hub.get(openid, session_id)
            if session is None:
                gone.setdefault(record.origin, []).append((openid, session_id))
            else:
                found.append(session)
        return found

    def tell_gone(self, node: Node, sessions: Sequence[tuple[OpenId, SessionId]]) -> None:
        """These sessions are not here (any more): their origin looks again."""
        if node == self._node:
            for openid, session_id in sessions:
                self._mailboxes.gone(openid, (self._node, session_id))
        else:
            self._bus.publish(node, [Gone(self._node, tuple(sessions))])

    # -- the acks of users here ----------------------------------------------------------------------------------------
    def acked(self, session: Session, message_id: str) -> None:
        """A client's type 15."""
        self._acks.append((session, message_id))
        self._wake.set()

    @property
    def idle(self) -> bool:
        return not (self._acks or self._busy)

    async def run(self) -> None:
        """Record acks batch by batch, then answer them, as long as the node lives."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            batch, self._acks, self._busy = self._acks, [], True
            try:
                await self._record(batch)
            except StoreUnavailable as error:
                structlog.get_logger().error("store.ack_failed", error=str(error))
                self._counters.store_failed += 1
                for session, message_id in batch:  # not acked: it will be pushed again
                    self._answer(session, message_id, 503)
            self._busy = False

    async def _record(self, batch: list[tuple[Session, str]]) -> None:
        now = self._clock.wall()
        entries: dict[Key, AckEntry] = {}
        items: dict[Key, Item] = {}
        answers: list[tuple[Session, str, int]] = []
        for session, text in batch:
            key = (MessageId(text), session.openid)
            status, origins = 200, self._hub.owed_to(session.openid, key[0])
            if not origins:
                status, origins = await self._unknown(session, text)
            answers.append((session, text, status))
            if origins:
                item = await self._own(key) if self._node in origins else None
                if item is not None:
                    items[key] = item
                entries[key] = _entry(key, origins - {self._node}, item, now)
        places = await self._inbox.ack(list(entries.values())) if entries else []
        for session, text, status in answers:
            self._answer(session, text, status)
        remote: dict[Node, list[tuple[Key, int]]] = {}
        for entry, place in zip(entries.values(), places, strict=True):
            self._counters.acked += 1
            self._hub.acked(entry.key[1], entry.key[0])
            if entry.key in items:
                self._mailboxes.settled(items[entry.key], ACKED, now)
            for node in entry.origins:
                remote.setdefault(node, []).append((entry.key, place))
        for node, acks in remote.items():
            self.publish_acks(node, acks)

    async def _own(self, key: Key) -> Item | None:
        """Our own row, from memory or from disk."""
        item = self._mailboxes.item(key)
        if item is None:
            (row,) = await self._outbox.find([key])
            item = Item(row, before=True) if row is not None else None
        return item

    async def _unknown(self, session: Session, text: str) -> tuple[int, set[Node]]:
        """An ack of what no session here was given: 200 when it was acked before, 403, 404, or our own open row."""
        if not is_message_id(text):
            return 404, set()
        rows, acked = await self._inbox.recipients(MessageId(text))
        if session.openid in acked:
            return 200, set()
        if session.openid in rows:
            return 200, {self._node}
        return (403 if rows or acked else 404), set()

    def publish_acks(self, node: Node, acks: list[tuple[Key, int]]) -> None:
        """Tell an origin; what may not have left is published again after a second."""
        places = {place for _, place in acks}
        self._unpublished |= places
        self._last_place = max(self._last_place, *places)

        def stored(ok: bool) -> None:
            if ok:
                self._unpublished.difference_update(places)
            else:
                self._failed.append((node, acks))

        self._bus.publish(node, [Acked(self._node, tuple(key for key, _ in acks))], stored)

    async def keep_publishing(self) -> None:
        """Publish what an earlier life may not have, what failed, and move the watermark, as long as the node lives."""
        for place, entry in await self._inbox.unsent(1_000_000):
            for node in entry.origins:
                self.publish_acks(node, [(entry.key, place)])
        while True:
            await trio.sleep(AGAIN_AFTER)
            failed, self._failed = self._failed, []
            for node, acks in failed:
                self.publish_acks(node, acks)
            watermark = min(self._unpublished, default=self._last_place + 1) - 1
            try:
                await self._inbox.published(watermark)
            except StoreUnavailable:
                self._counters.store_failed += 1

    def _answer(self, session: Session, message_id: str, status: int) -> None:
        session.outlet.send(frames.ack_receipt(self._dates(self._clock.wall()), message_id, status))


def _entry(key: Key, others: set[Node], item: Item | None, now: int) -> AckEntry:
    if item is None:
        return AckEntry(key, tuple(sorted(others)), at=now)
    return AckEntry(key, tuple(sorted(others)), item.envelope.order, item.attempts, item.sent_at, now)
