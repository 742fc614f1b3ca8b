"""`yanchat audit`: books that balance whatever nodes go through, and what is found when they have been made wrong."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import apsw
import pytest
from websockets.sync.client import connect

from tests.cli.calls import quick
from tests.cli.terminal import on_terminal
from tests.dying import die
from tests.running import RunningNode, call, read_line, running, wait_until

Nodes = tuple[RunningNode, RunningNode]
NUMBERS = ("accepted", "adopted", "delivered", "pending", "expired", "failed", "moved")
TOTALS = ("accepted", "delivered", "pending", "expired", "failed")


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    """Two that share a directory."""
    with ExitStack() as stack:
        first, second = (stack.enter_context(RunningNode(tmp_path / "state")) for _ in range(2))
        yield first, second


def send(node: RunningNode, to: str, text: str, *more: str) -> str:
    """Send it; the id."""
    arguments = ("--as", "ann", "--wait", "accepted", "--json", "--url", node.url)
    done = quick("send", to, text, *arguments, *more, state=node.state)
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)[0]["message_id"])


def send_plain(node: RunningNode) -> str:
    """Send Bob a message without a request id, so that its id is the node's own."""
    with connect(f"{node.url}?openid=ann") as ann:
        ann.send(json.dumps({"type": 1, "params": {"toMessageId": "bob", "message": "hello", "fileType": 0}}))
        while True:
            frame = json.loads(ann.recv(20))
            if frame.get("type") == 0:
                return str(frame["params"]["messageId"])


def audit(node: RunningNode, *arguments: str, code: int = 0) -> dict[str, Any]:
    done = quick("audit", *arguments, "--json", state=node.state)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    assert document["balanced"] is (code != 10)
    return document


def sums(document: dict[str, Any]) -> tuple[int, ...]:
    return tuple(document[name] for name in TOTALS)


def tamper(node: RunningNode, *statements: str) -> None:
    """Change its table behind its back."""
    connection = apsw.Connection(str(node.directory / "node.db"))
    connection.set_busy_timeout(5000)
    for sql in statements:
        connection.execute(sql)
    connection.close()


def doubts(document: dict[str, Any]) -> list[str]:
    """All sentences, of the nodes and between them."""
    of_nodes = [doubt["sentence"] for node in document["nodes"] for doubt in node["doubts"]]
    return of_nodes + [doubt["sentence"] for doubt in document["doubts"]]


def ids(document: dict[str, Any]) -> set[str]:
    found = [doubt for node in document["nodes"] for doubt in node["doubts"]] + document["doubts"]
    return {doubt["message_id"] for doubt in found if "message_id" in doubt}


# -- books that balance ------------------------------------------------------------------------------------------------
def test_two_nodes_in_the_middle_of_their_work(nodes: Nodes) -> None:
    """The keys are a promise. To three recipients is three; a request sent again elsewhere counts once in all."""
    here, there = nodes
    with running("listen", "--as", "bob", "--url", there.url, state=there.state) as bob:
        read_line(bob, of_stderr=True)
        send(here, "bob,eve,zoe", "hello")
        for node in (here, there, here):
            send(node, "bob", "again", "--request-id", "r")
        wait_until(lambda: audit(here)["delivered"] == 2, "bob has both")
    document = audit(here)
    assert [*document] == [*TOTALS, "balanced", "complete", "repeated", "nodes", "doubts", "more_doubts", "silent"]
    assert sums(document) == (4, 2, 2, 0, 0)
    assert (document["complete"], document["repeated"], document["doubts"], document["silent"]) == (True, 1, [], [])
    for node in document["nodes"]:
        assert [*node] == ["node", "runs", *NUMBERS, "purged", "purged_before", "counted", "balanced", "doubts"]
        assert node["accepted"] + node["adopted"] == sum(node[name] for name in NUMBERS[2:])
    assert [node["accepted"] for node in sorted(document["nodes"], key=lambda one: one["node"] != here.node)] == [4, 1]


