"""`yanchat top` at real nodes under a little load, for a program and on a terminal of its own."""

from __future__ import annotations

import io
import json
import math
import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.cli.calls import quick
from tests.running import DEADLINE, RunningNode, call, command, environment, finish, read_line, running
from yanchat.cli.sampling import quantile
from yanchat.cli.top import picture

KEYS = [
    "at",
    "node",
    "state",
    "sessions",
    "connections",
    "pending",
    "lag",
    "accepted_per_s",
    "delivered_per_s",
    "redelivered_per_s",
    "refused_per_s",
    "accept_p50_s",
    "accept_p99_s",
    "delivery_p50_s",
    "delivery_p99_s",
    "commit_p50_s",
    "commit_p99_s",
    "oldest_pending_age_s",
]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[RunningNode]:
    """A running node with a state directory of its own."""
    with RunningNode(tmp_path / "state") as running_node:
        yield running_node


def send(node: RunningNode, to: str, count: int, wait: str) -> None:
    done = quick("send", to, "hi", "--as", "ann", "--count", str(count), "--wait", wait, state=node.state)
    assert done.returncode == 0, done.stderr


def look(process: subprocess.Popen[str]) -> dict[str, dict[str, Any]]:
    """The rows of the next look."""
    rows: dict[str, dict[str, Any]] = {}
    while "all" not in rows:
        row = json.loads(read_line(process))
        rows[row["node"]] = row
    assert len({row["at"] for row in rows.values()}) == 1
    return rows


# -- for programs ------------------------------------------------------------------------------------------------------
def test_the_keys_are_a_promise(node: RunningNode) -> None:
    """A list of the nodes and of all together, after one interval."""
    done = call("top", "--json", "--interval", "0.2", state=node.state)
    assert done.returncode == 0, done.stderr
    one, together = json.loads(done.stdout)
    assert list(one) == list(together) == KEYS
    assert (one["node"], one["state"], together["node"], together["state"]) == (node.node, "up", "all", "1 up")
    assert one["accepted_per_s"] == 0
    assert one["delivery_p99_s"] is None  # nothing has happened


def test_rates_and_latencies_are_of_what_happens_between_two_looks(node: RunningNode) -> None:
    """Over all looks they come to what was sent; what waits is seen, too, and how long already."""
    with (
        running("listen", "--as", "bob", state=node.state, stdout=subprocess.DEVNULL) as bob,
        running("top", "--ndjson", "--interval", "0.3", state=node.state) as process,
    ):
        read_line(bob, of_stderr=True)
        first = look(process)["all"]
        assert (first["sessions"], first["accepted_per_s"]) == (1, 0)
        send(node, "bob", 40, "delivered")
        send(node, "cid", 2, "accepted")
        accepted = delivered = 0.0
        before, seen = first["at"], []
        deadline = time.monotonic() + DEADLINE
        while accepted < 30 or delivered < 30 or not seen:
            assert time.monotonic() < deadline
            rows = look(process)
            seconds = (rows["all"]["at"] - before) / 1000
            before = rows["all"]["at"]
            accepted += rows[node.node]["accepted_per_s"] * seconds
            delivered += rows["all"]["delivered_per_s"] * seconds
            seen += [rows["all"]["delivery_p99_s"]] if rows["all"]["delivery_p99_s"] else []
        assert accepted < 60  # it was 42, but for how exactly a look knows its time
        assert all(0 < seconds < 60 for seconds in seen)
        last = look(process)[node.node]
        assert last["pending"] == 2
        assert last["oldest_pending_age_s"] > 0
        code, _, _ = finish(process, signal.SIGINT)
        assert code == 130


def test_a_restarted_node_begins_again(node: RunningNode) -> None:
    """Its numbers are smaller than before, and no rate is below zero."""
    send(node, "bob", 5, "accepted")
    with running("top", "--ndjson", "--interval", "0.2", state=node.state) as process:
        look(process)
        node.restart()
        deadline = time.monotonic() + DEADLINE
        while True:
            assert time.monotonic() < deadline
            row = look(process).get(node.node)
            if row is not None and row["accepted_per_s"] == 0 and row["pending"] == 5:
                break
            assert row is None or (row["accepted_per_s"] or 0) >= 0


def test_nodes_that_say_nothing_are_named_and_others_shown(node: RunningNode) -> None:
    """One hangs, one is elsewhere without an address for such questions, and one with it."""
    with RunningNode(node.state) as hanging:
        hanging.pause()
        done = call("top", "--json", "--interval", "0.2", state=node.state)
        rows = {row["node"]: row for row in json.loads(done.stdout)}
        assert rows[node.node]["pending"] == 0
        assert rows[hanging.node]["pending"] is None
        assert rows["all"]["pending"] == 0
        assert f"{hanging.directory}/admin.sock does not answer" in done.stderr
        hanging.resume()


