"""A request that comes again after its message has ended: its sender is told once more what became of it."""

from __future__ import annotations

import structlog
import trio

from yanchat.errors import StoreUnavailable
from yanchat.model import OPEN, Key, Node
from yanchat.node.hub import Session
from yanchat.node.ledger import Ledger
from yanchat.node.tray import Item
from yanchat.ports import Clock, Outbox
from yanchat.protocol.frames import Dates

AT_ONCE = 200


class Repeats:
    """`again` takes them, `run` tells. What the sender has not been told yet is the mailbox's business."""

    def __init__(self, node: Node, outbox: Outbox, ledger: Ledger, dates: Dates, clock: Clock) -> None:
        self._node, self._outbox, self._ledger, self._dates, self._clock = node, outbox, ledger, dates, clock
        self._queue: list[tuple[Session, Key]] = []
        self._wake = trio.Event()

    def again(self, session: Session, key: Key) -> None:
        """This session has sent what was accepted before."""
        self._queue.append((session, key))
        self._wake.set()

    async def run(self) -> None:
        """Tell, as long as the node lives."""
        while True:
            await self._wake.wait()
            batch, self._queue = self._queue[:AT_ONCE], self._queue[AT_ONCE:]
            if not self._queue:
                self._wake = trio.Event()
            await self._ledger.flushed()
            try:
                rows = await self._outbox.find([key for _, key in batch])
            except StoreUnavailable as error:  # the request may come once more
                structlog.get_logger().warning("repeats.store_failed", error=str(error))
                continue
            for (session, _), row in zip(batch, rows, strict=True):
                if session.open and row is not None and row.told >= row.rank > OPEN:
                    date, now = self._dates(self._clock.wall()), self._clock.monotonic()
                    session.tell(Item.read(row, before=True).notice(), self._node, date, now)
