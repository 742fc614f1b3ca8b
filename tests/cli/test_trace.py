"""`yanchat trace`: the life of a message, of nodes that run, hang, are dead, and are elsewhere."""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import apsw
import pytest

from tests.cli.calls import quick
from tests.cli.terminal import on_terminal
from tests.dying import die
from tests.running import RunningNode, read_line, running, wait_until

Nodes = tuple[RunningNode, RunningNode]


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    """Two that share a directory."""
    with ExitStack() as stack:
        first, second = (stack.enter_context(RunningNode(tmp_path / "state")) for _ in range(2))
        yield first, second


def send(node: RunningNode, to: str, *more: str) -> str:
    """Send a secret; the id."""
    arguments = ("--as", "ann", "--wait", "accepted", "--json", "--url", node.url)
    done = quick("send", to, "secret words", *arguments, *more, state=node.state)
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)[0]["message_id"])


def trace(node: RunningNode, *arguments: str, code: int = 0) -> list[dict[str, Any]]:
    done = quick("trace", *arguments, "--json", state=node.state)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout) if code == 0 else []
    return rows


def events(rows: list[dict[str, Any]], to: str = "bob") -> list[tuple[str, str]]:
    return [(row["node"], row["event"]) for row in rows if row["to"] == to]


def conclusion(node: RunningNode, message_id: str) -> str:
    return quick("trace", message_id, state=node.state).stderr


def listening(node: RunningNode, *arguments: str) -> Any:
    return running("listen", "--as", "bob", "--url", node.url, "--ndjson", *arguments, state=node.state)


# -- nodes that run ----------------------------------------------------------------------------------------------------
def test_a_message_from_its_acceptance_to_the_notice(nodes: Nodes) -> None:
    """On both nodes, in the order of time; the keys are a promise, and the text is not shown."""
    here, there = nodes
    with listening(there) as bob, running("listen", "--as", "ann", "--url", here.url, state=here.state) as ann:
        read_line(bob, of_stderr=True)
        read_line(ann, of_stderr=True)  # she stays, and hears of it
        message_id = send(here, "bob", "--request-id", "r-1")
        wait_until(lambda: "told" in [row["event"] for row in trace(here, message_id)], "ann is told")
    rows = trace(here, message_id)
    assert [list(row) for row in rows] == [["t", "node", "event", "message_id", "to", "detail"]] * len(rows)
    assert [row["t"] for row in rows] == sorted(row["t"] for row in rows)
    assert {row["message_id"] for row in rows} == {message_id}
    assert sorted(events(rows)) == sorted(
        [(here.node, one) for one in ("accepted", "pushed", "arrived", "delivered", "told")] + [(there.node, "acked")]
    )
    (accepted,) = (row for row in rows if row["event"] == "accepted")
    assert accepted["detail"] == "from ann, request r-1"
    done = quick("trace", message_id, state=here.state)
    assert "secret" not in done.stdout + done.stderr + json.dumps(rows)
    assert done.stderr == "bob has it; ann knows.\n"


def test_people_get_a_table_with_times_and_a_conclusion(nodes: Nodes) -> None:
    message_id = send(nodes[0], "bob")
    heading, accepted, pending = quick("trace", message_id, state=nodes[0].state).stdout.splitlines()
    assert heading.split() == ["TIME", "AFTER", "NODE", "EVENT", "TO", "DETAIL"]
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}  -  .* accepted  bob  from ann", accepted)
    assert pending.endswith("not acked, not pushed yet")
    code, shown = on_terminal("trace", message_id, state=nodes[0].state)
    assert code == 0
    assert "until he connects" in shown


def test_several_recipients_are_told_apart(nodes: Nodes) -> None:
    """One has it, one has not; each has a line of conclusion."""
    here, there = nodes
    with listening(there) as bob:
        read_line(bob, of_stderr=True)
        message_id = send(here, "bob,eve")
        wait_until(lambda: (here.node, "delivered") in events(trace(here, message_id)), "bob has it")
    rows = trace(here, message_id)
    assert events(rows, "eve") == [(here.node, "accepted"), (here.node, "pending")]
    said = conclusion(here, message_id).splitlines()
    assert said == [
        "bob has it; ann does not know yet, and is told at the next login.",
        f"eve: waits on {here.node} until he connects; he has no session now.",
    ]


