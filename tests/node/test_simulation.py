"""Random histories of whole clusters: the invariants hold with faults and without, and a seed is one run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog

from tests.node.mutation import left_out
from tests.node.simulation import run
from tests.node.test_rules import RULES


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Thousands of faults need not be logged."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    yield
    structlog.reset_defaults()


@pytest.mark.parametrize("seed", range(16))
def test_nothing_is_lost_or_stuck_whatever_fails(seed: int) -> None:
    """Crashes, a registry that forgets or is away, lost, repeated and late records, full disks, users that hop."""
    assert run(seed, calm=False).problems == []


@pytest.mark.parametrize("seed", range(100, 108))
def test_without_faults_nothing_is_repeated_late_or_out_of_order(seed: int) -> None:
    """Users hop between nodes and log in several times all the while."""
    assert run(seed, calm=True).problems == []


def test_a_seed_is_one_run() -> None:
    """The same seed gives the same messages at the same times."""
    first, second = run(7, calm=False), run(7, calm=False)
    assert first.ids == second.ids
    assert first.texts == second.texts


@pytest.mark.parametrize("name", ["receipt-first", "notice-is-told-when-written"])
def test_the_checks_find_a_broken_program(name: str) -> None:
    """The checks at the end of a run are not idle."""
    with left_out(RULES[name].mutation):
        assert any(run(seed, calm=False).problems for seed in range(6))
