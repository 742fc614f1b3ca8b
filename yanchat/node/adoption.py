"""Adopting the rows of a dead node: store them, say so, take them into the books, hear what came back for that node.

It is a task of its own, so that nobody who is served here waits for it. Who sends the rows: `yanchat/adoption.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import structlog
import trio
from msgspec.structs import replace

from yanchat import failpoint
from yanchat.errors import BusUnavailable, StoreUnavailable
from yanchat.model import ACKED, Node, Row
from yanchat.node.ledger import AGAIN_AFTER
from yanchat.node.mailboxes import Mailboxes
from yanchat.node.settlement import Settlement
from yanchat.ports import Bus, Clock, Inbox, Outbox
from yanchat.protocol.ids import COUNTER_BITS, Orders
from yanchat.protocol.records import Adopt, Adopted
from yanchat.telemetry import Counters

X = TypeVar("X")
REST, LONGEST_REST = 10.0, 30.0
"""So many times as long as it took to read a topic, none is read: every answer to a batch makes it longer. Seconds."""


class Adoption:
    """`take` takes records `adopt`; `run` serves them one by one. Each may come again, and changes nothing then."""

    def __init__(
        self,
        node: Node,
        outbox: Outbox,
        inbox: Inbox,
        orders: Orders,
        mailboxes: Mailboxes,
        settlement: Settlement,
        bus: Bus,
        clock: Clock,
        counters: Counters,
    ) -> None:
        self._node, self._outbox, self._inbox, self._orders = node, outbox, inbox, orders
        self._mailboxes, self._settlement, self._bus = mailboxes, settlement, bus
        self._clock, self._counters = clock, counters
        self._queue: deque[Adopt] = deque()
        self._unheard: dict[Node, None] = {}
        """Dead nodes whose ack topics are to be read since their last batch."""
        self._hear_at = 0.0
        self._wake = trio.Event()

    def take(self, record: Adopt) -> None:
        """Have these rows adopted. What is lost with this process is sent again by who waits for the answer."""
        if record.dead != self._node and record not in self._queue:
            self._queue.append(record)
            self._wake.set()

    @property
    def idle(self) -> bool:
        """Nothing is half adopted: an ack that came back for the dead node is known here."""
        return not (self._queue or self._unheard)

    async def run(self) -> None:
        """Adopt, as long as the node lives."""
        while True:
            with trio.move_on_at(self._hear_at if self._unheard else float("inf")):
                await self._wake.wait()
            self._wake = trio.Event()
            while self._queue:
                await self._until_done(self._adopt, self._queue[0])
                self._unheard[self._queue.popleft().dead] = None
            if self._unheard and self._clock.monotonic() >= self._hear_at:
                dead = next(iter(self._unheard))
                await self._until_done(self._hear, dead)
                del self._unheard[dead]

    async def _until_done(self, work: Callable[[X], Awaitable[None]], what: X) -> None:
        while True:
            try:
                return await work(what)
            except (StoreUnavailable, BusUnavailable) as error:
                structlog.get_logger().warning("adoption.failed", error=str(error))
                self._counters.store_failed += isinstance(error, StoreUnavailable)
                await trio.sleep(AGAIN_AFTER)

    async def _adopt(self, record: Adopt) -> None:
        now = self._clock.wall()
        rows = await self._with_acks_here(record.rows, now)
        await self._settlement.learn(rows)
        rows = self._with_safe_orders(rows, now)
        came = await self._outbox.adopt(rows, now)
        failpoint.hit("adopted")
        keys = tuple(row.envelope.key for row in record.rows)
        self._bus.publish(record.dead, [Adopted(self._node, record.run, record.dead, keys)])
        for row in came:
            if self._counters.trail is not None:
                self._counters.trail.adopted(row.envelope, record.dead)
            self._mailboxes.adopted(row)
        structlog.get_logger().info("rows.adopted", dead=record.dead, rows=len(came), run=record.run)

    async def _with_acks_here(self, rows: Sequence[Row], now: int) -> list[Row]:
        """The users of this node may have acked some: nobody tells us of that, for the acks went to the dead node."""
        known = await self._inbox.known([row.envelope.key for row in rows])
        return [
            replace(row, rank=ACKED, settled_at=now) if acked and row.rank < ACKED else row
            for row, acked in zip(rows, known, strict=True)
        ]

    def _with_safe_orders(self, rows: Sequence[Row], now: int) -> list[Row]:
        """None may meet a message that is being accepted here, nor lie in the future of our clock.

        From now on messages get orders behind those that any of these rows can get; what got one before is before us in
        the store's queue.
        """
        latest = now << COUNTER_BITS
        self._orders.take(now, len(rows))
        ordered = sorted(rows, key=lambda row: row.envelope.order)
        return [
            replace(row, envelope=replace(row.envelope, order=latest)) if row.envelope.order > latest else row
            for row in ordered
        ]

    async def _hear(self, dead: Node) -> None:
        """Settle what has come back for the dead node; when it comes back itself, that is none of its business."""
        began = self._clock.monotonic()
        await self._settlement.hear(await self._bus.read(dead, "ack"))
        now = self._clock.monotonic()
        self._hear_at = now + min(REST * (now - began), LONGEST_REST)
