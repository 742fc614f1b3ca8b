"""What all measurements share: a node in a process of its own, bound to a processor, and the load against it."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.running import environment, read_line
from tests.services import KafkaBroker, RedisServer, die_with_parent
from yanchat.bench.processes import Used, used
from yanchat.names import slug

Point = dict[str, Any]
"""One line of a table, and what a plot shows; lists are for plots alone."""

ROOT = Path(__file__).parents[3]
CORES = sorted(os.sched_getaffinity(0))
NODE_CORE, LOAD_CORE = CORES[0], CORES[-1]
NO_LIMITS = {
    "YANCHAT_LIMITS_MESSAGES_PER_SECOND": "0",
    "YANCHAT_LIMITS_BYTES_PER_SECOND": "0",
    "YANCHAT_LIMITS_PENDING_PER_SENDER": "10000000",
    "YANCHAT_LIMITS_CONNECTIONS_PER_ADDRESS": "100000",
}
"""What is measured is the node, not what it is told to allow."""
READY_WITHIN, STOPPED_WITHIN = 120.0, 30.0
QUIET_SHARE, QUIET_WITHIN = 0.1, 120.0


@dataclass(frozen=True)
class Site:
    """Where and how long is measured."""

    program: Sequence[str]
    quick: bool
    descriptors: int
    """Which a process may have at most."""
    connections: int
    """Idle clients at most."""
    within: Path | None = None
    """Where scratch directories are made."""
    notes: list[str] = field(default_factory=list)
    """What was left out or went wrong, as sentences."""

    @property
    def rounds(self) -> int:
        return 1 if self.quick else 3

    @property
    def seconds(self) -> float:
        """Of one round."""
        return 0.5 if self.quick else 4.0

    @property
    def pairs(self) -> int:
        return 4 if self.quick else 50

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A directory with a short name: the path of a Unix socket ends at 107 bytes."""
        path = tempfile.mkdtemp(prefix="grow-", dir=self.within)
        try:
            yield Path(path)
        finally:
            shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def node(self, *options: str, state: Path | None = None) -> Iterator[Node]:
        """A node that is up, in a state directory of its own if none is given."""
        with self.scratch() as directory:
            node = Node(self, state or directory, options)
            try:
                node.start()
                yield node
            finally:
                node.stop()

    def bench(self, node: Node, *, size: int = 200) -> Point:
        """Rounds of `yanchat bench` on the load's processor against this node; the median of each figure."""
        return self._rounds("--url", node.url, "--state-dir", str(node.state), "--size", str(size), pin=True)

    def bench_nodes(self, nodes: int, *options: str) -> Point:
        """The same against so many throw-away nodes, bound to no processor."""
        return self._rounds("--nodes", str(nodes), *options, pin=False)

    def _rounds(self, *options: str, pin: bool) -> Point:
        command = [*(on(LOAD_CORE) if pin else []), sys.executable, "-m", "yanchat", "bench", "--json", *options]
        command += ["--pairs", str(self.pairs), "--seconds", str(self.seconds)]
        reports = []
        for _ in range(self.rounds):
            done = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True, check=False)
            try:
                report = json.loads(done.stdout)
                assert report["loops"], "none in time"
            except (ValueError, AssertionError) as error:
                raise RuntimeError(f"No loop was closed: {error}. {done.stderr.strip()}") from None
            for sentence, times in report["errors"].items():
                self.note(f"{times} x {sentence}")
            if report["unfinished"]:
                self.note(f"{report['unfinished']} loops did not close in the time after.")
            reports.append(report)
        return _median(reports)

    def note(self, sentence: str) -> None:
        """Something that whoever reads the figures has to know."""
        say(f"  {sentence}")
        self.notes.append(sentence)


def _median(reports: Sequence[Any]) -> Point:
    """Of each figure; and the lowest and highest rate."""

    def median(of: Callable[[Any], float], digits: int) -> float:
        return round(statistics.median(map(of, reports)), digits)

    def processor(report: Any) -> float:
        return sum(float(one["processor_us_per_loop"]) for one in report["processes"] if one["name"] != "load")

    rates = [report["loops_per_s"] for report in reports]
    return {
        "loops_per_s": round(statistics.median(rates)),
        "loops_per_s_range": [round(min(rates)), round(max(rates))],
        "p50_ms": median(lambda report: report["latency_ms"]["p50"], 2),
        "p99_ms": median(lambda report: report["latency_ms"]["p99"], 2),
        "processor_us_per_loop": median(processor, 1),
    }


