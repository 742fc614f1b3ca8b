"""`servers`, `clients`, `outbox` and `redeliver` against real nodes, running, killed and stopped."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.calls import quick
from tests.cli.terminal import on_terminal
from tests.running import RunningNode, finish, read_line, running, wait_until
from yanchat.cli import nodes
from yanchat.names import slug
from yanchat.node import lease


@pytest.fixture
def node(tmp_path: Path) -> Iterator[RunningNode]:
    """A running node with a state directory of its own."""
    with RunningNode(tmp_path / "state") as running_node:
        yield running_node


def ask(node: RunningNode, *arguments: str, code: int = 0) -> Any:
    """The JSON document that a command prints."""
    done = quick(*arguments, "--json", state=node.state)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def accept(node: RunningNode, *arguments: str) -> None:
    """Leave a message in the outbox."""
    assert quick("send", *arguments, "--as", "ann", "--wait", "accepted", state=node.state).returncode == 0


def test_what_servers_says_to_programs(node: RunningNode) -> None:
    """The keys are a promise."""
    (record,) = ask(node, "servers")
    assert list(record) == ["node", "state", "sessions", "heartbeat_age_s", "started_at", "incarnation", "version"]
    assert record["node"] == node.node
    assert (record["state"], record["sessions"]) == ("up", 0)
    assert 0 <= record["heartbeat_age_s"] < nodes.LEASE
    line = quick("servers", "--ndjson", state=node.state).stdout
    assert json.loads(line)["incarnation"] == record["incarnation"]


def test_people_get_a_table(node: RunningNode) -> None:
    """A heading, a row a node, nothing cut."""
    heading, row = quick("servers", state=node.state).stdout.splitlines()
    assert heading.split() == ["NODE", "STATE", "SESSIONS", "LAST", "HEARTBEAT", "STARTED", "VERSION"]
    assert row.split()[:3] == [node.node, "up", "0"]


def test_the_lease_is_the_nodes_own() -> None:
    """The command line says the same number without loading the node's code."""
    assert nodes.LEASE == lease.LEASE


def test_what_clients_says_to_programs(node: RunningNode) -> None:
    """Each session with its user, node and address; by user and by node."""
    with running("listen", "--as", "bob", "--name", "Bob", state=node.state) as listener:
        read_line(listener, of_stderr=True)
        (client,) = ask(node, "clients")
        assert list(client) == ["openid", "user_name", "node", "session_id", "connected_at", "remote"]
        assert (client["openid"], client["user_name"], client["node"]) == ("bob", "Bob", node.node)
        assert client["session_id"].startswith(f"{node.node}_bob_")
        assert client["remote"] == "127.0.0.1"
        assert ask(node, "servers")[0]["sessions"] == 1
        assert ask(node, "clients", "--openid", "bob", "--node", node.node) == [client]
        assert ask(node, "clients", "--openid", "eve") == []
    wait_until(lambda: ask(node, "clients") == [], "the session has gone")


def test_a_node_that_is_not_there_ends_with_3(node: RunningNode) -> None:
    """And the sentence names those that are."""
    for arguments in (("clients",), ("outbox",), ("redeliver", "--all")):
        done = quick(*arguments, "--node", "10.0.0.1:1", state=node.state)
        assert done.returncode == 3
        assert "10.0.0.1:1" in done.stderr
        assert node.node in done.stderr


def test_watch_shows_it_again_until_ctrl_c(node: RunningNode) -> None:
    """As ndjson each look has its time; it is no single JSON document."""
    with running("servers", "--watch", "0.2", "--ndjson", state=node.state) as watching:
        looks = [json.loads(read_line(watching)) for _ in range(3)]
        assert finish(watching, signal.SIGINT)[0] == 130
    assert len({look["at"] for look in looks}) == 3
    assert {look["node"] for look in looks} == {node.node}
    with running("clients", "--watch", "0.2", "--openid", "bob", state=node.state) as watching:
        with running("listen", "--as", "bob", state=node.state):
            assert read_line(watching).startswith("OPENID")
        assert finish(watching, signal.SIGINT)[0] == 130
    assert quick("servers", "--watch", "1", "--json", state=node.state).returncode == 2
    assert quick("servers", "--watch", "0", state=node.state).returncode == 2


def test_what_outbox_says_to_programs(node: RunningNode) -> None:
    """Rows without their texts, oldest first; by user, state and number."""
    accept(node, "bob", "secret words")
    accept(node, "eve", "secret words")
    rows = ask(node, "outbox")
    assert [row["to"] for row in rows] == ["bob", "eve"]
    assert {"node", "message_id", "request_id", "from", "to", "state", "attempts", "accepted_at"} <= set(rows[0])
    assert (rows[0]["node"], rows[0]["from"], rows[0]["state"]) == (node.node, "ann", "pending")
    assert "secret" not in json.dumps(rows)
    assert ask(node, "outbox", "--to", "eve") == rows[1:]
    assert ask(node, "outbox", "--limit", "1") == rows[:1]
    assert ask(node, "outbox", "--state", "delivered") == []
    assert "oldest 1" in quick("outbox", "--limit", "1", state=node.state).stderr
    shown = quick("outbox", "--node", node.node, state=node.state).stdout
    assert rows[0]["message_id"] in shown


