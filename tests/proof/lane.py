"""A message table in memory that answers as one behind a lane does: batch by batch, in the order of taking effect."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

import trio

from yanchat.backends.memory import MemoryStore
from yanchat.errors import StoreUnavailable
from yanchat.model import Envelope, Key, MessageId, Row

R = TypeVar("R")


class LaneStore(MemoryStore):
    """Nobody hears of a later commit before somebody else hears of an earlier one.

    What took effect within one `after_commit` is one batch: all of it is answered at one instant, so that who asked
    goes on in any order, a read's answer behind those of writes that came after it.
    """

    def __init__(self, store_id: str) -> None:
        super().__init__(store_id)
        self.answered = 0.0
        """Until when somebody waits to hear of what has taken effect."""
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
        return await self._answer(work(), trio.current_time() + self.after_commit)

    async def _read(self, work: Callable[[], R]) -> R:
        await trio.sleep(self.before_read)
        return await self._answer(work(), trio.current_time())

    async def _answer(self, result: R, ready: float) -> R:
        batch = self.after_commit
        self.answered = max(self.answered, math.ceil(ready / batch) * batch if batch else ready)
        await trio.sleep_until(self.answered)
        return result
