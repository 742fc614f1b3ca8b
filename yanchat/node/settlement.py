"""What comes back to the accepting node: arrived, ack, told, gone. A rank only rises, so repeats do no harm."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import structlog
import trio

from yanchat.errors import StoreUnavailable
from yanchat.model import ACKED, GIVEN_UP, Key, Node, Row, Step
from yanchat.node.commits import Commits
from yanchat.node.hub import Session
from yanchat.node.ledger import AGAIN_AFTER, Ledger
from yanchat.node.mailbox import Item
from yanchat.node.mailboxes import Mailboxes
from yanchat.ports import Batch, Bus, Clock, Outbox
from yanchat.protocol.records import Acked, Arrived, Gone, Record, Told
from yanchat.telemetry import Counters


class Settlement:
    """`serve` serves the bus's topic `ack`; `answered` what sessions here were told; `bury` what has expired."""

    def __init__(
        self,
        node: Node,
        outbox: Outbox,
        ledger: Ledger,
        mailboxes: Mailboxes,
        bus: Bus,
        clock: Clock,
        counters: Counters,
    ) -> None:
        self._node, self._outbox, self._ledger, self._mailboxes = node, outbox, ledger, mailboxes
        self._bus, self._clock, self._counters = bus, clock, counters
        self.commits = Commits(ledger.flushed)
        self.caught_up = trio.Event()
        """The ack topic has been read to where it ended at the start: only now may rows be given up."""

    async def serve(self, batches: AsyncIterator[Batch]) -> None:
        """Serve the bus, as long as the node lives. A batch is committed when what it says is on disk."""
        async for batch in batches:
            while True:
                try:
                    await self._batch(batch.records)
                    break
                except StoreUnavailable as error:
                    structlog.get_logger().warning("settlement.store_failed", error=str(error))
                    self._counters.store_failed += 1
                    await trio.sleep(AGAIN_AFTER)
            self.commits.served(batch)
            if batch.caught_up:
                self.caught_up.set()

    async def _batch(self, records: Sequence[Record]) -> None:
        acked: list[Key] = []
        told: list[tuple[Key, int]] = []
        for record in records:
            match record:
                case Arrived():
                    self.arrived(record.keys)
                case Acked():
                    acked += record.keys
                case Told():
                    told += [(key, record.rank) for key in record.keys]
                case Gone():
                    for openid, session_id in record.sessions:
                        self._mailboxes.gone(openid, (record.origin, session_id))
                case _:
                    pass  # belongs to the other topic
        items = await self._items([*acked, *(key for key, _ in told)])
        now = self._clock.wall()
        steps: list[Step] = []
        for key in acked:
            if key in items and self._mailboxes.settled(items[key], ACKED, now):
                steps.append(items[key].step())
        for key, rank in told:
            if key in items and self._mailboxes.told(items[key], rank):
                steps.append(items[key].step(told_at=now))
        self._ledger.put(steps)

    async def _items(self, keys: Sequence[Key]) -> dict[Key, Item]:
        """The rows of these keys, from memory or from disk; what we do not have is missing."""
        found = {key: item for key in keys if (item := self._mailboxes.items.get(key)) is not None}
        missing = [key for key in dict.fromkeys(keys) if key not in found]
        if missing:
            await self._ledger.flushed()
            for row in await self._outbox.find(missing):
                if row is not None:
                    key = row.envelope.key  # it may have come into memory meanwhile
                    found[key] = self._mailboxes.items.get(key) or Item(row, before=True)
        return found

    def arrived(self, keys: Sequence[Key]) -> None:
        """A recipient's node has handed these to his sessions."""
        for key in keys:
            item = self._mailboxes.items.get(key)
            if item is not None:
                item.arrived_at = item.arrived_at or self._clock.wall()

    # -- notices -------------------------------------------------------------------------------------------------------
    def answered(self, session: Session) -> None:
        """A session has answered the ping behind its notices: they are told."""
        now, remote = self._clock.wall(), dict[tuple[Node, int], list[Key]]()
        steps: list[Step] = []
        for (message_id, recipient, rank), origins in session.take_told():
            key = (message_id, recipient)
            for node in origins:
                if node != self._node:
                    remote.setdefault((node, rank), []).append(key)
                    continue
                item = self._mailboxes.items.get(key)
                if item is not None and self._mailboxes.told(item, rank):
                    steps.append(item.step(told_at=now))
        self._ledger.put(steps)
        for (node, rank), keys in remote.items():
            self._bus.publish(node, [Told(self._node, tuple(keys), rank)])

    # -- expiry --------------------------------------------------------------------------------------------------------
    async def bury(self, rows: Sequence[Row]) -> int:
        """Give up open rows, whose senders are then told (410), and notices that nobody came for. How many were."""
        now = self._clock.wall()
        steps: list[Step] = []
        for row in rows:
            item = self._mailboxes.items.get(row.envelope.key) or Item(row, before=True)
            if row.told < row.rank:
                if self._mailboxes.told(item, row.rank):
                    steps.append(item.step())
            elif self._mailboxes.settled(item, GIVEN_UP, now):
                self._counters.expired += 1
                steps.append(item.step())
                structlog.get_logger().info("message.expired", message_id=row.envelope.message_id)
        self._ledger.put(steps)
        await self._ledger.flushed()
        return len(steps)
