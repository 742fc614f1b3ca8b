"""`send` and `listen` against real nodes: what a person sees, what a program reads, and what a crash costs."""

from __future__ import annotations

import json
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.cli.calls import quick
from tests.running import DEADLINE, RunningNode, call, finish, read_line, running, wait_until


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    """One running node for all; each test has users of its own."""
    with RunningNode(tmp_path_factory.mktemp("talking") / "state") as running_node:
        yield running_node


@pytest.fixture
def bob() -> str:
    """A user whom no other test knows."""
    return f"bob-{uuid4().hex}"


def send(node: RunningNode, *arguments: str, stdin: str = "", code: int = 0) -> list[dict[str, Any]]:
    """`yanchat send … --ndjson`; its outcomes."""
    made = ("send", *arguments, "--ndjson")
    done = call(*made, state=node.state, stdin=stdin) if "-" in arguments else quick(*made, state=node.state)
    assert done.returncode == code, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def untold_of(node: RunningNode, user: str) -> list[dict[str, Any]]:
    """The messages to him of whose end their senders do not know."""
    done = quick("outbox", "--to", user, "--state", "untold", "--json", state=node.state)
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def receive(node: RunningNode, user: str, count: int, *arguments: str) -> list[dict[str, Any]]:
    """`yanchat listen --as USER --count N --json`; the messages."""
    done = quick("listen", "--as", user, "--count", str(count), "--json", *arguments, state=node.state)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_the_story_of_two_terminals(node: RunningNode, bob: str) -> None:
    """Delivered, then waiting through a kill -9, then all of it: in order, once."""
    with running("listen", "--as", bob, state=node.state) as listener:
        assert read_line(listener, of_stderr=True).startswith(f"Listening as {bob} at {node.node};")
        sent = call("send", bob, "hello", "--as", "ann", state=node.state)
        assert sent.returncode == 0
        assert sent.stdout.startswith(f"delivered to {bob} in ")
        assert sent.stdout.endswith(" ms\n")
        assert read_line(listener).endswith("  ann: hello\n")
        assert finish(listener, signal.SIGINT)[0] == 130
    for text in ("one", "two", "three"):
        waiting = call("send", bob, text, "--as", "ann", "--wait", "accepted", state=node.state)
        assert waiting.stdout.startswith(f"accepted for {bob} in ")
    node.restart()
    assert [message["text"] for message in receive(node, bob, 3)] == ["one", "two", "three"]
    assert json.loads(call("outbox", "--to", bob, "--json", state=node.state).stdout) == []


def test_nothing_is_kept_for_a_sender_who_knows_and_has_gone(node: RunningNode, bob: str) -> None:
    """It has confirmed its notices when it ends, one or many: nobody is to be told later."""
    with running("listen", "--as", bob, "--ndjson", state=node.state):
        for count in (1, 100):
            assert len(send(node, bob, "hi", "--count", str(count))) == count
            # it is written a moment later
            wait_until(lambda: untold_of(node, bob) == [], "the node knows that the sender knows")


def test_what_send_says_to_programs(node: RunningNode, bob: str) -> None:
    """The keys are a promise; so is one object for each message and recipient."""
    outcomes = send(node, f"{bob},eve,{bob}", "hi", "--as", "ann", "--wait", "accepted", "--count", "2")
    assert len(outcomes) == 4
    assert [outcome["to"] for outcome in outcomes] == [bob, "eve", bob, "eve"]
    for outcome in outcomes:
        assert list(outcome) == ["message_id", "request_id", "to", "state", "error", "latency_ms"]
        assert outcome["state"] == "accepted"
        assert outcome["error"] is None
        assert outcome["latency_ms"] > 0
    assert len({outcome["message_id"] for outcome in outcomes}) == 2


def test_json_is_one_list(node: RunningNode, bob: str) -> None:
    """One document, whatever happens, and whoever reads it."""
    done = quick("send", bob, "hi", "--wait", "accepted", "--json", state=node.state)
    (outcome,) = json.loads(done.stdout)
    assert outcome["state"] == "accepted"
    assert done.stderr == ""


def test_what_listen_says_to_programs(node: RunningNode, bob: str) -> None:
    """The keys are a promise."""
    (sent,) = send(node, bob, "hé\nllo", "--as", "ann", "--name", "Ann Lee", "--file-type", "7", "--wait", "accepted")
    (message,) = receive(node, bob, 1)
    assert message == {
        "message_id": sent["message_id"],
        "from": "ann",
        "from_name": "Ann Lee",
        "text": "hé\nllo",
        "file_type": 7,
        "sent_at": message["sent_at"],
        "redelivered": False,
    }