class Node:
    """A node in a process of its own on the first processor; started again, it has its place and its port again."""

    def __init__(self, site: Site, state: Path, options: Sequence[str]) -> None:
        self._site, self.state, self._options = site, state, options
        self.log = state / "log"
        self.url, self.port = "", 0
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> float:
        """Start it; after how many seconds clients could come."""
        began = time.monotonic()
        command = [*on(NODE_CORE), *self._site.program, "serve", "--json", "--state-dir", str(self.state)]
        command += ["--listen", f"127.0.0.1:{self.port}", "--log-level", "warning", *self._options]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                env=environment(**NO_LIMITS),
                cwd=ROOT,
                text=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                preexec_fn=die_with_parent,  # noqa: PLW1509 - one system call
            )
        try:
            self.url = json.loads(read_line(self.process, READY_WITHIN))["url"]
        except AssertionError as error:
            raise RuntimeError(f"The node has not started: {error}\n{self.log.read_text()[-2000:]}") from None
        self.port = int(self.url.rpartition(":")[2].partition("/")[0])
        return time.monotonic() - began

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def directory(self) -> Path:
        return self.state / "nodes" / slug(f"127.0.0.1:{self.port}")

    def used(self) -> Used:
        now = used(self.pid)
        assert now is not None, f"the node has ended:\n{self.log.read_text()[-2000:]}"
        return now

    @property
    def memory(self) -> int:
        """Resident bytes."""
        return self.used().memory

    def metrics(self, within: float = 5.0) -> dict[str, float]:
        """Its numbers that have no labels; empty while it does not answer."""
        try:
            with httpx.Client(transport=httpx.HTTPTransport(uds=str(self.directory / "admin.sock"))) as client:
                text = client.get("http://node/metrics", timeout=within).text
        except (httpx.HTTPError, OSError):
            return {}
        pairs = (line.rpartition(" ") for line in text.splitlines() if line.startswith("yanchat_") and "{" not in line)
        return {name.removeprefix("yanchat_"): float(value) for name, _, value in pairs}

    def ask(self, *command: str) -> tuple[int, Any]:
        """What a command of `yanchat` answers in its state directory: exit code and document.

        The node's own options must be those that every command has.
        """
        line = [sys.executable, "-m", "yanchat", *command, "--json", "--state-dir", str(self.state), *self._options]
        done = subprocess.run(line, env=environment(), cwd=ROOT, capture_output=True, text=True, check=False)
        try:
            return done.returncode, json.loads(done.stdout)
        except ValueError:
            return done.returncode, done.stderr

    def quiet_after(self) -> float:
        """Wait until it has nothing more to do by itself; how many seconds that took."""
        began = time.monotonic()
        spent = self.used().processor
        while (gone := time.monotonic() - began) < QUIET_WITHIN:
            time.sleep(0.5)
            before, spent = spent, self.used().processor
            if spent - before < 0.5 * QUIET_SHARE:
                break
        return gone

    def kill(self) -> None:
        """kill -9, and wait until it has gone."""
        self._end(kill=True)

    def stop(self) -> None:
        """SIGTERM; kill -9 when that takes too long."""
        self._end(kill=False)

    def _end(self, *, kill: bool) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        if kill:
            process.kill()
        else:
            process.terminate()
        try:
            process.wait(STOPPED_WITHIN)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()


@contextmanager
def brokers(directory: Path) -> Iterator[tuple[str, ...]]:
    """A Redis and a Kafka of our own: the options of nodes that are joined by them. Missing: what to install."""
    redis, kafka = RedisServer(directory / "redis"), KafkaBroker(directory / "kafka")
    try:
        redis.start()
        kafka.start()
        yield "--profile", "cluster", "--redis", redis.url, "--kafka", kafka.brokers
    finally:
        redis.kill()
        kafka.kill()


@contextmanager
def beside_the_load() -> Iterator[None]:
    """This thread, and those it starts, run where the load does."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {LOAD_CORE})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def on(core: int) -> list[str]:
    """What binds a command to a processor."""
    return ["taskset", "-c", str(core)]


def say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def mib(size: float) -> float:
    return round(size / 2**20, 1)