def test_people_get_a_table_with_a_line_for_all(nodes: Nodes) -> None:
    send(nodes[0], "bob", "hello")
    done = quick("audit", state=nodes[0].state)
    heading, *rows = done.stdout.splitlines()
    assert heading.lower().split() == ["node", *NUMBERS, "balanced"]
    assert sorted(row.split()[0] for row in rows) == sorted([nodes[0].node, nodes[1].node, "all"])
    assert rows[-1].split() == ["all", "1", "-", "0", "1", "0", "0", "-", "yes"]
    assert done.stderr == "The books balance.\n"
    code, shown = on_terminal("audit", state=nodes[0].state)
    assert code == 0
    assert "The books balance." in shown


def test_one_object_a_line(nodes: Nodes) -> None:
    (line,) = quick("audit", "--ndjson", state=nodes[0].state).stdout.splitlines()
    assert json.loads(line)["balanced"]


def test_a_killed_node_and_what_was_adopted_from_it_balance(nodes: Nodes) -> None:
    """Its files are read; what has moved counts once, on the adopter, and so it does when it is gone for good."""
    dead, alive = nodes
    for text in ("one", "two", "three"):
        send(dead, "bob", text)
    die(dead)
    document = audit(dead)
    assert sums(document) == (3, 0, 3, 0, 0)
    assert {node["node"]: node["runs"] for node in document["nodes"]} == {dead.node: False, alive.node: True}
    assert quick("redeliver", "--adopt", dead.node, "--yes", state=dead.state).returncode == 0
    document = audit(dead)
    assert sums(document) == (3, 0, 3, 0, 0)
    of = {node["node"]: node for node in document["nodes"]}
    assert (of[dead.node]["accepted"], of[dead.node]["moved"]) == (3, 3)
    assert (of[alive.node]["adopted"], of[alive.node]["pending"]) == (3, 3)
    dead.directory.rename(dead.state / "elsewhere")
    document = audit(alive, code=4)
    assert sums(document) == (3, 0, 3, 0, 0)


def test_what_is_purged_stays_in_the_books(tmp_path: Path) -> None:
    options = {"YANCHAT_REDELIVERY_LIFETIME": "1s", "YANCHAT_REDELIVERY_KEEP": "8d"}
    with RunningNode(tmp_path / "state", env=options) as node:
        send(node, "bob", "hello")
        wait_until(lambda: audit(node)["expired"] == 1, "it is given up")
        node.terminate()
        long_ago = f"ord - ({9 * 86_400_000} << 16)"
        tamper(node, f"UPDATE outbox SET told = 1, ord = {long_ago}", f"UPDATE ids SET ord = {long_ago}")
        node.start()
        wait_until(lambda: audit(node)["nodes"][0]["purged"] == 1, "it is purged")
        assert sums(audit(node)) == (1, 0, 0, 1, 0)
        assert audit(node)["nodes"][0]["purged_before"] < time.time() * 1000 - 8 * 86_400_000


def test_since_looks_at_what_was_accepted_since_then(nodes: Nodes) -> None:
    """By age and by time; the counters, which are of the whole life, are left out, and that is said."""
    send(nodes[0], "bob", "hello")
    assert sums(audit(nodes[0], "--since", "1h")) == (1, 0, 1, 0, 0)
    assert sums(audit(nodes[0], "--since", "2020-01-01")) == (1, 0, 1, 0, 0)
    assert sums(audit(nodes[0], "--since", "2099-01-01T00:00:00+00:00")) == (0, 0, 0, 0, 0)
    assert "without --since" in quick("audit", "--since", "1h", state=nodes[0].state).stderr
    assert quick("audit", "--since", "yesterday", state=nodes[0].state).returncode == 2


# -- not all can be asked ----------------------------------------------------------------------------------------------
def test_a_node_that_cannot_be_asked_is_named_and_nothing_is_proven(nodes: Nodes) -> None:
    """Exit code 4: what answered balances, but that is not all."""
    here, there = nodes
    send(here, "bob", "hello")
    there.kill()
    there.directory.rename(there.state / "elsewhere")
    document = audit(here, code=4)
    assert (document["balanced"], document["complete"]) == (True, False)
    assert document["silent"][0]["node"] == there.node
    done = quick("audit", state=here.state)
    assert there.node in done.stderr
    assert "The books of those that answered balance." in done.stderr


