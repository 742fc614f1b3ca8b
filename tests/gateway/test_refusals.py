"""What a flood of clients with wrong tokens writes into the log."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from yanchat.errors import Refused
from yanchat.gateway.refusals import LINES, Refusals

WRONG = Refused(401, "The token is wrong.")


async def test_single_refusals_are_logged_each(autojump_clock: MockClock) -> None:
    """With the address, for who bans it."""
    refusals = Refusals(trio.current_time)
    with capture_logs() as log:
        for number in range(100):
            refusals.log(f"10.0.0.{number}", WRONG)
            refusals.sum_up()
            await trio.sleep(0.1)
    assert [line["remote"] for line in log] == [f"10.0.0.{number}" for number in range(100)]


async def test_a_flood_is_a_few_lines_a_second_and_how_many_more(autojump_clock: MockClock) -> None:
    """None is forgotten: those left out are counted, also when the flood ends."""
    refusals = Refusals(trio.current_time)
    with capture_logs() as log:
        for _ in range(30_000):
            refusals.log("10.0.0.1", WRONG)
            await trio.sleep(0.0001)
        await trio.sleep(1)
        refusals.sum_up()
    assert len(log) <= 4 * (LINES + 1)
    assert total(log) == 30_000
    assert log[-1]["event"] == "login.refused_more"


def test_what_else_is_refused_is_for_who_debugs() -> None:
    refusals = Refusals(lambda: 0.0)
    with capture_logs() as log:
        for _ in range(LINES + 1):
            refusals.log("10.0.0.1", Refused(404, "There is nothing here."))
        refusals.log("10.0.0.1", WRONG)
    assert [line["log_level"] for line in log] == ["debug"] * (LINES + 1) + ["info"]


def total(log: list[MutableMapping[str, Any]]) -> int:
    return sum(line.get("refusals", 1) for line in log)