def test_nodes_that_do_not_run_are_named(node: RunningNode) -> None:
    """What waits there is not counted, and how to start them is said; when none runs, that is an error."""
    with RunningNode(node.state) as second:
        accept(node, "bob", "hi")
        second.kill()
        done = quick("outbox", "--json", state=node.state)
        assert done.returncode == 0
        assert f"yanchat serve --listen {second.node}" in done.stderr
        only = quick("outbox", "--node", second.node, state=node.state)
        assert only.returncode == 4
        assert second.node in only.stderr
    node.terminate()
    for arguments in (("outbox",), ("redeliver", "--all")):
        done = quick(*arguments, state=node.state)
        assert done.returncode == 4
        assert "yanchat serve" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_node_that_has_left_is_known_by_its_directory(node: RunningNode) -> None:
    """The command that starts it again is whole."""
    node.terminate()
    assert f"`yanchat serve --listen {node.node}`" in quick("outbox", state=node.state).stderr


def test_a_node_that_hangs_is_named_and_the_others_answer(node: RunningNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds up nobody for long."""
    accept(node, "bob", "hi")  # before there is a second node that could take it
    with RunningNode(node.state) as second:
        quick("outbox", "--json", state=node.state)  # the first question loads what answers it
        monkeypatch.setattr("yanchat.admin.client.ASKED", 4.0)
        second.pause()
        done = quick("outbox", "--json", state=node.state)
        second.resume()
    assert [row["to"] for row in json.loads(done.stdout)] == ["bob"], done.stderr
    assert f"{slug(second.node)}/admin.sock does not answer" in done.stderr


def test_redeliver_replays_what_is_selected(node: RunningNode) -> None:
    """All, by user, by id, by age; to a user who leaves his messages unacked it comes again at once, marked."""
    with running("listen", "--as", "bob", "--no-ack", "--raw", state=node.state) as listener:
        accept(node, "bob", "one")
        accept(node, "eve", "two")
        first = json.loads(read_line(listener))
        result = ask(node, "redeliver", "--to", "bob")
        assert result == {
            "node": node.node,
            "selected": 1,
            "redelivered": 1,
            "adopted": 0,
            "message_ids": [first["messageId"]],
        }
        again = json.loads(read_line(listener))
        assert (again["messageId"], again["redelivered"]) == (first["messageId"], True)
        assert ask(node, "redeliver", "--all", "--dry-run")["selected"] == 2
        assert ask(node, "redeliver", "--all", "--dry-run")["redelivered"] == 0
        assert ask(node, "redeliver", "--message-id", first["messageId"], "--to", "bob")["selected"] == 1
        assert ask(node, "redeliver", "--older-than", "1h")["selected"] == 0
        assert ask(node, "redeliver", "--older-than", "0s", "--dry-run")["selected"] == 2
    unknown = quick("redeliver", "--message-id", "0" * 32, state=node.state)
    assert unknown.returncode == 3
    assert "0" * 32 in unknown.stderr


def test_redeliver_reaches_all_nodes(node: RunningNode) -> None:
    """One answer for all; `node` is null when there are several."""
    accept(node, "bob", "one")
    with RunningNode(node.state) as second:
        assert quick("send", "bob", "two", "--wait", "accepted", "--url", second.url).returncode == 0
        result = ask(node, "redeliver", "--all", "--yes")
        assert result["node"] is None
        assert result["selected"] == 2
        assert len(result["message_ids"]) == 2
        assert ask(node, "redeliver", "--all", "--node", second.node)["node"] == second.node


def test_redeliver_asks_on_a_terminal_only(node: RunningNode) -> None:
    """A person says yes first; a script is never asked."""
    accept(node, "bob", "one")
    code, shown = on_terminal("redeliver", "--all", state=node.state, after="[y/N]", typed="n\n")
    assert "Redeliver 1 message now? [y/N]" in shown
    assert "Nothing was done." in shown
    assert code == 0
    code, shown = on_terminal("redeliver", "--all", state=node.state, after="[y/N]", typed="y\n")
    assert "1 message selected" in shown
    assert code == 0
    for arguments in (("--all", "--yes"), ("--all", "--dry-run"), ("--to", "eve")):
        assert "[y/N]" not in on_terminal("redeliver", *arguments, state=node.state)[1]
    assert "[y/N]" not in quick("redeliver", "--all", state=node.state).stderr


def test_ctrl_c_at_a_question_does_nothing(node: RunningNode) -> None:
    """Exit code 130, and nothing was redelivered."""
    accept(node, "bob", "one")
    code, shown = on_terminal("redeliver", "--all", state=node.state, after="[y/N]", typed="\x03")
    assert code == 130
    assert "Traceback" not in shown
    assert "selected" not in shown


def test_operators_can_ask_as_soon_as_a_node_is_ready(tmp_path: Path) -> None:
    """The node loads its web libraries behind its ready line; whoever asks before that waits, and is answered."""
    for _ in range(3):
        with RunningNode(tmp_path / "state") as node:
            assert ask(node, "outbox") == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_another_user_is_sent_to_the_one_who_runs_the_nodes(node: RunningNode) -> None:
    """Exit code 5, whether it is the directory or the file that he may not use."""
    for path in (node.state / "cluster.db", node.state):
        path.chmod(0)
        done = quick("servers", state=node.state)
        path.chmod(0o700)
        assert done.returncode == 5
        assert "the user that runs the nodes" in done.stderr
        assert done.stderr.count("\n") == 1