def test_a_recipient_who_does_not_ack_is_seen_with_his_pushes(nodes: Nodes) -> None:
    """How often it was pushed is known while it waits; where he is, is said, and what pushes it again."""
    here, there = nodes
    with listening(there, "--no-ack") as bob:
        read_line(bob, of_stderr=True)
        message_id = send(here, "bob")
        read_line(bob)
        wait_until(lambda: (here.node, "arrived") in events(trace(here, message_id)), "it is said that it arrived")
        (pending,) = (row for row in trace(here, message_id) if row["event"] == "pending")
        assert re.fullmatch(r"not acked, pushed \d+ times? so far", pending["detail"])
        said = conclusion(here, message_id)
        assert f"he is connected to {there.node} and has not acked it" in said
        assert f"yanchat redeliver --message-id {message_id}" in said


def test_a_request_sent_again_to_another_node_is_one_message_on_both(nodes: Nodes) -> None:
    here, there = nodes
    message_id = send(here, "bob", "--request-id", "r")
    assert send(there, "bob", "--request-id", "r") == message_id
    assert events(trace(here, message_id)).count((here.node, "accepted")) == 1
    assert events(trace(here, message_id)).count((there.node, "accepted")) == 1


# -- how it is named ---------------------------------------------------------------------------------------------------
def test_an_id_may_be_written_in_capitals_and_with_dashes(nodes: Nodes) -> None:
    message_id = send(nodes[0], "bob")
    written = (message_id.upper(), str(uuid.UUID(message_id)), f" {str(uuid.UUID(message_id)).upper()} ")
    assert all(events(trace(nodes[0], one)) == events(trace(nodes[0], message_id)) for one in written)


def test_a_request_id_leads_to_the_message(nodes: Nodes) -> None:
    """On whatever node; several texts under one request id are several messages, and the table tells them apart."""
    here, there = nodes
    first = send(here, "bob", "--request-id", "r")
    arguments = ("--as", "ann", "--wait", "accepted", "--request-id", "r", "--url", there.url, "--json")
    second = json.loads(quick("send", "bob", "other words", *arguments, state=here.state).stdout)[0]["message_id"]
    rows = trace(here, "--request-id", "r", "--from", "ann")
    assert list(dict.fromkeys(row["message_id"] for row in rows)) == [first, second]
    assert "MESSAGE" in quick("trace", "--request-id", "r", "--from", "ann", state=here.state).stdout
    trace(here, "--request-id", "r", "--from", "bob", code=3)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "--request-id with --from"),
        (("xyz",), "'xyz' is no message id"),
        (("0" * 31,), "32 hex digits"),
        (("0" * 32, "--request-id", "r", "--from", "ann"), "Say which message"),
        (("--request-id", "r"), "--from"),
        (("--request-id", "r", "--from", "a b"), "--from"),
    ],
)
def test_a_wrong_call_ends_with_2(arguments: tuple[str, ...], says: str, tmp_path: Path) -> None:
    done = quick("trace", *arguments, state=tmp_path)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


# -- what is not known -------------------------------------------------------------------------------------------------
def test_an_unknown_message_ends_with_3_and_names_who_was_asked(nodes: Nodes) -> None:
    done = quick("trace", "0" * 32, state=nodes[0].state)
    assert done.returncode == 3
    assert done.stdout == ""
    assert all(node.node in done.stderr for node in nodes)
    assert "purged" not in done.stderr


def test_what_was_purged_may_be_what_is_asked_for(tmp_path: Path) -> None:
    """By its id it is known when it was accepted, and by the node up to when it forgot what was done."""
    options = {"YANCHAT_REDELIVERY_LIFETIME": "1s", "YANCHAT_REDELIVERY_KEEP": "8d"}
    with RunningNode(tmp_path / "state", env=options) as node:
        message_id = send(node, "bob")
        node.terminate()
        connection = apsw.Connection(str(node.directory / "node.db"))
        connection.execute("UPDATE outbox SET ord = ord - (9 * 86400000 << 16), rank = 2, told = 2, settled_at = 1")
        connection.execute("UPDATE ids SET ord = ord - (9 * 86400000 << 16)")
        connection.close()
        node.start()
        wait_until(lambda: quick("trace", message_id, state=node.state).returncode == 3, "it is purged")
        assert "was done may be purged (redelivery.keep)" in quick("trace", message_id, state=node.state).stderr


def test_a_node_that_is_dead_and_not_here_is_named_and_nothing_is_claimed(nodes: Nodes) -> None:
    """Its message may be there: exit code 4, not 3. What others know is told all the same."""
    here, there = nodes
    message_id = send(here, "bob")
    there.kill()
    there.directory.rename(there.state / "elsewhere")
    done = quick("trace", "0" * 32, state=here.state)
    assert done.returncode == 4
    assert there.node in done.stderr
    assert f"cannot be told: those that answered do not know it ({here.node})" in done.stderr
    done = quick("trace", message_id, state=here.state)
    assert done.returncode == 0
    assert there.node in done.stderr


