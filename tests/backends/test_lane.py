"""The lane: one transaction for all that is queued, in order; what fails fails alone; nothing hangs."""

from __future__ import annotations

import math
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from yanchat.backends import lane as module
from yanchat.backends.lane import Lane
from yanchat.errors import StoreUnavailable


class Tape:
    """A driver that keeps a list, and says what was done to it."""

    def __init__(self) -> None:
        self.kept: list[Any] = []
        self.done: list[str] = []
        self.fails: set[str] = set()
        self._before: list[Any] | None = None

    def _do(self, what: str) -> None:
        self.done.append(what)
        if what in self.fails:
            raise OSError(what)

    def begin(self, writes: bool) -> None:
        self._do("begin" if writes else "begin reading")
        self._before = list(self.kept)

    def apart(self, work: Callable[[Tape], Any]) -> Any:
        before = list(self.kept)
        try:
            return work(self)
        except BaseException:
            self.kept = before
            raise

    def commit(self) -> None:
        self._do("commit")
        self._before = None

    def rollback(self) -> None:
        if self._before is not None:
            self.kept, self._before = self._before, None
        self._do("rollback")

    def close(self) -> None:
        self._do("close")

    def map_error(self, error: Exception) -> Exception:
        return StoreUnavailable(str(error)) if isinstance(error, OSError) else error


@pytest.fixture
async def tape() -> Tape:
    return Tape()


@pytest.fixture
async def lane(tape: Tape) -> AsyncIterator[Lane[Tape]]:
    opened = Lane("test", lambda: tape)
    await opened.open()
    yield opened
    await opened.close()


class Held:
    """Keeps the lane busy, so that what is queued meanwhile makes one batch."""

    def __init__(self, lane: Lane[Tape]) -> None:
        self._lane, self._go = lane, threading.Event()

    async def __aenter__(self) -> None:
        started = threading.Event()

        def work(tape: Tape) -> None:
            started.set()
            self._go.wait(30)
            tape.done.clear()

        self._nursery_manager = trio.open_nursery()
        nursery = await self._nursery_manager.__aenter__()
        nursery.start_soon(self._lane.run, work)
        await trio.to_thread.run_sync(started.wait)

    async def __aexit__(self, *error: Any) -> bool | None:
        await wait_all_tasks_blocked()
        self._go.set()
        return await self._nursery_manager.__aexit__(*error)


def put(value: Any) -> Callable[[Tape], Any]:
    def work(tape: Tape) -> Any:
        tape.kept.append(value)
        if isinstance(value, Exception):
            raise value
        return value

    return work


async def run_together(lane: Lane[Tape], *jobs: Callable[[Tape], Any], **how: bool) -> list[Any]:
    """Queue jobs so that they make one batch; their results or errors."""
    results: list[Any] = [None] * len(jobs)

    async def run(number: int) -> None:
        try:
            results[number] = await lane.run(jobs[number], **how)
        except Exception as error:
            results[number] = error

    async with trio.open_nursery() as nursery, Held(lane):
        for number in range(len(jobs)):
            nursery.start_soon(run, number)
            await wait_all_tasks_blocked()  # one after the other
    return results


async def test_all_that_is_queued_is_one_transaction_in_order(lane: Lane[Tape], tape: Tape) -> None:
    assert await run_together(lane, *map(put, range(5))) == [0, 1, 2, 3, 4]
    assert tape.kept == [0, 1, 2, 3, 4]
    assert tape.done == ["commit", "begin", "commit"]  # the first ends the job that held the lane


