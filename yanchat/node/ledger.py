"""What has become of rows, on its way to disk: steps are put without waiting and written until they are there.

Memory runs ahead of the disk by what stands here. Whoever reads rows, or promises that something is written, waits for
`flushed` first.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog
import trio

from yanchat.errors import StoreUnavailable
from yanchat.model import Step
from yanchat.ports import Outbox
from yanchat.telemetry import Counters

AGAIN_AFTER = 1.0


class Ledger:
    """Writes in the order in which it was put; a full disk only makes it wait."""

    def __init__(self, outbox: Outbox, counters: Counters) -> None:
        self._outbox, self._counters = outbox, counters
        self._steps: list[Step] = []
        self._put = self._written = 0
        self._wake, self._progress = trio.Event(), trio.Event()

    def put(self, steps: Sequence[Step]) -> None:
        """Have these written soon."""
        self._steps += steps
        self._put += len(steps)
        self._wake.set()

    async def flushed(self) -> None:
        """Wait until all that was put before is on disk."""
        wanted = self._put
        while self._written < wanted:
            await self._progress.wait()

    @property
    def idle(self) -> bool:
        return self._written == self._put

    async def run(self) -> None:
        """Write what is put, as long as the node lives."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            steps, self._steps = self._steps, []
            while steps:
                try:
                    await self._outbox.record(steps)
                    break
                except StoreUnavailable as error:
                    structlog.get_logger().warning("ledger.store_failed", error=str(error))
                    self._counters.store_failed += 1
                    await trio.sleep(AGAIN_AFTER)
            self._written += len(steps)
            self._progress.set()
            self._progress = trio.Event()
