"""`yanchat bench`: loops are closed and counted, against any nodes, and nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import redis
from confluent_kafka.admin import AdminClient

from tests.cli.terminal import on_terminal
from tests.running import RunningNode, call, finish, running, wait_until
from yanchat.bench.figures import histogram, percentile

SHORT = ("--seconds", "0.5", "--pairs", "4", "--depth", "2")


@pytest.fixture
def temporary() -> Iterator[Path]:
    """Where throw-away nodes live; short, for a Unix socket's path ends at 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="t") as directory:
        yield Path(directory)


def test_throw_away_nodes_close_loops(temporary: Path) -> None:
    """Two of them, joined: a report for programs, and a clean place behind."""
    done = call(
        "bench", *SHORT, "--nodes", "2", "--request-ids", "--idle", "7", "--json", env={"TMPDIR": str(temporary)}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["loops"] > 0
    assert report["loops_per_s"] == pytest.approx(report["loops"] / report["seconds"], rel=0.02)
    assert report["frames_per_s"] > 5 * report["loops_per_s"]  # six frames are a loop; some are open at each end
    latency = report["latency_ms"]
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["max"]
    assert report["errors"] == {}
    assert report["unfinished"] == 0
    assert report["logins"] == 4 * 2 + 7
    assert (report["nodes"], report["profile"], report["idle"]) == (2, "embedded", 7)
    assert len(report["processes"]) == 3  # the load, and each node
    assert all(process["memory_bytes"] > 0 for process in report["processes"])
    assert report["machine"]["cores"] >= 1
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("interrupt", [signal.SIG_DFL, signal.SIG_IGN])
def test_whoever_ends_it_ends_its_nodes(number: signal.Signals, interrupt: signal.Handlers, temporary: Path) -> None:
    """A service manager, `timeout`, a terminal that is closed; also where Ctrl-C is ignored, as in a script's `&`."""
    begin = partial(signal.signal, signal.SIGINT, interrupt)
    command = ("bench", "--seconds", "60", "--pairs", "1", "--json")
    with running(*command, env={"TMPDIR": str(temporary)}, preexec_fn=begin) as process:
        wait_until(lambda: list(temporary.glob("*/nodes/*/admin.sock")), "its node runs")
        (node,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        code, _, _ = finish(process, number)
    assert code == 130
    assert not Path(f"/proc/{node}").exists()
    assert list(temporary.iterdir()) == []


def test_its_nodes_end_however_it_ends(temporary: Path) -> None:
    """By SIGKILL it can remove nothing, but no node may run on for ever."""
    with running("bench", "--seconds", "60", "--pairs", "1", "--json", env={"TMPDIR": str(temporary)}) as process:
        wait_until(lambda: list(temporary.glob("*/nodes/*/admin.sock")), "its node runs")
        (node,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.kill()
        process.wait()
        wait_until(lambda: not Path(f"/proc/{node}").exists(), "its node has ended")


def test_who_ignores_a_hangup_goes_on(temporary: Path) -> None:
    """As under nohup."""
    ignore = partial(signal.signal, signal.SIGHUP, signal.SIG_IGN)
    command = ("bench", "--seconds", "3", "--pairs", "1", "--json")
    with running(*command, env={"TMPDIR": str(temporary)}, preexec_fn=ignore) as process:
        wait_until(lambda: list(temporary.glob("*/nodes/*/admin.sock")), "its node runs")
        process.send_signal(signal.SIGHUP)
        out, log = process.communicate(timeout=60)
    assert process.returncode == 0, log
    assert json.loads(out)["loops"] > 0


def test_a_running_node_is_measured_with_its_process(tmp_path: Path) -> None:
    """It is found behind its admin socket; its messages are all delivered."""
    with RunningNode(tmp_path) as node:
        done = call("bench", *SHORT, "--url", node.url, "--json", state=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        report = json.loads(done.stdout)
        assert {process["pid"] for process in report["processes"]} >= {node.pid}
        assert json.loads(call("outbox", "--json", state=tmp_path).stdout) == []


def test_a_cluster_leaves_no_topic_and_no_key(temporary: Path, redis_url: str, kafka_brokers: str) -> None:
    """Throw-away nodes of the profile cluster share Redis and Kafka with whoever else uses them."""
    topics = set(AdminClient({"bootstrap.servers": kafka_brokers}).list_topics(timeout=20).topics)
    where = ("--profile", "cluster", "--redis", redis_url, "--kafka", kafka_brokers)
    done = call("bench", *SHORT, "--nodes", "2", *where, "--json", env={"TMPDIR": str(temporary)})
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["loops"] > 0
    assert (report["errors"], report["unfinished"], report["profile"]) == ({}, 0, "cluster")
    found = set(AdminClient({"bootstrap.servers": kafka_brokers}).list_topics(timeout=20).topics) - topics
    assert [topic for topic in found if topic.startswith("throwaway-")] == []
    with redis.Redis.from_url(redis_url) as client:
        assert list(client.scan_iter("throwaway-*")) == []


def test_nobody_there(tmp_path: Path) -> None:
    """A node that does not take clients is named."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        url = f"ws://127.0.0.1:{sock.getsockname()[1]}/ws"
        done = call("bench", *SHORT, "--url", url, state=tmp_path)
    assert done.returncode == 4
    assert "does not take a client" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_the_load_generator_it_says_what_to_install(tmp_path: Path) -> None:
    """It is an extra: most installations need none."""
    (tmp_path / "picows.py").write_text("raise ImportError\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = call("bench", env={"PYTHONPATH": path})
    assert done.returncode == 2
    assert "pip install 'yanchat[bench]'" in done.stderr


def test_a_person_sees_a_histogram(temporary: Path) -> None:
    """And the rate, and who used how much of a core."""
    code, shown = on_terminal("bench", *SHORT, TMPDIR=str(temporary))
    assert code == 0, shown
    for words in ("closed loops/s", "measuring", "p99", "█", "us a loop", "MiB", "logins at"):
        assert words in shown


def test_percentiles_and_buckets_agree_with_the_values() -> None:
    """Nearest rank; every value is in exactly one bucket."""
    values = [n / 1000 for n in range(1, 101)]
    assert percentile(values, 0.5) == 0.05
    assert percentile(values, 0.99) == 0.099
    assert percentile(values, 1.0) == 0.1
    buckets = histogram(values)
    assert sum(bucket.times for bucket in buckets) == 100
    below = 0.0
    for bucket in buckets:
        assert bucket.times == sum(below <= value < bucket.below for value in values)
        below = bucket.below
