"""`redeliver --adopt` as an operator calls it: what it does, what it refuses, and what it says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.cli.calls import quick
from tests.cli.terminal import on_terminal
from tests.dying import die, forget_lease
from tests.running import RunningNode, read_line, running


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[tuple[RunningNode, RunningNode]]:
    """Two that share a directory."""
    with ExitStack() as stack:
        first, second = (stack.enter_context(RunningNode(tmp_path / "state")) for _ in range(2))
        yield first, second


def accept(node: RunningNode, *texts: str) -> list[str]:
    """Leave messages to Bob in a node's outbox; their ids."""
    arguments = ("--as", "ann", "--wait", "accepted", "--json", "--url", node.url)
    sent = [quick("send", "bob", text, *arguments, state=node.state) for text in texts]
    return [json.loads(one.stdout)[0]["message_id"] for one in sent]


def adopt(node: RunningNode, *arguments: str, code: int = 0) -> Any:
    """What it says to programs; in an error, its sentence."""
    done = quick("redeliver", "--adopt", node.node, *arguments, "--json", state=node.state)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout) if code == 0 else done.stderr


def outbox(node: RunningNode, *arguments: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(
        quick("outbox", "--node", node.node, *arguments, "--json", state=node.state).stdout
    )
    return rows


def test_what_a_dead_node_had_accepted_waits_on_another(nodes: tuple[RunningNode, RunningNode]) -> None:
    """First only looked at, then moved; again, there is nothing left; and Bob gets it all."""
    dead, alive = nodes
    ids = accept(dead, "one", "two", "three")
    die(dead)
    would = {"node": alive.node, "selected": 3, "redelivered": 0, "adopted": 0, "message_ids": ids}
    assert adopt(dead, "--dry-run") == would
    assert outbox(alive) == []
    assert adopt(dead) == {**would, "adopted": 3}
    rows = outbox(alive)
    assert [row["message_id"] for row in rows] == ids
    assert all(row["adopted_at"] for row in rows)
    assert adopt(dead) == {**would, "selected": 0, "message_ids": []}
    with running("listen", "--as", "bob", "--count", "3", "--ndjson", state=dead.state) as listener:
        assert [json.loads(read_line(listener))["text"] for _ in range(3)] == ["one", "two", "three"]
    dead.start()
    assert outbox(dead) == []
    assert [(row["message_id"], row["state"]) for row in outbox(dead, "--state", "moved")] == [
        (message_id, "moved") for message_id in ids
    ]


def test_people_are_told_what_was_done(nodes: tuple[RunningNode, RunningNode]) -> None:
    dead, alive = nodes
    accept(dead, "one", "two")
    die(dead)
    said = [
        quick("redeliver", "--adopt", dead.node, *more, state=dead.state).stdout.strip()
        for more in (("--dry-run",), (), ())
    ]
    assert said == [
        f"2 messages of {dead.node} would move to {alive.node}.",
        f"2 messages of {dead.node} moved to {alive.node}, which goes on with them.",
        f"Nothing waits on {dead.node}.",
    ]


def test_it_asks_on_a_terminal_only(nodes: tuple[RunningNode, RunningNode]) -> None:
    """A person says yes first; with nothing to move there is no question."""
    dead, alive = nodes
    accept(dead, "one")
    die(dead)
    question = f"Move 1 message of {dead.node} to {alive.node} now? [y/N]"
    code, shown = on_terminal("redeliver", "--adopt", dead.node, state=dead.state, after="[y/N]", typed="n\n")
    assert code == 0
    assert question in shown
    assert "Nothing was done." in shown
    assert outbox(alive) == []
    code, shown = on_terminal("redeliver", "--adopt", dead.node, state=dead.state, after="[y/N]", typed="y\n")
    assert code == 0
    assert question in shown
    assert len(outbox(alive)) == 1
    assert "[y/N]" not in on_terminal("redeliver", "--adopt", dead.node, state=dead.state)[1]


def test_yes_asks_nothing(nodes: tuple[RunningNode, RunningNode]) -> None:
    dead, alive = nodes
    accept(dead, "one")
    die(dead)
    code, shown = on_terminal("redeliver", "--adopt", dead.node, "--yes", state=dead.state)
    assert code == 0
    assert "[y/N]" not in shown
    assert len(outbox(alive)) == 1


def test_into_names_the_adopter(nodes: tuple[RunningNode, RunningNode]) -> None:
    """Otherwise it is the node with the fewest sessions."""
    dead, busy = nodes
    accept(dead, "one")
    with (
        RunningNode(dead.state) as idle,
        running("listen", "--as", "eve", "--url", busy.url, state=dead.state) as listener,
    ):
        read_line(listener, of_stderr=True)
        die(dead)
        assert adopt(dead, "--dry-run")["node"] == idle.node
        assert adopt(dead, "--into", busy.node)["node"] == busy.node
        assert len(outbox(busy)) == 1


def test_a_node_that_lives_is_left_alone(nodes: tuple[RunningNode, RunningNode]) -> None:
    """By its heartbeats, and by the lock on its directory; also when it has only just died, or is stopped."""
    alive, _ = nodes
    accept(alive, "one")
    assert "is not dead" in adopt(alive, code=4)
    alive.kill()
    assert "last heartbeat was" in adopt(alive, "--dry-run", code=4)
    assert "10 s have passed" in adopt(alive, code=4)
    alive.start()
    alive.pause()
    forget_lease(alive)
    assert "holds" in adopt(alive, code=4)
    die(alive)
    assert adopt(alive)["adopted"] == 1


def test_only_a_node_that_is_up_adopts(nodes: tuple[RunningNode, RunningNode]) -> None:
    """Unknown: 3. Dead: 4. Nobody there at all: 4. And nothing has happened."""
    dead, other = nodes
    accept(dead, "one")
    die(dead)
    sentence = adopt(dead, "--into", "10.0.0.9:1", code=3)
    assert "10.0.0.9:1" in sentence
    assert other.node in sentence
    die(other)
    assert f"{other.node} is not up" in adopt(dead, "--into", other.node, code=4)
    assert "No other node is up" in adopt(dead, code=4)
    dead.start()
    assert len(outbox(dead)) == 1


def test_a_node_without_a_directory_here_is_not_found(nodes: tuple[RunningNode, RunningNode]) -> None:
    """And the sentence names those that have one."""
    first, second = nodes
    done = quick("redeliver", "--adopt", "10.0.0.9:1", state=first.state)
    assert done.returncode == 3
    assert first.node in done.stderr
    assert second.node in done.stderr
    (first.state / "nodes" / "10-0-0-9-1").mkdir()
    done = quick("redeliver", "--adopt", "10.0.0.9:1", state=first.state)
    assert done.returncode == 3
    assert "has its state in" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--into", "127.0.0.1:1"), "--adopt"),
        (("--all", "--into", "127.0.0.1:1"), "--adopt"),
        (("--adopt", "127.0.0.1:1", "--into", "127.0.0.1:1"), "dead node itself"),
        *[
            (("--adopt", "127.0.0.1:1", *other), "--adopt moves all")
            for other in (
                ("--all",),
                ("--to", "bob"),
                ("--message-id", "0" * 32),
                ("--older-than", "1h"),
                ("--dead",),
                ("--node", "127.0.0.1:2"),
            )
        ],
    ],
)
def test_what_does_not_go_together_is_a_wrong_call(arguments: tuple[str, ...], sentence: str, tmp_path: Path) -> None:
    done = quick("redeliver", *arguments, state=tmp_path)
    assert done.returncode == 2
    assert sentence in done.stderr


def test_where_no_node_ever_was_nothing_is_made(tmp_path: Path) -> None:
    done = quick("redeliver", "--adopt", "127.0.0.1:1", state=tmp_path / "state")
    assert done.returncode == 4
    assert not (tmp_path / "state").exists()
