"""What comes back to the accepting node: arrived, ack, told, gone. A rank only rises, so repeats do no harm."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import structlog
import trio

from yanchat.errors import StoreUnavailable
from yanchat.model import ACKED, GIVEN_UP, Key, Node, Row, Step
from yanchat.node.delivery import AGAIN_AFTER, Delivery
from yanchat.node.hub import Session
from yanchat.node.looks import Mailboxes
from yanchat.node.mailbox import Item
from yanchat.ports import Batch, Bus, Clock, Outbox
from yanchat.protocol.records import Acked, Arrived, Gone, Record, Told
from yanchat.telemetry import Counters


class Settlement:
    """`serve` serves the bus's topic `ack`; `answered` what sessions here were told; `bury` what has expired."""

    def __init__(
        self,
        node: Node,
        outbox: Outbox,
        mailboxes: Mailboxes,
        delivery: Delivery,
        bus: Bus,
        clock: Clock,
        counters: Counters,
    ) -> None:
        self._node, self._outbox, self._mailboxes, self._delivery = node, outbox, mailboxes, delivery
        self._bus, self._clock, self._counters = bus, clock, counters
        self._steps: list[Step] = []
        self._wake = trio.Event()
        self._busy = False
        self.caught_up = trio.Event()
        """The ack topic has been read to where it ended at the start: only now may rows be given up."""

    async def serve(self, batches: AsyncIterator[Batch]) -> None:
        """Serve the bus, as long as the node lives. A batch is committed when what it says is on disk."""
        async for batch in batches:
            while True:
                try:
                    await self._batch(batch.records)
                    await batch.commit()
                    break
                except StoreUnavailable as error:
                    structlog.get_logger().warning("settlement.store_failed", error=str(error))
                    self._counters.store_failed += 1
                    await trio.sleep(AGAIN_AFTER)
            if batch.caught_up:
                self.caught_up.set()

    async def _batch(self, records: Sequence[Record]) -> None:  # noqa: PLR0912 - one branch for each kind
        acked: list[Key] = []
        told: list[tuple[Key, int]] = []
        for record in records:
            match record:
                case Arrived():
                    self._delivery.arrived(record.keys)
                case Acked():
                    acked += record.keys
                case Told():
                    told += [(key, record.rank) for key in record.keys]
                case Gone():
                    for openid, session_id in record.sessions:
                        self._mailboxes.gone(openid, (record.origin, session_id))
                case _:
                    pass  # belongs to the other topic
        now = self._clock.wall()
        items = await self._items([*acked, *(key for key, _ in told)])
        steps = []  # also for what is no news: the write behind an earlier try may have failed
        for key in acked:
            if key in items:
                self._mailboxes.settled(items[key], ACKED, now)
                steps.append(items[key].step())
        for key, rank in told:
            if key in items:
                self._mailboxes.told(items[key], rank)
                steps.append(items[key].step(told_at=now))
        if steps:
            await self._outbox.record(steps)
        for key in acked:
            if key in items and self._mailboxes.item(key) is None:
                self._mailboxes.refresh(items[key].envelope.sender)

    async def _items(self, keys: Sequence[Key]) -> dict[Key, Item]:
        """The rows of these keys, from memory or from disk; what we do not have is missing."""
        found = {key: item for key in keys if (item := self._mailboxes.item(key)) is not None}
        missing = [key for key in dict.fromkeys(keys) if key not in found]
        if missing:
            for row in await self._outbox.find(missing):
                if row is not None:
                    found[row.envelope.key] = Item(row, before=True)
        return found

    # -- notices -------------------------------------------------------------------------------------------------------
    def answered(self, session: Session) -> None:
        """A session has answered the ping behind its notices: they are told."""
        remote: dict[tuple[Node, int], list[Key]] = {}
        for (message_id, recipient, rank), origins in session.take_told():
            key = (message_id, recipient)
            for node in origins:
                if node == self._node:
                    self._told_here(key, rank)
                else:
                    remote.setdefault((node, rank), []).append(key)
        for (node, rank), keys in remote.items():
            self._bus.publish(node, [Told(self._node, tuple(keys), rank)])

    def _told_here(self, key: Key, rank: int) -> None:
        item = self._mailboxes.item(key)
        if item is not None and self._mailboxes.told(item, rank):
            self._steps.append(item.step(told_at=self._clock.wall()))
            self._wake.set()

    async def run(self) -> None:
        """Write what was told here, as long as the node lives; nobody waits for it."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            steps, self._steps, self._busy = self._steps, [], True
            while steps:
                try:
                    await self._outbox.record(steps)
                    break
                except StoreUnavailable:
                    self._counters.store_failed += 1
                    await trio.sleep(AGAIN_AFTER)
            self._busy = False

    @property
    def idle(self) -> bool:
        return not (self._steps or self._busy)

    # -- expiry --------------------------------------------------------------------------------------------------------
    async def bury(self, rows: Sequence[Row]) -> int:
        """Give up open rows, whose senders are then told (410), and notices that nobody came for. How many were."""
        now = self._clock.wall()
        steps: list[Step] = []
        for row in rows:
            item = self._mailboxes.item(row.envelope.key) or Item(row, before=True)
            if row.told < row.rank:
                if self._mailboxes.told(item, row.rank):
                    steps.append(item.step())
            elif self._mailboxes.settled(item, GIVEN_UP, now):
                self._counters.expired += 1
                steps.append(item.step())
                structlog.get_logger().info("message.expired", message_id=row.envelope.message_id)
        await self._outbox.record(steps)
        for row in rows:
            self._mailboxes.refresh(row.envelope.sender)
        return len(steps)
