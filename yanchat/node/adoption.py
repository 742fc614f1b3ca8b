"""Adopting the rows of a dead node: store them, say so, take them into the books, hear what comes back for that node.

It is a task of its own, so that nobody who is served here waits for it. Who sends the rows: `yanchat/adoption.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Final

import structlog
import trio
from msgspec.structs import replace

from yanchat import failpoint
from yanchat.errors import BusUnavailable, StoreUnavailable
from yanchat.model import ACKED, Node, Row
from yanchat.node.ledger import AGAIN_AFTER
from yanchat.node.mailboxes import Mailboxes
from yanchat.node.settlement import Settlement
from yanchat.ports import CAME_FROM, Bus, Clock, Inbox, Outbox
from yanchat.protocol.ids import COUNTER_BITS, Orders
from yanchat.protocol.records import Adopt, Adopted
from yanchat.telemetry import Counters

REST: Final = 10.0
"""So many times as long as it took to read the topics of dead nodes, none is read."""
FOREVER: Final = 1 << 46
"""No message was accepted later (ms): an order has room for it."""
UNHEARD: Final = "its messages are given up only when its ack topic can be read, or has been deleted"
SOON, SELDOM = 3.0, 60.0
"""After so many seconds they are read again, then after twice as long, and so on up to the latter."""


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
        dead: Mapping[Node, int],
    ) -> None:
        self._node, self._outbox, self._inbox, self._orders = node, outbox, inbox, orders
        self._mailboxes, self._settlement, self._bus = mailboxes, settlement, bus
        self._clock, self._counters = clock, counters
        self._queue: deque[Adopt] = deque()
        self._dead = dict(dead)
        """Nodes whose ack topics are read, for a row of theirs may be open: all that are were accepted by then (ms)."""
        self._pause, self._hear_at, self._rested_at = SOON, clock.monotonic() + SOON, 0.0
        self._wake = trio.Event()

    def take(self, record: Adopt) -> None:
        """Have these rows adopted. What is lost with this process is sent again by who waits for the answer."""
        if record.dead != self._node and record not in self._queue:
            self._queue.append(record)
            self._wake.set()

    @property
    def idle(self) -> bool:
        """Nothing is half adopted."""
        return not self._queue

    async def run(self) -> None:
        """Adopt, as long as the node lives."""
        while True:
            with trio.move_on_at(self._hear_at if self._dead else float("inf")):
                await self._wake.wait()
            self._wake = trio.Event()
            while self._queue:
                if not await self._done(partial(self._adopt, self._queue[0])):
                    await trio.sleep(AGAIN_AFTER)
                    continue
                self._queue.popleft()
                self._pause, self._hear_at = SOON, self._rested_at
            if self._dead and self._clock.monotonic() >= self._hear_at:
                await self._hear_in_turn()

    async def _done(self, work: Callable[[], Awaitable[None]]) -> bool:
        try:
            await work()
        except (StoreUnavailable, BusUnavailable) as error:
            structlog.get_logger().warning("adoption.failed", error=str(error))
            self._counters.store_failed += isinstance(error, StoreUnavailable)
            return False
        return True

    async def _adopt(self, record: Adopt) -> None:
        await self._prepare_to_hear(record)
        rows = await self._with_acks_here(record.rows, self._clock.wall())
        await self._settlement.learn(rows)
        now = self._clock.wall()
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

    # -- what comes back for dead nodes --------------------------------------------------------------------------------
    async def _prepare_to_hear(self, record: Adopt) -> None:
        """Have it on disk, before the rows are, that acks of them may come to another's topic."""
        envelopes = [row.envelope for row in record.rows]
        times = [max(one.accepted_at, one.order >> COUNTER_BITS) for one in envelopes]
        last = min(max(self._clock.wall(), *times, 0) + 1, FOREVER)
        for node in sorted({record.dead, *record.earlier} - {self._node}):
            self._dead[node] = max(last, await self._outbox.mark(CAME_FROM + node, last))

    async def hear(self) -> bool:
        """Settle what has come back by now; whether all of it. Nothing is committed: the node may come back."""
        whole = True
        for node in list(self._dead):
            try:
                records = await self._bus.read(node, "ack")
            except BusUnavailable as error:
                structlog.get_logger().warning("adoption.not_heard", dead=node, error=str(error), do=UNHEARD)
                whole = False
            else:
                await self._settlement.hear(records)
        return whole

    async def _hear_in_turn(self) -> None:
        began = self._clock.monotonic()
        if await self._done(self._forget):
            await self._done(self._hear_all)
        now = self._clock.monotonic()
        self._rested_at = now + REST * (now - began)
        self._hear_at = max(now + self._pause, self._rested_at)
        self._pause = min(2 * self._pause, SELDOM)

    async def _hear_all(self) -> None:
        await self.hear()

    async def _forget(self) -> None:
        """Let go those of whose rows none can be open any more."""
        for node, last in list(self._dead.items()):
            if not await self._outbox.expired(last + 1, 0, 1):
                del self._dead[node]