# -- nodes that do not run ---------------------------------------------------------------------------------------------
def test_a_message_that_waits_on_a_dead_node_is_told_from_its_files(nodes: Nodes) -> None:
    """Which are not changed; and what can be done is said, whole."""
    dead, _ = nodes
    message_id = send(dead, "bob")
    die(dead)
    before = content(dead.directory)
    rows = trace(dead, message_id)
    assert content(dead.directory) == before
    assert events(rows) == [(dead.node, "accepted"), (dead.node, "pending")]
    assert "nothing happens while this node does not run" in rows[-1]["detail"]
    said = conclusion(dead, message_id)
    assert f"`yanchat serve --listen {dead.node}`" in said
    assert f"`yanchat redeliver --adopt {dead.node}`" in said


def content(directory: Path) -> dict[str, bytes]:
    """Its files; not the index of the log, which every reader makes anew."""
    return {one.name: one.read_bytes() for one in directory.iterdir() if one.is_file() and one.suffix != ".db-shm"}


def test_all_nodes_may_be_stopped(nodes: Nodes) -> None:
    message_id = send(nodes[0], "bob")
    for node in nodes:
        node.terminate()
    assert events(trace(nodes[0], message_id)) == [(nodes[0].node, "accepted"), (nodes[0].node, "pending")]
    trace(nodes[0], "0" * 32, code=3)


def test_a_node_that_hangs_is_told_from_its_disk(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said that it does not answer."""
    message_id = send(nodes[0], "bob")
    trace(nodes[0], message_id)  # the first question loads what answers it
    monkeypatch.setattr("yanchat.admin.client.ASKED", 4.0)
    nodes[0].pause()
    done = quick("trace", message_id, "--json", state=nodes[0].state)
    nodes[0].resume()
    assert done.returncode == 0
    assert f"{nodes[0].node} does not answer" in done.stderr
    assert events(json.loads(done.stdout)) == [(nodes[0].node, "accepted"), (nodes[0].node, "pending")]


# -- adoption ----------------------------------------------------------------------------------------------------------
def test_an_adopted_message_is_told_from_one_node_to_the_other(nodes: Nodes) -> None:
    """What happened before is told once, where it happened; and when those files have gone, by the adopter."""
    dead, alive = nodes
    with listening(alive, "--no-ack") as bob:
        read_line(bob, of_stderr=True)
        message_id = send(dead, "bob")
        read_line(bob)
    die(dead)
    assert quick("redeliver", "--adopt", dead.node, "--yes", state=dead.state).returncode == 0
    rows = trace(dead, message_id)
    assert [one for one in events(rows) if one[1] in {"accepted", "moved", "adopted", "pending"}] == [
        (dead.node, "accepted"),
        (alive.node, "adopted"),
        (dead.node, "moved"),
        (alive.node, "pending"),
    ]
    assert f"bob: waits on {alive.node}" in conclusion(dead, message_id)
    dead.directory.rename(dead.state / "elsewhere")
    rows = trace(alive, message_id)
    assert [event for event in events(rows) if event[1] in {"accepted", "adopted"}] == [
        (alive.node, "accepted"),
        (alive.node, "adopted"),
    ]


def test_what_was_given_up_and_acked_all_the_same_tells_both(tmp_path: Path) -> None:
    """Bob's client came back with his ack after the message had expired."""
    options = {"YANCHAT_REDELIVERY_LIFETIME": "1s", "YANCHAT_REDELIVERY_FIRST": "100ms"}
    with RunningNode(tmp_path / "state", env=options) as node:
        message_id = send(node, "bob")
        wait_until(lambda: (node.node, "expired") in events(trace(node, message_id)), "it is given up")
        assert f"redeliver --dead --message-id {message_id}" in conclusion(node, message_id)
        with listening(node) as bob:
            read_line(bob, of_stderr=True)
            assert quick("redeliver", "--dead", "--message-id", message_id, state=node.state).returncode == 0
            wait_until(lambda: (node.node, "delivered") in events(trace(node, message_id)), "it is acked")
        assert "bob has it" in conclusion(node, message_id)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_another_users_files_are_named(nodes: Nodes) -> None:
    nodes[0].kill()
    (nodes[0].directory / "node.db").chmod(0)
    done = quick("trace", "0" * 32, state=nodes[0].state)
    assert done.returncode == 4
    assert "the user that runs the nodes" in done.stderr
