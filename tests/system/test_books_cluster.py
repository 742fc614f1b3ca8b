"""`trace` and `audit` over machines: nodes with directories of their own are asked at their admin addresses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.running import RunningNode, call, read_line, running, wait_until
from tests.system.test_cluster import settings

TOKEN = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def file(tmp_path: Path, prefix: str, redis_url: str, kafka_brokers: str) -> Path:
    """The settings, without a token."""
    return settings(tmp_path, prefix, redis_url, kafka_brokers)


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(TOKEN)
    path.chmod(0o600)
    return path


@pytest.fixture
def nodes(tmp_path: Path, file: Path, token: Path) -> Iterator[tuple[RunningNode, RunningNode, RunningNode]]:
    """Of which the first is here, the second has an admin address, and the third has none."""
    admin = {"YANCHAT_ADMIN_LISTEN": "127.0.0.1:0", "YANCHAT_ADMIN_TOKEN_FILE": str(token)}
    with ExitStack() as stack:
        here, there, closed = (
            stack.enter_context(RunningNode(tmp_path / name, "--config", str(file), env=env))
            for name, env in (("a", {}), ("b", admin), ("c", {}))
        )
        yield here, there, closed


def test_a_node_of_another_machine_is_asked_with_the_token(
    nodes: tuple[RunningNode, RunningNode, RunningNode], file: Path, token: Path
) -> None:
    """Without it, or without an admin address, the node is named, and nothing is claimed of it."""
    here, there, closed = nodes

    def ask(*arguments: str | Path) -> CompletedProcess[str]:
        return call(*arguments, "--config", file, state=here.state)

    with running("listen", "--as", "bob", "--url", there.url, "--config", file, state=here.state) as bob:
        read_line(bob, of_stderr=True)
        sent = ask("send", "bob", "hello", "--as", "ann", "--url", here.url, "--json")
        message_id = json.loads(sent.stdout)[0]["message_id"]

    def asked(*more: str | Path) -> set[tuple[str, str]]:
        done = ask("trace", message_id, "--json", *more)
        assert done.returncode == 0, done.stderr
        assert TOKEN not in done.stderr
        return {(row["node"], row["event"]) for row in json.loads(done.stdout)}

    with_token = ("--admin-token-file", token)
    wait_until(lambda: (here.node, "delivered") in asked(), "the ack is known")
    assert (there.node, "acked") in asked(*with_token)
    assert (there.node, "acked") not in asked()
    said = ask("trace", message_id).stderr
    assert f"{there.node} answers at" in said
    assert "--admin-token-file" in said
    assert f"{closed.node} has no admin address, and its files are not in" in said

    assert ask("audit", *with_token).returncode == 4
    closed.terminate()
    done = ask("audit", "--json", *with_token)
    assert done.returncode == 0, done.stderr
    assert (json.loads(done.stdout)["delivered"], len(json.loads(done.stdout)["nodes"])) == (1, 2)
    assert ask("trace", "0" * 32, *with_token).returncode == 3

    token.write_text(TOKEN[::-1])
    refused = ask("audit", *with_token)
    assert refused.returncode == 4
    assert "another token" in refused.stderr
