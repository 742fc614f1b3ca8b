"""`scripts/dev-cluster`, as a new user would go about it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import redis

from tests.dev_cluster import DevCluster
from tests.running import DEADLINE, call, read_line, running


def dev_cluster(folder: Path, what: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.dev_cluster", "--folder", str(folder), what]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.usefixtures("kafka_broker")  # skips when there is no Kafka to be had
def test_two_users_on_two_nodes_close_the_loop(tmp_path: Path) -> None:
    """What it prints is enough to find the way: the URLs, the configuration, the keys, the topics."""
    folder = tmp_path / "dev"
    up = dev_cluster(folder, "up")
    try:
        assert up.returncode == 0, up.stderr
        assert dev_cluster(folder, "status").returncode == 0
        assert dev_cluster(folder, "up").returncode == 1  # it runs already
        words = up.stdout.split()
        second, first = (word for word in words if word.startswith("ws://"))
        config = str(folder / "yanchat.toml")
        with running("listen", "--config", config, "--as", "bob", "--url", second, "--json", "--count", "1") as bob:
            read_line(bob, of_stderr=True)
            with redis.Redis(port=int(words[words.index("-p") + 1]), decode_responses=True) as client:
                families = {key[:14] for key in client.scan_iter("yan_*")}
            assert {"yan_websocket_", "yan_serverclie", "yan_client_bob"} <= families
            sent = call("send", "--config", config, "--as", "ann", "--url", first, "bob", "hello")
            assert sent.returncode == 0, sent.stderr
            out, _ = bob.communicate(timeout=DEADLINE)  # it ends by itself after one
            assert "hello" in out
            assert bob.returncode == 0
    finally:
        down = dev_cluster(folder, "down")
    assert down.returncode == 0
    assert dev_cluster(folder, "status").returncode == 10
    assert not any(process.running for process in DevCluster(folder).processes().values())


def test_without_a_cluster_there_is_nothing_to_stop(tmp_path: Path) -> None:
    """And no error either: down may be repeated."""
    assert dev_cluster(tmp_path / "dev", "down").returncode == 0
    assert dev_cluster(tmp_path / "dev", "status").returncode == 10
    assert dev_cluster(tmp_path / "dev", "logs").returncode == 3
