"""A thread that owns a blocking driver and serves its queue in batches; callers await their jobs on the trio loop.

All that is queued goes through one transaction, and all of it is completed with a single wake-up of the loop, in the
order in which it was queued. No driver is known here.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

import outcome
import trio

from yanchat.errors import StoreUnavailable

D = TypeVar("D", bound="Driver")
R = TypeVar("R")
MAX_BATCH = 512
LAZY_DELAY = 0.05


class Driver(Protocol):
    """What a lane drives. All but `map_error` may raise whatever the library raises."""

    def begin(self, writes: bool) -> None:
        """Start a transaction; without `writes` nothing in it changes anything."""

    def apart(self, work: Callable[[Any], R]) -> R:
        """Run one job inside the transaction. When it raises, it alone has had no effect.

        Raises without running it when there is no transaction any more.
        """

    def commit(self) -> None:
        """Make all of it durable. Raises when the transaction was lost on the way; then nothing of it has happened."""

    def rollback(self) -> None: ...
    def close(self) -> None: ...
    def map_error(self, error: Exception) -> Exception:
        """Our own exception for the library's; others pass through."""


class _Job(Generic[D]):
    __slots__ = ("lazy", "result", "task", "work", "writes")

    def __init__(self, work: Callable[[D], Any], lazy: bool, writes: bool, task: trio.lowlevel.Task) -> None:
        self.work, self.lazy, self.writes = work, lazy, writes
        self.task: trio.lowlevel.Task | None = task
        self.result: outcome.Outcome[Any]


class Lane(Generic[D]):
    """Serves jobs until `close`. `make` opens the driver inside the thread; its errors come out of `open`."""

    def __init__(self, name: str, make: Callable[[], D], committed: Callable[[float], None] | None = None) -> None:
        """`committed` is told, in the thread, how many seconds each batch that writes took."""
        self._make, self._name, self._committed = make, name, committed
        self._queue: SimpleQueue[_Job[D] | None] = SimpleQueue()
        """None: close."""
        self._closing = False
        self._token: trio.lowlevel.TrioToken | None = None
        self._thread: threading.Thread | None = None
        self._began = 0.0
        """When the batch under way was taken; 0 between batches."""
        self.last_ok = True
        """Whether the last batch that writes went through, without StoreUnavailable for any of its jobs."""

    async def open(self) -> None:
        """Start the thread and open the driver; raises what opening raised."""
        self._token = trio.lowlevel.current_trio_token()
        opened: outcome.Outcome[None] | None = None
        done = trio.Event()

        def tell(result: outcome.Outcome[None]) -> None:
            nonlocal opened
            opened = result
            done.set()

        self._thread = threading.Thread(target=self._serve, args=(tell,), name=self._name, daemon=True)
        self._thread.start()
        with trio.CancelScope(shield=True):
            await done.wait()
        if isinstance(opened, outcome.Error):
            await self.close()
            opened.unwrap()

    async def close(self) -> None:
        """Finish what is queued, close the driver, end the thread."""
        if not self._closing:
            self._closing = True
            self._queue.put(None)
        if self._thread is not None:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._thread.join)

    async def run(self, work: Callable[[D], R], *, lazy: bool = False, writes: bool = True) -> R:
        """Run `work` on the driver and wait until it is committed. Cancelled: it took effect or not.

        A lazy job waits up to 50 ms for company. A batch of jobs that all do not write needs no lock of the driver.
        """
        job: _Job[D] = _Job(work, lazy, writes, trio.lowlevel.current_task())
        if self._closing:
            raise StoreUnavailable("The store is closed; start the node.")
        self._queue.put(job)

        def abort(_: Any) -> trio.lowlevel.Abort:
            job.task = None
            return trio.lowlevel.Abort.SUCCEEDED

        result: R = await trio.lowlevel.wait_task_rescheduled(abort)
        return result

    @property
    def silent(self) -> float:
        """Seconds that the batch under way has taken; 0 when there is none, infinite when the thread has died."""
        began = self._began
        if self._thread is not None and not self._thread.is_alive() and not self._closing:
            return math.inf
        return time.monotonic() - began if began else 0.0

    # -- the thread --------------------------------------------------------------------------------------------------
    def _serve(self, tell: Callable[[outcome.Outcome[None]], None]) -> None:
        try:
            driver = self._make()
        except Exception as error:
            self._soon(tell, outcome.Error(error))
            return
        self._soon(tell, outcome.Value(None))
        going = True
        while going:
            jobs, going = self._take()
            if jobs:
                self._began = time.monotonic()
                self._batch(driver, jobs)
                self._began = 0.0
                self._soon(_complete, jobs)
        driver.close()

    def _take(self) -> tuple[list[_Job[D]], bool]:
        """What is queued, when anything is; lazy jobs alone wait a moment for company. False: nothing will follow."""
        jobs: list[_Job[D]] = []
        until = 0.0
        while len(jobs) < MAX_BATCH:
            wait = until - time.monotonic() if jobs and all(job.lazy for job in jobs) else 0.0
            try:
                job = self._queue.get() if not jobs else self._queue.get(wait > 0, max(wait, 0.0))
            except Empty:
                break
            if job is None:
                return jobs, False
            until = until or time.monotonic() + LAZY_DELAY
            jobs.append(job)
        return jobs, True

    def _batch(self, driver: D, jobs: Sequence[_Job[D]]) -> None:
        """All in one transaction. A job that raises fails alone; when the transaction itself fails, all of them do."""
        writes = any(job.writes for job in jobs)
        try:
            try:
                driver.begin(writes)
                for job in jobs:
                    job.result = outcome.capture(driver.apart, job.work)
                driver.commit()
            except Exception:
                driver.rollback()
                raise
        except Exception as error:
            for job in jobs:
                job.result = outcome.Error(error)
        for job in jobs:
            if isinstance(job.result, outcome.Error) and isinstance(job.result.error, Exception):
                job.result = outcome.Error(driver.map_error(job.result.error))
        if writes:
            self.last_ok = not any(_unavailable(job.result) for job in jobs)
            if self._committed is not None:
                self._committed(time.monotonic() - self._began)

    def _soon(self, call: Callable[..., object], *args: object) -> None:
        assert self._token is not None
        try:
            self._token.run_sync_soon(call, *args)
        except trio.RunFinishedError:
            pass  # the loop is over: nobody waits any more


def _unavailable(result: outcome.Outcome[Any]) -> bool:
    return isinstance(result, outcome.Error) and isinstance(result.error, StoreUnavailable)


def _complete(jobs: Sequence[_Job[Any]]) -> None:
    for job in jobs:
        if job.task is not None:
            trio.lowlevel.reschedule(job.task, job.result)
