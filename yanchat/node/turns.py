"""A queue in which everybody has his turn: whoever has put in a thousand things holds up nobody who has put in one."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """What each has put in comes out in that order; of different ones, in turn."""

    def __init__(self) -> None:
        self._waiting: dict[Hashable, deque[tuple[T, int]]] = {}
        """By whose it is, with weights; whose turn is next stands first."""
        self._weight = 0

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def put(self, whose: Hashable, item: T, weight: int = 1) -> None:
        """Let it wait; `weight` is at least 1."""
        waiting = self._waiting.get(whose)
        if waiting is None:
            self._waiting[whose] = deque(((item, weight),))
        else:
            waiting.append((item, weight))
        self._weight += weight

    def take(self, most: int) -> list[T]:
        """Take items in turn, until their weight is `most` or nothing is left: at least one, if there is one."""
        if self._weight <= most:
            taken = [item for waiting in self._waiting.values() for item, _ in waiting]
            self._waiting, self._weight = {}, 0
            return taken
        taken, least = [], self._weight - most
        while self._weight > least:
            whose = next(iter(self._waiting))
            waiting = self._waiting.pop(whose)
            item, weight = waiting.popleft()
            taken.append(item)
            self._weight -= weight
            if waiting:
                self._waiting[whose] = waiting
        return taken
