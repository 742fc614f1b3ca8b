"""Virtual time and a seeded scheduler for trio: one seed is one run, in every process; and tasks that can be paused.

Time jumps to the next deadline as soon as nothing can run. trio's own chances come from the seed as well.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from itertools import count
from typing import Any
from unittest.mock import patch

import trio
from trio._core import _run


class VirtualClock(trio.abc.Clock):
    """Costs one turn of trio's loop for each instant at which anything happens.

    `sleep` and `sleep_until` stand for trio's while it runs: those cancel a scope each time, half of what a run costs.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._numbers = count()
        self._sleeping: list[tuple[float, int, list[trio.lowlevel.Task]]] = []
        """A heap: until when, and the task, which is taken out when it is cancelled."""

    async def sleep(self, seconds: float) -> None:
        await self.sleep_until(self._now + seconds)

    async def sleep_until(self, deadline: float) -> None:
        if deadline <= self._now:
            await trio.lowlevel.checkpoint()
            return
        sleeper = [trio.lowlevel.current_task()]

        def abort(_: object) -> trio.lowlevel.Abort:
            sleeper.clear()
            return trio.lowlevel.Abort.SUCCEEDED

        heapq.heappush(self._sleeping, (deadline, next(self._numbers), sleeper))
        await trio.lowlevel.wait_task_rescheduled(abort)

    def start_clock(self) -> None:
        pass

    def current_time(self) -> float:
        return self._now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Asked only when no task can run: it is later at once. Without any deadline trio itself waits, at its end."""
        while self._sleeping and not self._sleeping[0][2]:
            heapq.heappop(self._sleeping)
        if self._sleeping:
            deadline = min(deadline, self._sleeping[0][0])
        if deadline == float("inf"):
            return deadline
        self._now = max(self._now, deadline)
        while self._sleeping and self._sleeping[0][0] <= self._now:
            for task in heapq.heappop(self._sleeping)[2]:
                trio.lowlevel.reschedule(task)
        return 0


class Pause:
    """Tasks that run under it, and all that they start, stand still while it lasts, as those of a stopped process."""

    def __init__(self) -> None:
        self.on = False
        self._held: list[trio.lowlevel.Task] = []

    def cover(self) -> None:
        """The current task, and what it starts from now on."""
        _PAUSE.set(self)

    def covers(self, task: trio.lowlevel.Task) -> bool:
        return task.context.get(_PAUSE) is self

    def begin(self) -> None:
        self.on = True

    def end(self) -> None:
        """All that has become due meanwhile goes on."""
        self.on = False
        held, self._held = self._held, []
        for task in held:
            _run.GLOBAL_RUN_CONTEXT.runner.runq.append(task)

    def hold(self, task: trio.lowlevel.Task) -> None:
        self._held.append(task)


_PAUSE: ContextVar[Pause | None] = ContextVar("_PAUSE", default=None)


class _Runnable(deque[Any]):
    """trio's queue of tasks that can run, without the paused ones."""

    def append(self, task: trio.lowlevel.Task) -> None:
        pause = task.context.get(_PAUSE)
        if pause is not None and pause.on:
            pause.hold(task)
        else:
            super().append(task)


class CrashAt(trio.abc.Instrument):
    """Calls `crash` before the so-manieth step of the tasks under a pause: at whatever await that is."""

    def __init__(self, pause: Pause, steps: int, crash: Callable[[], None]) -> None:
        self._pause, self._left, self._crash = pause, steps, crash

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if self._pause.covers(task):
            self._left -= 1
            if self._left == 0:
                self._crash()

    def arm(self) -> None:
        trio.lowlevel.add_instrument(self)

    def disarm(self) -> None:
        trio.lowlevel.remove_instrument(self)


def run_virtually(seed: int, main: Callable[[], Awaitable[None]]) -> None:
    """Run `main` in virtual time, with all chances of the scheduler from the seed."""

    async def begin() -> None:
        runner = _run.GLOBAL_RUN_CONTEXT.runner
        runner.runq = _Runnable(runner.runq)
        await main()

    before = _run._ALLOW_DETERMINISTIC_SCHEDULING
    _run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    _run._r.seed(seed)
    clock = VirtualClock()
    try:
        with patch.object(trio, "sleep", clock.sleep), patch.object(trio, "sleep_until", clock.sleep_until):
            trio.run(begin, clock=clock)
    finally:
        _run._ALLOW_DETERMINISTIC_SCHEDULING = before  # type: ignore[misc]
