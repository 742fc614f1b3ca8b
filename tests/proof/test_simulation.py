"""Random histories of whole clusters: the invariants hold, and a seed is one run anywhere."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.proof.simulate import run_seed
from tests.proof.world import World, run
from tests.running import environment

CHUNKS, SEEDS = 12, 20
DIGESTS = (
    "from tests.proof.simulate import quiet, run_seed; quiet(); print([run_seed(n).digest for n in (3, 7, 9, 40)])"
)


pytestmark = pytest.mark.usefixtures("without_logs")


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_nothing_is_lost_stuck_or_repeated_whatever_fails(chunk: int) -> None:
    """Some hundred seeds; `scripts/simulate` runs more, and repeats one."""
    failed = {}
    for seed in range(chunk * SEEDS, (chunk + 1) * SEEDS):
        result = run_seed(seed)
        if result.problems:
            failed[seed] = result.problems[:2]
    assert not failed


def test_nothing_is_lost_when_nodes_die_for_good_and_others_adopt_their_rows() -> None:
    """The next seeds that draw it, in which rows move while all goes on failing."""
    failed, moved, cut = {}, 0, 0
    for seed in range(CHUNKS * SEEDS, CHUNKS * SEEDS + 200):
        if World(seed).adoptions.drawn:
            world = run(seed)
            moved, cut = moved + world.adoptions.moved, cut + world.adoptions.cut
            if world.problems:
                failed[seed] = world.problems[:2]
    assert not failed
    assert moved > 100, "the seeds move nothing"
    assert cut > 20, "no run is cut short"


def test_a_seed_is_exactly_one_run_in_every_process() -> None:
    """Also where sets of strings are iterated over in another order."""
    said = set()
    for hash_seed in ("1", "2"):
        run = [sys.executable, "-c", DIGESTS]
        env = environment(PYTHONHASHSEED=hash_seed)
        said.add(subprocess.run(run, env=env, capture_output=True, text=True, check=True).stdout)
    assert len(said) == 1
    assert said.pop().strip() == str([run_seed(seed).digest for seed in (3, 7, 9, 40)])
