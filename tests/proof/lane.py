"""A message table in memory that answers as one behind a lane does: in the order in which things took effect."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

import trio

from yanchat.backends.memory import MemoryStore
from yanchat.errors import StoreUnavailable
from yanchat.model import Envelope, Key, MessageId, Row

R = TypeVar("R")


class LaneStore(MemoryStore):
    """Nobody hears of a later commit before somebody else hears of an earlier one."""

    def __init__(self, store_id: str) -> None:
        super().__init__(store_id)
        self._answered = 0.0
        self.wrong: list[str] = []
        """What it was asked for and should not have been."""
        self.adopting: Callable[[Sequence[Row]], None] = lambda rows: None
        """Called with rows of another node that are about to be adopted here."""
        self.moving: Callable[[Sequence[Key]], None] = lambda keys: None
        """Called with rows that are about to be marked as moved."""

    def _add(self, messages: Sequence[Sequence[Envelope]], quiet: Collection[MessageId]) -> list[list[bool]]:
        try:
            return super()._add(messages, quiet)
        except StoreUnavailable as error:
            self.wrong.append(str(error))
            raise

    async def adopt(self, rows: Sequence[Row], at: int) -> list[Row]:
        self.adopting(rows)
        return await super().adopt(rows, at)

    async def moved(self, keys: Sequence[Key], at: int) -> None:
        self.moving(keys)
        await super().moved(keys, at)

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
