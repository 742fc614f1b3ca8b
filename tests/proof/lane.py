"""A message table in memory that answers as one behind a lane does: in the order in which things took effect."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import trio

from yanchat.backends.memory import MemoryStore
from yanchat.errors import StoreUnavailable

R = TypeVar("R")


class LaneStore(MemoryStore):
    """Nobody hears of a later commit before somebody else hears of an earlier one."""

    def __init__(self, store_id: str) -> None:
        super().__init__(store_id)
        self._answered = 0.0

    async def _write(self, work: Callable[[], R]) -> R:
        await trio.sleep(self.before_commit)
        self._wrote = self.writable
        if not self.writable:
            raise StoreUnavailable("The store takes nothing now; make room on the disk.")
        return await self._answer(work(), self.after_commit)

    async def _read(self, work: Callable[[], R]) -> R:
        await trio.sleep(self.before_read)
        return await self._answer(work(), 0.0)

    async def _answer(self, result: R, after: float) -> R:
        self._answered = max(self._answered, trio.current_time() + after)
        await trio.sleep_until(self._answered)
        return result