async def test_a_batch_is_bounded(lane: Lane[Tape], tape: Tape, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BATCH", 2)
    await run_together(lane, *map(put, range(5)))
    assert tape.kept == [0, 1, 2, 3, 4]
    assert tape.done.count("begin") == 3


async def test_one_failing_job_does_not_spoil_its_company(lane: Lane[Tape], tape: Tape) -> None:
    error = ValueError("no")
    assert await run_together(lane, put(1), put(error), put(2)) == [1, error, 2]
    assert tape.kept == [1, 2]
    assert tape.done == ["commit", "begin", "commit"]
    assert lane.last_ok


@pytest.mark.parametrize("what", ["begin", "commit"])
async def test_when_the_transaction_fails_all_jobs_do_and_the_next_batch_is_tried(
    lane: Lane[Tape], tape: Tape, what: str
) -> None:
    tape.fails = {what}
    with pytest.raises(StoreUnavailable, match=what):
        await lane.run(put(1))
    assert not lane.last_ok
    tape.fails = set()
    assert await lane.run(put(2)) == 2
    assert tape.kept == [2]
    assert lane.last_ok


async def test_a_failing_commit_fails_every_job_of_its_batch(lane: Lane[Tape], tape: Tape) -> None:
    def break_commit(tape: Tape) -> None:
        tape.fails = {"commit", "rollback"}

    results = await run_together(lane, put(1), break_commit, put(ValueError("no")), put(2))
    assert [type(result) for result in results] == [StoreUnavailable] * 4
    assert tape.kept == []
    tape.fails = set()
    assert await lane.run(put(3)) == 3  # the thread lives


async def test_unhealthy_is_what_could_not_be_stored_not_what_was_refused(lane: Lane[Tape]) -> None:
    with pytest.raises(ValueError, match="no"):
        await lane.run(put(ValueError("no")))
    assert lane.last_ok
    with pytest.raises(StoreUnavailable):
        await lane.run(put(StoreUnavailable("nearly full")))
    assert not lane.last_ok
    await lane.run(len_of_kept, writes=False)
    assert not lane.last_ok
    await lane.run(put(1))
    assert lane.last_ok
    await run_together(lane, put(2), put(StoreUnavailable("nearly full")), put(3))
    assert not lane.last_ok


def len_of_kept(tape: Tape) -> int:
    return len(tape.kept)


async def test_reading_jobs_alone_do_not_write(lane: Lane[Tape], tape: Tape) -> None:
    await run_together(lane, len_of_kept, len_of_kept, writes=False)
    assert tape.done == ["commit", "begin reading", "commit"]


async def test_a_cancelled_job_takes_effect_or_not_and_its_company_is_served(lane: Lane[Tape], tape: Tape) -> None:
    results: list[int] = []

    async def other() -> None:
        results.append(await lane.run(put(2)))

    async with trio.open_nursery() as nursery, Held(lane):
        with trio.CancelScope() as scope:
            scope.cancel()
            await lane.run(put(1))
        assert scope.cancelled_caught  # at once, while the lane is busy
        nursery.start_soon(other)
    assert results == [2]
    assert tape.kept in ([1, 2], [2])


async def test_a_lazy_job_waits_for_company(lane: Lane[Tape], tape: Tape, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LAZY_DELAY", 30.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: lane.run(put(1), lazy=True))
        await wait_all_tasks_blocked()
        nursery.start_soon(lambda: lane.run(put(2), lazy=True))
        await wait_all_tasks_blocked()
        with trio.fail_after(10):
            await lane.run(put(3))
    assert tape.kept == [1, 2, 3]
    assert tape.done == ["begin", "commit"]


async def test_a_lazy_job_without_company_is_done_too(lane: Lane[Tape]) -> None:
    with trio.fail_after(10):
        assert await lane.run(put(1), lazy=True) == 1


async def test_close_finishes_what_is_queued_and_takes_no_more(tape: Tape, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LAZY_DELAY", 30.0)
    lane = Lane("test", lambda: tape)
    await lane.open()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: lane.run(put(1), lazy=True))
        await wait_all_tasks_blocked()
        with trio.fail_after(10):
            await lane.close()
    assert tape.kept == [1]
    assert tape.done[-1] == "close"
    with pytest.raises(StoreUnavailable, match="closed"):
        await lane.run(put(2))
    assert "test" not in [thread.name for thread in threading.enumerate()]


async def test_what_opening_raises_comes_out_of_open() -> None:
    def make() -> Tape:
        raise StoreUnavailable("no such file")

    with pytest.raises(StoreUnavailable, match="no such file"):
        await Lane("test", make).open()
    assert "test" not in [thread.name for thread in threading.enumerate()]


# -- whether it lives --------------------------------------------------------------------------------------------------
async def until(true: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        while not true():
            await trio.sleep(0.005)


async def test_a_lane_is_silent_for_as_long_as_its_batch_takes(lane: Lane[Tape]) -> None:
    """A watchdog learns of a stuck driver without asking it; a lane that waits for work is not silent."""
    assert lane.silent == 0
    async with Held(lane):
        await until(lambda: lane.silent > 0.02)
        before = lane.silent
        await until(lambda: lane.silent > before)
    await lane.run(put(1))
    await until(lambda: lane.silent == 0)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_lane_whose_thread_has_died_is_silent_for_ever() -> None:
    class Fatal(Tape):
        def map_error(self, error: Exception) -> Exception:
            raise SystemExit  # as whatever ends a thread

    driver = Fatal()
    driver.fails.add("commit")
    lane = Lane("test", lambda: driver)
    await lane.open()
    with trio.move_on_after(0.05):
        await lane.run(put(1))
    await until(lambda: lane.silent == math.inf)
    await lane.close()


async def test_each_batch_that_writes_is_timed_and_no_other() -> None:
    took: list[float] = []
    lane = Lane("tape", Tape, took.append)
    await lane.open()
    await lane.run(lambda tape: None, writes=False)
    assert not took
    await lane.run(lambda tape: tape.kept.append(1))
    await lane.close()
    (seconds,) = took
    assert 0 <= seconds < 60
