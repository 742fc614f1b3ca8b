"""Committing what was served of a topic, behind the serving, so that no batch waits for the one before."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog
import trio

from yanchat.errors import YanchatError
from yanchat.ports import Batch

AGAIN_AFTER = 1.0


class Commits:
    """The newest served batch stands for all before it. `written` is awaited first: what the batch said is on disk."""

    def __init__(self, written: Callable[[], Awaitable[None]] | None = None) -> None:
        self._written = written
        self._newest: Batch | None = None
        self._wake = trio.Event()

    def served(self, batch: Batch) -> None:
        self._newest = batch
        self._wake.set()

    @property
    def idle(self) -> bool:
        return self._newest is None

    async def run(self) -> None:
        """Commit, as long as the node lives; what fails is tried again, and until then may be served again."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            while (batch := self._newest) is not None:
                if self._written is not None:
                    await self._written()
                try:
                    await batch.commit()
                except YanchatError as error:
                    structlog.get_logger().warning("bus.commit_failed", error=str(error))
                    await trio.sleep(AGAIN_AFTER)
                    continue
                if self._newest is batch:
                    self._newest = None
