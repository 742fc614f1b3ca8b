"""A queue in which everybody has his turn: whoever has put in a thousand things holds up nobody who has put in one."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """What each has put in comes out in that order; of different ones, in turn."""

    def __init__(self) -> None:
        self._waiting: dict[Hashable, deque[T]] = {}
        """By whose it is; whose turn is next stands first."""
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def put(self, whose: Hashable, item: T) -> None:
        waiting = self._waiting.get(whose)
        if waiting is None:
            self._waiting[whose] = deque((item,))
        else:
            waiting.append(item)
        self._size += 1

    def take(self, most: int) -> list[T]:
        """Take up to `most` items, from each the same number as far as he has so many."""
        if self._size <= most:
            taken = [item for waiting in self._waiting.values() for item in waiting]
            self._waiting, self._size = {}, 0
            return taken
        taken = []
        while len(taken) < most:
            whose = next(iter(self._waiting))
            waiting = self._waiting.pop(whose)
            taken.append(waiting.popleft())
            if waiting:
                self._waiting[whose] = waiting
        self._size -= len(taken)
        return taken
