"""`yanchat demo`: the six frames, and nothing left behind."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.running import call


@pytest.fixture
def temporary() -> Iterator[Path]:
    """Where the demo makes its own directory; short, for a Unix socket's path ends at 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="t") as directory:
        yield Path(directory)


def test_it_tells_the_six_frames_to_programs(temporary: Path) -> None:
    """In their order, whole, with their times; the settings and variables of the machine do not matter."""
    env = {"TMPDIR": str(temporary), "YANCHAT_NODE_LISTEN": "nonsense", "YANCHAT_CONFIG": "/nonsense"}
    done = call("demo", "--json", env=env)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["closed"] is True
    assert [frame["step"] for frame in told["frames"]] == [1, 2, 3, 4, 5, 6]
    assert [frame["type"] for frame in told["frames"]] == [1, 0, 2, 15, 16, 17]
    assert told["latency_ms"] == told["frames"][-1]["at_ms"] > 0
    push, notice = (told["frames"][index]["frame"] for index in (2, 5))
    assert push["messageId"] == notice["messageId"]
    assert push["sessionId"].partition("_")[0] != notice["sessionId"].partition("_")[0]  # on two nodes
    assert list(temporary.iterdir()) == []


def test_it_tells_them_to_people(temporary: Path) -> None:
    """Each with its number, its way and its time."""
    done = call("demo", env={"TMPDIR": str(temporary)})
    assert done.returncode == 0, done.stderr
    for words in ("1 ", "Ann → node 1", "send (type 1)", "node 2 → Bob", "notice (type 17)", "Closed in ", " ms"):
        assert words in done.stdout
    assert done.stderr == ""


def test_a_demo_that_cannot_start_says_why(tmp_path: Path) -> None:
    """What its node says is passed on."""
    long = tmp_path / ("x" * 90)
    long.mkdir()
    done = call("demo", env={"TMPDIR": str(long)})
    assert done.returncode == 4
    assert "too long for a Unix socket" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(long.iterdir()) == []