def test_texts_from_stdin_are_sent_line_by_line_and_come_in_order(node: RunningNode, bob: str) -> None:
    """Many more than a node takes from a client at a time; empty lines and a missing last newline count."""
    texts = [f"text {n}" for n in range(600)] + ["", "the last"]
    outcomes = send(node, bob, "-", "--as", "ann", "--wait", "accepted", stdin="\n".join(texts))
    assert [outcome["state"] for outcome in outcomes] == ["accepted"] * len(texts)
    assert [message["text"] for message in receive(node, bob, len(texts))] == texts


def test_no_texts_are_no_error(node: RunningNode, bob: str) -> None:
    """An empty file was sent completely."""
    assert send(node, bob, "-", stdin="") == []
    assert json.loads(call("send", bob, "-", "--json", state=node.state).stdout) == []


def test_a_text_that_is_not_utf8_is_refused_by_its_line(node: RunningNode, bob: str) -> None:
    """Nothing is guessed about other encodings; what stands before it is sent and answered, nothing behind it is."""
    with running(
        "send", bob, "-", "--wait", "accepted", state=node.state, stdin=-1, errors="surrogateescape"
    ) as sender:
        out, errors = sender.communicate("fine\nb\udcffd\nnever\n", timeout=20)
    assert sender.returncode == 2
    assert out.count("accepted for") == 1
    assert [message["text"] for message in receive(node, bob, 1)] == ["fine"]
    assert json.loads(call("outbox", "--to", bob, "--json", state=node.state).stdout) == []
    assert "Line 2" in errors
    assert "Traceback" not in errors


def test_the_same_request_id_is_the_same_message(node: RunningNode, bob: str) -> None:
    """Whoever is unsure repeats it; another text under that id is another message."""
    first, again, other = (
        send(node, bob, text, "--as", "ann", "--request-id", "r-1", "--wait", "accepted")[0]
        for text in ("hi", "hi", "ho")
    )
    assert first["request_id"] == "r-1"
    assert first["message_id"] == again["message_id"] != other["message_id"]
    several = send(node, bob, "hi", "--as", "ann", "--request-id", "r", "--count", "2", "--wait", "accepted")
    assert [outcome["request_id"] for outcome in several] == ["r-1", "r-2"]
    assert [message["text"] for message in receive(node, bob, 3)] == ["hi", "ho", "hi"]


def test_what_is_not_delivered_in_time_ends_with_4_and_is_kept(node: RunningNode, bob: str) -> None:
    """The sender is told that it is stored; the recipient gets it when he comes."""
    done = quick("send", bob, "hi", "--timeout", "0.5", state=node.state)
    assert done.returncode == 4
    assert done.stdout == ""
    assert f"not delivered to {bob} within 500 ms: it is stored" in done.stderr
    (outcome,) = send(node, bob, "ho", "--timeout", "0.5", code=4)
    assert outcome["state"] == "accepted"
    assert "stored" in outcome["error"]
    assert [message["text"] for message in receive(node, bob, 2)] == ["hi", "ho"]


def test_a_person_is_told_who_is_waited_for(node: RunningNode, bob: str) -> None:
    """On a terminal that shows nothing for a second one would wonder; a program gets its outcome, and no words."""
    with running("send", f"{bob},cid", "hi", state=node.state) as sender:
        assert read_line(sender, of_stderr=True) == f"Accepted; waiting for {bob}, cid.\n"
        assert [message["text"] for message in receive(node, bob, 1)] == ["hi"]
        assert read_line(sender).startswith(f"delivered to {bob}")
    assert call("send", bob, "ho", "--timeout", "3", "--json", state=node.state).stderr == ""


def test_whoever_stops_waiting_is_told_what_is_stored(node: RunningNode, bob: str) -> None:
    """Ctrl-C at a message that waits for its recipient says that it is stored, to people and to programs."""
    here = f"here-{bob}"
    with running("listen", "--as", here, state=node.state) as listener:
        read_line(listener, of_stderr=True)
        for form, told in (
            ((), f"not delivered to {bob} so far: it is stored"),
            (("--ndjson",), '"state": "accepted"'),
        ):
            with running("send", f"{here},{bob}", "hi", *form, state=node.state) as sender:
                assert here in read_line(sender)  # so it is stored for the other one, too
                code, out, errors = finish(sender, signal.SIGINT)
                assert code == 130
                assert told in (out if form else errors)
                assert "Traceback" not in errors


