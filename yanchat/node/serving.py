"""Serving one topic of the bus: each batch until it is done; commits follow behind, so that no batch waits for them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import structlog
import trio

from yanchat.errors import StoreUnavailable, YanchatError
from yanchat.ports import Batch
from yanchat.protocol.records import Record, Topic
from yanchat.telemetry import Counters

AGAIN_AFTER = 1.0


class Serving:
    """`serve` takes the records of a batch, and is called again when it raises StoreUnavailable.

    `written` is awaited before a commit: what the batch said is on disk.
    """

    def __init__(
        self,
        topic: Topic,
        serve: Callable[[Sequence[Record]], Awaitable[None]],
        counters: Counters,
        written: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._topic, self._serve, self._counters, self._written = topic, serve, counters, written
        self._newest: Batch | None = None
        self._wake = trio.Event()
        self.caught_up = trio.Event()
        """The topic has been read to where it ended at the start."""

    @property
    def idle(self) -> bool:
        return self._newest is None

    async def run(self, batches: AsyncIterator[Batch]) -> None:
        """Serve, as long as the node lives."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._commit)
            async for batch in batches:
                await self._until_served(batch)
                self._newest = batch
                self._wake.set()
                if batch.caught_up:
                    self.caught_up.set()

    async def _until_served(self, batch: Batch) -> None:
        while True:
            try:
                await self._serve(batch.records)
                return
            except StoreUnavailable as error:
                structlog.get_logger().warning("bus.not_served", topic=self._topic, error=str(error))
                self._counters.store_failed += 1
                await trio.sleep(AGAIN_AFTER)

    async def _commit(self) -> None:
        """The newest served batch stands for all before it; what fails is tried again, and may be served again."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            while (batch := self._newest) is not None:
                if self._written is not None:
                    await self._written()
                try:
                    await batch.commit()
                except YanchatError as error:
                    structlog.get_logger().warning("bus.commit_failed", topic=self._topic, error=str(error))
                    await trio.sleep(AGAIN_AFTER)
                    continue
                if self._newest is batch:
                    self._newest = None
