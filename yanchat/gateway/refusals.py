"""What is logged of clients that are refused: each one, and of a flood a few lines a second and how many more came."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import structlog

from yanchat.errors import Refused

LINES: Final = 20
"""Refusals with 401 or 403 that are logged in a second; others are for who debugs."""
SECOND: Final = 1.0


class Refusals:
    """One for all connections of a node."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._began = now, now()
        self._lines = self._more = 0

    def log(self, remote: str, refused: Refused) -> None:
        """Say who was refused and why, if there is room for it in this second."""
        log = structlog.get_logger()
        say = log.debug
        if refused.status in (401, 403):
            self.sum_up()
            if self._lines == LINES:
                self._more += 1
                return
            self._lines += 1
            say = log.info
        say("login.refused", remote=remote, status=refused.status, reason=str(refused))

    def sum_up(self) -> None:
        """When the second is over, say how many have been left out; call it every second or so."""
        now = self._now()
        if now - self._began < SECOND:
            return
        if self._more:
            structlog.get_logger().warning("login.refused_more", refusals=self._more, for_s=round(now - self._began, 1))
        self._began, self._lines, self._more = now, 0, 0