def test_a_text_that_is_too_large_fails_alone(node: RunningNode, bob: str) -> None:
    """The node closes the connection for it; what was sent beside it gets its answer all the same."""
    texts = ["small", "x" * 70_000, "small, too"]
    outcomes = send(node, bob, "-", "--as", "ann", "--wait", "accepted", stdin="\n".join(texts), code=1)
    assert sorted(outcome["state"] for outcome in outcomes) == ["accepted", "accepted", "failed"]
    assert "limits.message_size" in next(outcome["error"] for outcome in outcomes if outcome["state"] == "failed")
    assert [message["text"] for message in receive(node, bob, 2)] == ["small", "small, too"]


def test_a_refusal_that_asks_to_wait_is_waited_for(bob: str, tmp_path: Path) -> None:
    """Over the rate of a node every text is stored in the end; for longer than there is time, it is said."""
    env = {"YANCHAT_LIMITS_MESSAGES_PER_SECOND": "2"}
    with RunningNode(tmp_path / "state", env=env) as node:
        texts = "\n".join(f"{n}" for n in range(8))
        done = call("send", bob, "-", "--as", "ann", "--wait", "accepted", state=node.state, stdin=texts)
        assert done.returncode == 0
        assert len(done.stdout.splitlines()) == 8
        assert done.stderr.count("asks to wait") == 1
        hurried = call(
            "send", bob, "-", "--wait", "accepted", "--timeout", "0.5", "--ndjson", state=node.state, stdin=texts
        )
        states = [json.loads(line)["state"] for line in hurried.stdout.splitlines()]
        assert hurried.returncode == 4
        assert sorted(set(states)) == ["accepted", "failed"]


@pytest.mark.parametrize("url", ["127.0.0.1:8084", "ws://", "ws://127.0.0.1:x", "ws://["])
def test_what_is_no_url_of_a_node_is_refused(url: str, bob: str) -> None:
    """It says how one is written."""
    done = quick("send", bob, "hi", "--url", url)
    assert done.returncode == 2
    assert "ws://127.0.0.1:8084" in done.stderr


def test_senders_and_listeners_reach_a_node_by_its_url(node: RunningNode, bob: str, tmp_path: Path) -> None:
    """From another machine there is no state directory; the path may be left out."""
    url = f"ws://{node.node}"
    sent = quick("send", bob, "hi", "--as", "ann", "--url", url, "--wait", "accepted", state=tmp_path / "elsewhere")
    assert sent.returncode == 0, sent.stderr
    got = quick("listen", "--as", bob, "--url", f"{url}/ws", "--count", "1", state=tmp_path / "elsewhere")
    assert got.stdout.endswith("ann: hi\n")


@pytest.mark.parametrize("url", ["ws://127.0.0.1:1", "ws://no.such.host.invalid"])
def test_a_url_where_nobody_answers_ends_with_4(url: str, bob: str) -> None:
    """At once, and with the reason."""
    for arguments in (("send", bob, "hi"), ("listen", "--as", bob)):
        done = quick(*arguments, "--url", url)
        assert done.returncode == 4
        assert url in done.stderr
        assert done.stderr.count("\n") == 1


def test_something_else_that_answers_is_no_node(bob: str, tmp_path: Path) -> None:
    """A web server on that port is named as what it is."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        running("send", bob, "hi", "--url", f"ws://127.0.0.1:{server.getsockname()[1]}") as sender,
    ):
        server.settimeout(DEADLINE)
        peer, _ = server.accept()
        with peer:
            peer.recv(65536)
            peer.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\nConnection: close\r\n\r\nnope\n")
        _, errors = sender.communicate(timeout=20)
    assert sender.returncode == 4
    assert "refuses: nope" in errors


def test_a_page_of_a_web_server_is_not_printed(bob: str) -> None:
    """The status is enough."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        running("send", bob, "hi", "--url", f"ws://127.0.0.1:{server.getsockname()[1]}") as sender,
    ):
        server.settimeout(DEADLINE)
        peer, _ = server.accept()
        with peer:
            peer.recv(65536)
            peer.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 13\r\nConnection: close\r\n\r\n<html>\n<body>")
        _, errors = sender.communicate(timeout=20)
    assert errors.endswith("refuses: status 404\n")


def test_a_login_that_the_node_refuses_ends_at_once(node: RunningNode, bob: str) -> None:
    """Nothing is tried again that would be refused again."""
    done = quick("listen", "--as", bob, "--name", "x" * 200, state=node.state)
    assert done.returncode == 2
    assert "userName" in done.stderr


