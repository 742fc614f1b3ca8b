"""`scripts/chaos`: three nodes, a real Redis, a real Kafka and hundreds of users, while everything fails that can fail.

    scripts/chaos --minutes 10 --seed 1              # prints the verdict; exit 10 when an invariant is broken
    scripts/chaos --minutes 2 --mutation no-dedup    # nodes without one of their rules: it must be found
    scripts/chaos --check history.ndjson             # judge the history of an earlier run

The seed decides what users do and what fails when; what real processes make of it differs from run to run.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import trio

from tests.proof.chaos.check import INVARIANTS, Verdict, check
from tests.proof.chaos.faults import KINDS, Faults
from tests.proof.chaos.history import History
from tests.proof.chaos.site import Site, small_disk
from tests.proof.chaos.users import Crowd
from tests.proof.mutations import MUTATIONS
from tests.services import Missing

NODES = 3
PRELUDE, CODA = 8.0, 5.0
SETTLED_WITHIN = 120.0
FAILED = 10


class Plan(argparse.Namespace):
    minutes: float
    seed: int
    users: int
    rate: float
    faults: list[str]
    mutation: str | None
    history: Path | None
    check: Path | None


async def chaos(plan: Plan, directory: Path, history: History) -> None:
    """Run it, and write its history."""
    rng = random.Random(plan.seed)
    env = {"CHAOS_MUTATION": plan.mutation} if plan.mutation else {}
    history.note("begin", seed=plan.seed, minutes=plan.minutes, users=plan.users, mutation=plan.mutation)
    with ExitStack() as stack:
        site = Site(directory, history, NODES, env)
        stack.callback(site.stop)
        stack.enter_context(small_disk(site, site.nodes[-1], plan.minutes))
        async with trio.open_nursery() as nursery:
            await nursery.start(site.run)
            await site.start()
            crowd = Crowd(lambda: site.urls, plan.users, history, random.Random(rng.getrandbits(32)))
            for user in crowd.users:
                nursery.start_soon(user.live)
            await _run(plan, site, crowd, Faults(site, random.Random(rng.getrandbits(32)), plan.faults, plan.minutes))
            history.note("end")
            nursery.cancel_scope.cancel()


async def _run(plan: Plan, site: Site, crowd: Crowd, faults: Faults) -> None:
    history = site.history
    with trio.move_on_after(PRELUDE + plan.users / 50):
        await crowd.talk(plan.rate)
    say(f"{len(crowd.names)} users talk; faults for {plan.minutes:g} minutes")
    history.note("phase", name="faults")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(crowd.talk, plan.rate)
        with trio.move_on_after(plan.minutes * 60):
            await faults.run()
        await faults.mend()
        nursery.cancel_scope.cancel()
    history.note("phase", name="calm")
    say("no more faults; everybody comes, and all that waits is delivered")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_until_clean, site)
        with trio.move_on_after(SETTLED_WITHIN):
            await crowd.gather()
            await _until_settled(site, crowd)
        nursery.cancel_scope.cancel()
    history.note("phase", name="coda")
    with trio.move_on_after(CODA):
        await crowd.talk(plan.rate)
    with trio.move_on_after(SETTLED_WITHIN / 2):
        await _until_settled(site, crowd)
    code, document = await site.ask("audit")
    history.note("audit", code=code, document=document)


async def _until_clean(site: Site) -> None:
    while True:
        begun = site.history.elapsed
        code, document = await site.ask("servers", "--check")
        site.history.note("registry", begun=begun, code=code, document=document)
        if code == 0:
            return
        await trio.sleep(0.5)


async def _until_settled(site: Site, crowd: Crowd) -> None:
    """Every request answered, and nothing waits on any node."""
    while True:
        code, document = await site.ask("audit")
        pending = document["pending"] if isinstance(document, dict) else None
        site.history.note("backlog", pending=pending, code=code)
        if pending == 0 and not any(user.unanswered for user in crowd.users):
            return
        await trio.sleep(1)


def say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def show(verdict: Verdict) -> None:
    """The verdict for a person."""
    for number, sentence in INVARIANTS.items():
        broken = verdict.broken[number]
        print(f"{number:3}  {'BROKEN' if broken else 'holds ':6}  {sentence}")
        for one in broken[:5]:
            print(f"             {one}")
        if len(broken) > 5:
            print(f"             and {len(broken) - 5} more")
    print(json.dumps(verdict.figures))


def run(plan: Plan) -> tuple[Verdict, Path]:
    """Run it and judge it; where its history is."""
    directory = Path(tempfile.mkdtemp(prefix="chaos-"))
    path = plan.history or directory / "history.ndjson"
    history = History(path)
    try:
        trio.run(chaos, plan, directory, history)
    finally:
        history.close()
    verdict = check(path)
    for name in ("redis", "kafka", *(("state",) if verdict.holds else ())):  # a broken run's tables and logs are kept
        shutil.rmtree(directory / name, ignore_errors=True)
    return verdict, path


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=1.0, help="how long things fail (1)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--users", type=int, default=200)
    parser.add_argument("--rate", type=float, default=60.0, help="messages a second, of all (60)")
    parser.add_argument("--faults", nargs="+", choices=KINDS, default=[], metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--mutation", choices=MUTATIONS, metavar="NAME", help=", ".join(MUTATIONS))
    parser.add_argument(
        "--history", type=Path, metavar="FILE", help="where to write it; else in a directory of its own"
    )
    parser.add_argument("--check", type=Path, metavar="FILE", help="run nothing, judge this history")
    plan = parser.parse_args(arguments, namespace=Plan())
    if plan.check:
        verdict, path = check(plan.check), plan.check
    else:
        try:
            verdict, path = run(plan)
        except Missing as missing:
            say(str(missing))
            return 1
    show(verdict)
    print(f"history: {path}")
    return 0 if verdict.holds else FAILED


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # takes everything down, as Ctrl-C does
    sys.exit(main())
