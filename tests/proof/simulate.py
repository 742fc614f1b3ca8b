"""`scripts/simulate`: whole clusters in one process, in virtual time, with faults drawn from a seed.

scripts/simulate --seeds 0..1000 --jobs 2     # prints seeds that fail, and how to repeat one; exit 10 if any did
scripts/simulate --seeds 17 --trace           # one run, step by step
scripts/simulate --mutation no-dedup          # leave a rule out of the program: seeds until one finds it
scripts/simulate --mutation all               # each of them; exit 10 if one is not found
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import NamedTuple

import structlog
import trio

from tests.node.mutation import left_out
from tests.proof.mutations import ISSUE, MUTATIONS
from tests.proof.world import World, run

FAILED = 10
TRIES = 400
"""Seeds for each mutation, at most."""


class Result(NamedTuple):
    seed: int
    kind: str
    messages: int
    digest: str
    problems: list[str]


def run_seed(seed: int, calm: bool | None = None) -> Result:
    """Run one seed."""
    world = run(seed, calm)
    kind = "calm" if world.calm else "faults"
    return Result(seed, kind, len(world.ids), world.digest, world.problems)


def results(seeds: Sequence[int], jobs: int, calm: bool | None) -> Iterator[Result]:
    """Run these seeds, as each is done."""
    if jobs == 1:
        yield from (run_seed(seed, calm) for seed in seeds)
        return
    with multiprocessing.get_context("spawn").Pool(jobs, initializer=_begin_worker) as pool:
        work = [(seed, calm) for seed in seeds]
        yield from pool.imap_unordered(_run_seed, work, chunksize=4)


def _run_seed(work: tuple[int, bool | None]) -> Result:
    return run_seed(*work)


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it, between two seeds
    quiet()


def quiet() -> None:
    """Thousands of faults need not be logged."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))


def simulate(seeds: Sequence[int], jobs: int, calm: bool | None) -> int:
    """Run seeds and print what failed; Ctrl-C ends it, and says what was run until then."""
    began, failed, messages, done, stop = time.monotonic(), [], 0, 0, _stop_when_told()
    for done, result in enumerate(results(seeds, jobs, calm), 1):
        messages += result.messages
        if result.problems:
            failed.append(result.seed)
            _show(result, calm)
        if sys.stderr.isatty():
            print(f"\r{done} of {len(seeds)} ", end="", file=sys.stderr, flush=True)
        if stop.is_set():
            break
    took = time.monotonic() - began
    print(
        f"{done} seeds, {messages} messages receipted, {len(failed)} seeds failed;"
        f" {took:.0f} s, {done / took:.1f} seeds/s"
    )
    if failed:
        print(f"failed: {' '.join(map(str, sorted(failed)))}")
    return FAILED if failed else 0


def _stop_when_told() -> threading.Event:
    """Set by the first SIGINT or SIGTERM, between two seeds: trio is not to be interrupted. A second ends it."""
    stop = threading.Event()

    def tell(number: int, _: object) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGINT, tell)
    signal.signal(signal.SIGTERM, tell)
    return stop


def _show(result: Result, calm: bool | None = None) -> None:
    print(f"seed {result.seed} ({result.kind}): {len(result.problems)} problems")
    for problem in result.problems[:5]:
        print(f"    {problem}")
    forced = "" if calm is None else " --calm" if calm else " --faulty"
    print(f"    again: scripts/simulate --seeds {result.seed}{forced} --trace", flush=True)


def trace(seed: int, calm: bool | None) -> int:
    """Run one seed and print every step of it."""
    note = World.note

    def tell(world: World, *what: object) -> None:
        print(f"{trio.current_time():12.6f} {' '.join(map(str, what))}")
        note(world, *what)

    World.note = tell  # type: ignore[assignment,method-assign]
    result = run_seed(seed, calm)
    print(f"digest {result.digest}")
    for problem in result.problems:
        print(problem)
    return FAILED if result.problems else 0


def find(name: str, first: int = 0, tries: int = TRIES) -> Result | None:
    """Run seeds of the program without one rule, until one fails."""
    with left_out(MUTATIONS[name]):
        for seed in range(first, first + tries):
            result = run_seed(seed)
            if result.problems:
                return result
    return None


def mutate(names: Sequence[str], first: int) -> int:
    """Show for each mutation which seed finds it, and how."""
    missed = 0
    for name in names:
        began = time.monotonic()
        result = find(name, first)
        took = time.monotonic() - began
        print(f"{name}: {MUTATIONS[name].why}")
        if result is None:
            missed += 1
            print(f"    NOT FOUND by {TRIES} seeds, {took:.0f} s", flush=True)
        else:
            print(
                f"    found by seed {result.seed} ({result.kind}) after {took:.0f} s: {result.problems[0]}", flush=True
            )
    return FAILED if missed else 0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/simulate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=_seeds, default=range(100), metavar="A..B", help="A up to but not B; or one")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help=f"processes; here up to {os.cpu_count()}")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--calm", action="store_const", const=True, dest="calm", help="without faults, every seed")
    kinds.add_argument("--faulty", action="store_const", const=False, dest="calm", help="with faults, every seed")
    parser.add_argument("--trace", action="store_true", help="print every step of the first seed")
    parser.add_argument("--without", choices=MUTATIONS, action="append", default=[], help="leave this rule out")
    parser.add_argument(
        "--mutation", choices=("all", *MUTATIONS), metavar="NAME", help=f"all, or one of: {', '.join(MUTATIONS)}"
    )
    given = parser.parse_args()
    quiet()
    if given.mutation:
        return mutate(ISSUE if given.mutation == "all" else [given.mutation], given.seeds[0])
    with ExitStack() as stack:
        for name in given.without:
            stack.enter_context(left_out(MUTATIONS[name]))
        if given.trace:
            return trace(given.seeds[0], given.calm)
        return simulate(given.seeds, 1 if given.without else given.jobs, given.calm)


def _seeds(text: str) -> range:
    first, dots, last = text.partition("..")
    try:
        found = range(int(first), int(last) if dots else int(first) + 1)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not as 0..1000 or 17 is") from None
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is empty; the second number is the first that is not run")
    return found


if __name__ == "__main__":
    sys.exit(main())