def test_without_acks_messages_are_printed_once_and_stay(node: RunningNode, bob: str) -> None:
    """--no-ack only looks; the next session gets them, marked."""
    send(node, bob, "hi", "--as", "ann", "--wait", "accepted")
    assert [message["redelivered"] for message in receive(node, bob, 1, "--no-ack")] == [False]
    assert [message["redelivered"] for message in receive(node, bob, 1)] == [True]


def test_raw_prints_the_frames(node: RunningNode, bob: str) -> None:
    """As they are, one a line; acks are sent all the same."""
    send(node, bob, "hi", "--as", "ann", "--wait", "accepted")
    done = quick("listen", "--as", bob, "--raw", "--count", "1", state=node.state)
    frames = [json.loads(line) for line in done.stdout.splitlines()]
    assert [frame.get("type", frame.get("msg", {}).get("type")) for frame in frames] == [2, 16]
    assert json.loads(quick("outbox", "--to", bob, "--json", state=node.state).stdout) == []


def test_listen_and_send_go_on_over_a_restart_on_another_port(bob: str, tmp_path: Path) -> None:
    """They look for a live node again; nothing is printed twice, nothing is missing."""
    state = tmp_path / "state"
    with RunningNode(state) as first, running("listen", "--as", bob, "--ndjson", state=state) as listener:
        send(first, bob, "before", "--as", "ann")
        assert json.loads(read_line(listener))["text"] == "before"
        with running("send", bob, "-", "--as", "ann", "--ndjson", state=state, stdin=-1) as ann:
            assert ann.stdin is not None
            ann.stdin.write("one\n")
            ann.stdin.flush()
            assert json.loads(read_line(ann))["state"] == "delivered"
            assert json.loads(read_line(listener))["text"] == "one"
            first.terminate()
            ann.stdin.write("two\n")
            ann.stdin.flush()
            with RunningNode(state):
                assert json.loads(read_line(listener))["text"] == "two"
                assert json.loads(read_line(ann))["state"] == "delivered"
                ann.stdin.close()
                assert ann.wait(20) == 0
                code, rest, errors = finish(listener, signal.SIGINT)
    assert (code, rest) == (130, "")
    assert "Traceback" not in errors
    assert errors.count("Connecting again") == 1


def test_a_listener_that_is_replaced_does_not_fight(bob: str, tmp_path: Path) -> None:
    """With one session a user, the newer login stays, and the older ends with the reason."""
    with (
        RunningNode(tmp_path / "state", env={"YANCHAT_NODE_SESSIONS": "single"}) as node,
        running("listen", "--as", bob, state=node.state) as older,
    ):
        read_line(older, of_stderr=True)
        with running("listen", "--as", bob, state=node.state):
            assert older.wait(20) == 4
            assert older.stderr is not None
            assert "a newer login" in older.stderr.read()


def test_a_text_cannot_steer_the_terminal(node: RunningNode, bob: str) -> None:
    """Escapes and a turned direction of writing are shown, not obeyed."""
    send(node, bob, "\x1b[2Jboo\u202e\r!", "--as", "ann", "--wait", "accepted")
    done = quick("listen", "--as", bob, "--count", "1", state=node.state)
    assert done.stdout.endswith("ann: \\x1b[2Jboo\\u202e\\r!\n")


def test_messages_for_the_sender_are_left_for_his_client(node: RunningNode, bob: str) -> None:
    """`send --as ann` is no client that reads; it says that something waits."""
    send(node, "ann", "for you", "--as", bob, "--wait", "accepted")
    done = quick("send", "ann", "note to self", "--as", "ann", "--timeout", "1", state=node.state)
    assert done.returncode == 4
    assert "yanchat listen --as ann" in done.stderr


def test_a_node_that_hangs_keeps_nobody_longer_than_his_timeout(node: RunningNode, bob: str) -> None:
    """What has no receipt failed, and can be repeated without becoming two messages."""
    node.pause()
    try:
        done = quick("send", bob, "hi", "--as", "ann", "--timeout", "0.5", state=node.state)
    finally:
        node.resume()
    assert done.returncode == 4
    repeat = re.search(r"it is safe to repeat with (--as ann --request-id \w+)", done.stderr)
    assert repeat is not None
    assert send(node, bob, "hi", *repeat[1].split(), "--wait", "accepted")[0]["state"] == "accepted"
    assert len(receive(node, bob, 1)) == 1