# -- books that were made wrong ----------------------------------------------------------------------------------------
@pytest.fixture
def delivered(nodes: Nodes) -> tuple[RunningNode, RunningNode, str, str]:
    """The first node accepted two, of which Bob, on the second, has acked one; its id, and that of the other."""
    here, there = nodes
    with running("listen", "--as", "bob", "--count", "1", "--url", there.url, state=there.state) as bob:
        read_line(bob, of_stderr=True)
        had = send_plain(here)
        bob.wait(20)
    waits = send_plain(here)
    wait_until(lambda: sums(audit(here)) == (2, 1, 1, 0, 0), "it is known that he has one")
    return here, there, had, waits


def test_a_deleted_row_is_missed_and_its_id_told_by_who_acked_it(
    delivered: tuple[RunningNode, RunningNode, str, str],
) -> None:
    here, there, had, _ = delivered
    tamper(here, f"DELETE FROM outbox WHERE message_id = x'{had}'")
    document = audit(here, code=10)
    assert "1 delivered were counted, but 0 are there: 1 missing" in doubts(document)
    assert f"acked on {there.node} as a message of {here.node}, which does not know it" in doubts(document)
    assert ids(document) == {had}
    done = quick("audit", state=here.state)
    assert done.returncode == 10
    assert had in done.stdout
    assert "NO" in done.stdout
    assert "do not balance" in done.stderr


def test_a_lowered_rank_is_found_and_named(delivered: tuple[RunningNode, RunningNode, str, str]) -> None:
    here, _, had, _ = delivered
    tamper(here, f"UPDATE outbox SET rank = 0 WHERE message_id = x'{had}'")
    document = audit(here, code=10)
    assert "1 pending were counted, but 2 are there: 1 too many" in doubts(document)
    assert ids(document) == {had}


def test_a_changed_counter_is_found(delivered: tuple[RunningNode, RunningNode, str, str]) -> None:
    here, *_ = delivered
    for name in ("added", "delivered", "moved", "moved_purged"):
        tamper(here, f"INSERT INTO counters VALUES ('{name}', 1) ON CONFLICT DO UPDATE SET value = value + 1")
        assert doubts(audit(here, code=10))
        tamper(here, f"UPDATE counters SET value = value - 1 WHERE name = '{name}'")
        audit(here)


def test_a_row_that_is_on_two_nodes_is_found_and_named(delivered: tuple[RunningNode, RunningNode, str, str]) -> None:
    """Also when the counters of the second were made to agree."""
    here, there, _, waits = delivered
    tamper(
        there,
        f"ATTACH '{here.directory / 'node.db'}' AS other",
        f"INSERT INTO outbox SELECT * FROM other.outbox WHERE message_id = x'{waits}'",
    )
    document = audit(here, code=10)
    assert "0 pending were counted, but 1 are there: 1 too many" in doubts(document)
    tamper(there, "INSERT INTO counters VALUES ('added', 1) ON CONFLICT DO UPDATE SET value = value + 1")
    document = audit(here, code=10)
    assert len(doubts(document)) == 1
    assert "only one node can have accepted it" in doubts(document)[0]
    assert ids(document) == {waits}


def test_what_moved_and_did_not_arrive_is_found_and_named(nodes: Nodes) -> None:
    dead, alive = nodes
    message_id = send(dead, "bob", "hello")
    die(dead)
    assert quick("redeliver", "--adopt", dead.node, "--yes", state=dead.state).returncode == 0
    audit(dead)
    tamper(alive, "DELETE FROM outbox", "DELETE FROM ids", "UPDATE counters SET value = 0 WHERE name = 'adopted'")
    document = audit(dead, code=10)
    assert doubts(document) == [f"moved away from {dead.node}, and on no other node"]
    assert ids(document) == {message_id}


def test_an_adoption_that_did_not_end_is_found_and_ends_by_being_called_again(nodes: Nodes) -> None:
    dead, _ = nodes
    message_id = send_plain(dead)
    die(dead)
    killed = call(
        "redeliver", "--adopt", dead.node, "--yes", state=dead.state, env={"YANCHAT_FAILPOINT": "adopt-answered"}
    )
    assert killed.returncode == -signal.SIGKILL
    document = audit(dead, code=10)
    assert sums(document) == (1, 0, 1, 0, 0)
    assert ids(document) == {message_id}
    assert "redeliver --adopt" in doubts(document)[0]
    assert quick("redeliver", "--adopt", dead.node, "--yes", state=dead.state).returncode == 0
    assert sums(audit(dead)) == (1, 0, 1, 0, 0)
