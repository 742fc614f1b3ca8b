"""The thread that talks to Redis: what is asked at the same time goes there in one pipeline.

A job is a generator: it yields commands, is sent their replies, and returns its result. All jobs that are under way
go forward together, a pipeline for each round, and new ones join at the next round; those that are done wake their
callers with one wake-up of the trio loop. Whoever needs an order awaits the first job before he asks for the second.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, Final, TypeVar

import outcome
import trio

from yanchat.backends.redis.connection import Command, Connection
from yanchat.errors import RegistryUnavailable

R = TypeVar("R")
Rounds = Generator[Sequence[Command], list[Any], R]
CHUNK: Final = 1000
"""Commands of one long call in one pipeline; others do not wait for the rest of it."""


def chunks(items: Iterable[R]) -> Iterator[list[R]]:
    """The items in parts of that many."""
    rest = iter(items)
    while chunk := list(islice(rest, CHUNK)):
        yield chunk


class _Job:
    """A generator under way: what it asks next, or its result."""

    def __init__(self, connection: Connection, rounds: Rounds[Any], task: trio.lowlevel.Task) -> None:
        self._connection, self._rounds = connection, rounds
        self.task: trio.lowlevel.Task | None = task
        """None when the caller has been cancelled."""
        self.asks: Sequence[Command] = ()
        self.result: outcome.Outcome[Any] | None = None

    def begin(self) -> None:
        self._step(lambda: next(self._rounds))

    def take(self, replies: list[Any]) -> None:
        error = next((reply for reply in replies if isinstance(reply, Exception)), None)
        if error is None:
            self._step(lambda: self._rounds.send(replies))
        else:
            self.fail(error)

    def fail(self, error: Exception) -> None:
        self._step(lambda: self._rounds.throw(self._connection.map_error(error)))

    def _step(self, step: Callable[[], Sequence[Command]]) -> None:
        try:
            self.asks = step()
        except StopIteration as end:
            self.result = outcome.Value(end.value)
        except Exception as error:
            self.result = outcome.Error(self._connection.map_error(error))


class Pipelines:
    """Serves jobs from `open` to `close`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._queue: list[_Job] = []
        self._wake = threading.Condition()
        self._closing = False
        self._token: trio.lowlevel.TrioToken | None = None
        self._thread = threading.Thread(target=self._serve, name="registry", daemon=True)
        self._began = 0.0
        """When the round under way began; 0 between rounds."""

    def open(self) -> None:
        """Start the thread; connects to nothing yet."""
        self._token = trio.lowlevel.current_trio_token()
        self._thread.start()

    async def close(self) -> None:
        """Finish what has been asked, then end the thread; a server that hangs costs a second or two."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._thread.join)

    async def ask(self, rounds: Rounds[R]) -> R:
        """The generator's result. Cancelled: it took effect or not, or in part."""
        job = _Job(self._connection, rounds, trio.lowlevel.current_task())
        with self._wake:
            if self._closing:
                raise RegistryUnavailable("The registry is closed; start the node.")
            self._queue.append(job)
            self._wake.notify()

        def abort(_: Any) -> trio.lowlevel.Abort:
            job.task = None
            return trio.lowlevel.Abort.SUCCEEDED

        result: R = await trio.lowlevel.wait_task_rescheduled(abort)
        return result

    @property
    def silent(self) -> float:
        """Seconds that the round under way has taken; 0 when there is none, infinite when the thread has died."""
        began = self._began
        if self._token is not None and not self._thread.is_alive() and not self._closing:
            return math.inf
        return time.monotonic() - began if began else 0.0

    # -- the thread ----------------------------------------------------------------------------------------------------
    def _serve(self) -> None:
        running: list[_Job] = []
        while True:
            self._began = 0.0
            with self._wake:
                while not (self._queue or running or self._closing):
                    self._wake.wait()
                new, self._queue = [job for job in self._queue if job.task is not None], []
            if self._closing and not (new or running):
                break
            self._began = time.monotonic()
            for job in new:
                job.begin()
            running += new
            asking = [job for job in running if job.result is None]
            if asking:
                self._round(asking)
            done = [job for job in running if job.result is not None]
            running = [job for job in running if job.result is None]
            if done:
                self._finish(done)
        self._connection.close()

    def _round(self, jobs: list[_Job]) -> None:
        try:
            replies = self._connection.send([command for job in jobs for command in job.asks])
        except Exception as error:
            for job in jobs:
                job.fail(error)
            return
        first = 0
        for job in jobs:
            end = first + len(job.asks)
            job.take(replies[first:end])
            first = end

    def _finish(self, jobs: list[_Job]) -> None:
        assert self._token is not None
        with suppress(trio.RunFinishedError):  # the loop is over: nobody waits any more
            self._token.run_sync_soon(_complete, jobs)


def _complete(jobs: list[_Job]) -> None:
    for job in jobs:
        if job.task is not None and job.result is not None:
            trio.lowlevel.reschedule(job.task, job.result)