def test_a_node_of_another_machine_is_asked_with_the_token(tmp_path: Path, node: RunningNode) -> None:
    """Its directory is not here: the registry says where it answers."""
    token = tmp_path / "token"
    token.write_text("0123456789abcdef0123456789abcdef")
    token.chmod(0o600)
    env = {"YANCHAT_ADMIN_LISTEN": "127.0.0.1:0", "YANCHAT_ADMIN_TOKEN_FILE": str(token)}
    with RunningNode(node.state, env=env) as other:
        away = tmp_path / "away"
        other.directory.rename(away)
        try:
            alone = call("top", "--json", "--interval", "0.2", state=node.state)
            assert f"{other.node} cannot be asked from here" in alone.stderr
            asked = call("top", "--json", "--interval", "0.2", "--admin-token-file", token, state=node.state)
            rows = {row["node"]: row for row in json.loads(asked.stdout)}
            assert rows[other.node]["connections"] == 0
            assert asked.stderr == ""
        finally:
            away.rename(other.directory)


@pytest.mark.parametrize("interval", ["0", "-1", "nan", "inf"])
def test_an_interval_that_cannot_be(interval: str) -> None:
    done = quick("top", "--interval", interval)
    assert done.returncode == 2
    assert "--interval" in done.stderr


@pytest.mark.parametrize(
    ("values", "q", "expected"),
    [
        ({1.0: 50, 2.0: 100, math.inf: 100}, 0.75, 1.5),
        ({1.0: 0, 2.0: 0, math.inf: 10}, 0.5, 2.0),  # above all bounds: at least the last of them
        ({1.0: 0, math.inf: 0}, 0.5, None),
        ({}, 0.5, None),
    ],
)
def test_quantiles_are_those_of_prometheus(values: dict[float, float], q: float, expected: float | None) -> None:
    """Linear within a bucket, as histogram_quantile."""
    assert quantile(values, q) == expected


@pytest.mark.parametrize("width", [80, 100, 110, 120, 140])
def test_no_number_is_cut_whatever_the_width(width: int) -> None:
    """Columns that have no room are left out as a whole; half a number is a wrong one."""
    shown = {key: 0.987 if key.endswith("_s") else 6543 for key in KEYS}
    shown |= {key: 123.4 for key in KEYS if key.endswith("per_s")}
    rows = [{**shown, "node": f"10.20.30.4{i}:8084", "state": "draining"} for i in range(2)]
    rows.append({**shown, "node": "all", "state": "2 draining"})
    console = Console(width=width, file=io.StringIO())
    console.print(picture(rows, [], [1.0], width))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in text
    assert "PENDING" in text
    assert ("REFUSED/s" in text) == (width >= 140)


# -- for people --------------------------------------------------------------------------------------------------------
@contextmanager
def screen(node: RunningNode) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[str], str]]]:
    """`top` on a terminal, and a call that reads it until something is shown, and gives all of it."""
    here, there = pty.openpty()
    shown = ""

    def until(text: str) -> str:
        nonlocal shown
        deadline = time.monotonic() + DEADLINE
        while re.search(text, shown) is None:
            ready, _, _ = select.select([here], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, shown
            shown += os.read(here, 65536).decode(errors="replace")
        return shown

    env = environment(TERM="xterm-256color", COLUMNS="120", LINES="30")
    call_of_top = command("top", "--interval", "0.3", state=node.state)
    with subprocess.Popen(call_of_top, env=env, stdin=there, stdout=there, stderr=there) as process:
        os.close(there)
        try:
            yield process, until
        finally:
            process.kill()
            os.close(here)


def test_on_a_terminal_it_is_drawn_in_place_until_ctrl_c(node: RunningNode) -> None:
    """The cursor goes up for each look; a person stops it as always, and keeps the last one."""
    with screen(node) as (process, until):
        until("NODE")
        send(node, "cid", 3, "accepted")
        shown = until(r"3 pending")
        assert node.node in shown
        assert "\x1b[1A" in shown
        assert "delivered a second" in shown
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE) == 130
        assert "Traceback" not in shown


def test_on_a_terminal_a_node_that_hangs_is_named(node: RunningNode) -> None:
    with screen(node) as (_, until):
        until("up")
        node.pause()
        until("does not answer")
        node.resume()
