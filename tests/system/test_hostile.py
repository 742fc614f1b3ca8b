"""A crowd of hostile clients at one node: a normal pair is served all the while, and what they took is given back."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import pytest

from tests.gateway.conftest import Gate
from tests.gateway.credentials import SECRET
from tests.gateway.raw import Raw, ack, send, text
from tests.running import RunningNode, environment, read_line, wait_until
from tests.system.crowd import HALF_OPEN, enter
from yanchat.gateway.admission import allow_descriptors

ROUNDS = 2


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """A node that asks for tokens."""
    if allow_descriptors() < HALF_OPEN + 1000:
        pytest.skip(f"{HALF_OPEN} half-open handshakes need more open files than are allowed here (ulimit -n)")
    key = tmp_path / "key"
    key.write_text(SECRET)
    key.chmod(0o600)
    env = {"YANCHAT_AUTH_MODE": "jwt", "YANCHAT_AUTH_KEY_FILE": str(key), "YANCHAT_LIMITS_STALLED": "1s"}
    with RunningNode(tmp_path / "state", env=env) as node:
        yield Gate(node)


class Crowd:
    """The crowd's process; `done` says how often it did what, when it has gone."""

    def __init__(self, url: str) -> None:
        command = [sys.executable, "-m", "tests.system.crowd", url]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
        )
        self.done: dict[str, int] = {}


@contextmanager
def crowd_at(url: str) -> Iterator[Crowd]:
    crowd = Crowd(url)
    try:
        assert read_line(crowd.process) == "ready\n"
        yield crowd
        out, _ = crowd.process.communicate(timeout=60)
        crowd.done = json.loads(out)
    finally:
        crowd.process.kill()
        crowd.process.wait()


def loops(ann: Raw, bob: Raw, seconds: float) -> list[float]:
    """Closed loops one after the other for so long, twenty at least: how many seconds each took."""
    took: list[float] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(took) < 20:
        began = time.monotonic()
        ann.say(text(send("pair-bob", "hello")))
        assert ann.json(0)["status"] == 200
        bob.say(text(ack(bob.json(2))))
        assert ann.json(17)["msg"]["status"] == 200
        took.append(time.monotonic() - began)
        time.sleep(0.01)
    return took


def test_a_normal_pair_is_served_in_a_crowd_of_hostile_clients(gate: Gate) -> None:
    """Malformed clients, wrong tokens, floods, slow readers and writers, ten thousand half-open handshakes, at once.

    The pair's loops take about as long as in peace, and memory and descriptors are afterwards where they were.
    """
    with enter(gate.url, "pair-ann") as ann, enter(gate.url, "pair-bob") as bob:
        peace = median(loops(ann, bob, 2))
        sockets, memory = gate.sockets(), [gate.resident()]
        for _ in range(ROUNDS):
            most, under = 0, list[float]()
            with crowd_at(gate.url) as crowd:
                for _ in range(4):
                    under += loops(ann, bob, 1)
                    most = max(most, gate.sockets())
            assert [what for what in crowd.done if what.startswith("failed")] == []
            assert len(crowd.done) == 7, crowd.done
            assert most > HALF_OPEN / 2
            assert median(under) < 25 * peace
            wait_until(lambda: gate.sockets() <= sockets, "all of the crowd have been let go")
            memory.append(gate.resident())
    assert memory[1] - memory[0] < 64 << 20, "what a crowd costs at most"
    assert memory[-1] - memory[1] < 16 << 20, "a second one costs no more"
