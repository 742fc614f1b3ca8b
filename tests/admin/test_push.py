"""POST /message/send: what a back end pushes is stored, delivered and told as if a client had sent it."""

from __future__ import annotations

import json
import socket
import struct
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from tests.admin.asking import admin, raw
from tests.node.cluster import open_cluster
from tests.running import RunningNode, wait_until
from yanchat.admin.app import build_app
from yanchat.admin.control import Control
from yanchat.client import Client, connect
from yanchat.config import LimitSettings
from yanchat.protocol.client_frames import Message, Receipt, Settled

ONE: dict[str, Any] = {"to": ["bob"], "message": "hello", "requestId": "r-1"}


def push(node: RunningNode, order: dict[str, Any]) -> dict[str, Any]:
    """A push that is accepted."""
    with admin(node) as http:
        response = http.post("/message/send", json=order)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def outbox(node: RunningNode, state: str) -> list[dict[str, Any]]:
    with admin(node) as http:
        rows: list[dict[str, Any]] = http.get("/outbox", params={"state": state}).json()["rows"]
    return rows


async def next_message(client: Client) -> Message:
    with trio.fail_after(20):
        while True:
            frame = await client.receive()
            if isinstance(frame, Message):
                return frame


async def test_a_pushed_message_is_delivered(tmp_path: Path) -> None:
    """Its recipient gets it as a message from `system`, under the id that was answered, and acks it."""
    with RunningNode(tmp_path / "s") as node:
        async with connect(node.url, "bob") as bob:
            answer = push(node, {"to": ["bob"], "message": "hello", "fileType": 3, "requestId": "r-1"})
            message = await next_message(bob)
            assert (message.sender, message.text, message.file_type) == ("system", "hello", 3)
            assert answer["messages"] == [{"to": "bob", "messageId": message.message_id, "repeated": False}]
            assert answer["messageId"] == message.message_id
            await bob.ack(message)
            wait_until(lambda: len(outbox(node, "delivered")) == 1, "it is delivered")
        assert outbox(node, "untold") == []


async def test_the_trace_of_a_push_goes_with_the_message(tmp_path: Path) -> None:
    """Its header `traceparent` reaches the recipient; one that is none loses no message."""
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with RunningNode(tmp_path / "s") as node, admin(node) as http:
        async with connect(node.url, "bob") as bob:
            for header, arrives in ((trace, trace), ("nonsense", "")):
                order = {"to": ["bob"], "message": header}
                assert http.post("/message/send", json=order, headers={"traceparent": header}).status_code == 200
                message = await next_message(bob)
                assert (message.text, message.traceparent) == (header, arrives)


@pytest.mark.parametrize("takes", [0.0, 60.0])
async def test_while_the_registry_is_away_nobody_knows_who_is_absent(takes: float) -> None:
    """Whether it refuses or is slow: the message is stored, which is answered soon, with null for the absent."""
    async with open_cluster("n1") as cluster:
        node = cluster.nodes["n1"]
        app = build_app(
            node.work, node.store, node.store, Control(lambda: None, lambda: None, dict, int, LimitSettings)
        )
        node.registry.up, node.registry.takes = False, takes
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://node", timeout=20) as http:
            response = await http.post("/message/send", json={"to": ["bob"], "message": "hello"})
        assert (response.status_code, response.json()["absent"]) == (200, None)
        assert len(await node.store.all_rows()) == 1


async def test_who_has_no_session_on_any_node_is_absent(tmp_path: Path) -> None:
    """A user on another node is there; one on none gets it at his next login."""
    with RunningNode(tmp_path / "s") as one, RunningNode(tmp_path / "s") as two:
        async with connect(two.url, "bob") as bob, connect(one.url, "ann"):
            answer = push(one, {"to": ["ann", "bob", "cid"], "message": "to all"})
            assert answer["absent"] == ["cid"]
            assert [one["to"] for one in answer["messages"]] == ["ann", "bob", "cid"]
            assert (await next_message(bob)).text == "to all"
        async with connect(two.url, "cid") as cid:
            assert (await next_message(cid)).text == "to all"


def test_a_push_that_is_repeated_is_the_same_message(tmp_path: Path) -> None:
    """Also after kill -9, and on another node; another text is another message."""
    with RunningNode(tmp_path / "s") as node, RunningNode(tmp_path / "s") as other:
        first = push(node, ONE)
        assert first["messages"][0]["repeated"] is False
        assert push(node, ONE)["messages"] == [{"to": "bob", "messageId": first["messageId"], "repeated": True}]
        node.restart()
        assert push(node, ONE)["messages"] == [{"to": "bob", "messageId": first["messageId"], "repeated": True}]
        assert push(other, ONE)["messageId"] == first["messageId"]
        assert push(node, {**ONE, "message": "other"})["messageId"] != first["messageId"]
        more = push(node, {**ONE, "to": ["bob", "cid"]})
        assert [one["repeated"] for one in more["messages"]] == [True, False]
        assert len(outbox(node, "pending")) == 3


def test_a_file_type_may_be_written_as_any_integer(one_node: RunningNode) -> None:
    """It is the same message: JSON does not tell 3.0 from 3, and the wire takes a string."""
    ids = {push(one_node, {**ONE, "to": "eve", "fileType": kind})["messageId"] for kind in (3, 3.0, "3")}
    assert len(ids) == 1


def test_pushes_without_a_request_id_are_each_a_message_of_their_own(tmp_path: Path) -> None:
    with RunningNode(tmp_path / "s") as node:
        order = {"to": "bob", "message": "hello"}
        assert push(node, order)["messageId"] != push(node, order)["messageId"]


async def test_a_push_in_a_users_name_is_the_message_that_the_user_sends(tmp_path: Path) -> None:
    """The id follows from sender, request id, file type and text, whichever way the message comes."""
    with RunningNode(tmp_path / "s") as node:
        answer = push(node, {**ONE, "from": "ann"})
        async with connect(node.url, "ann") as ann:
            await ann.send(("bob",), "hello", request_id="r-1")
            receipt = await ann.receive()
        assert isinstance(receipt, Receipt)
        assert receipt.message_id == answer["messageId"]
        assert len(outbox(node, "pending")) == 1


@pytest.mark.parametrize("notices", [True, False])
async def test_the_sender_is_told_if_that_is_asked_for(tmp_path: Path, notices: bool) -> None:
    """With `notices` the user in whose name it was pushed gets type 17; without, only what he sent himself is told."""
    with RunningNode(tmp_path / "s") as node:
        async with connect(node.url, "ann") as ann, connect(node.url, "bob") as bob:
            pushed = push(node, {**ONE, "from": "ann", "notices": notices})["messageId"]
            await bob.ack(await next_message(bob))
            wait_until(lambda: len(outbox(node, "delivered")) == 1, "it is acked")
            await ann.send(("bob",), "of my own")
            await bob.ack(await next_message(bob))
            told = []
            with trio.fail_after(20):
                while len(told) < 1 + notices:
                    frame = await ann.receive()
                    if isinstance(frame, Settled):
                        told.append(frame.message_id)
            assert (pushed in told) is notices


async def test_what_nobody_wants_to_be_told_of_stays_so_after_a_crash(tmp_path: Path) -> None:
    """That is on disk with the message: no notice is owed when it is acked after kill -9."""
    with RunningNode(tmp_path / "s") as node:
        push(node, ONE)
        node.restart()
        async with connect(node.url, "bob") as bob:
            await bob.ack(await next_message(bob))
            wait_until(lambda: len(outbox(node, "delivered")) == 1, "it is acked")
        assert outbox(node, "untold") == []


@pytest.mark.parametrize(("point", "stored"), [("before-commit", False), ("after-commit", True)])
async def test_a_push_that_is_killed_before_its_answer_may_come_again(tmp_path: Path, point: str, stored: bool) -> None:
    """kill -9 on either side of the commit: nobody has heard 200, and the same request makes one message of it."""
    with RunningNode(tmp_path / "s") as node:
        node.terminate()
        node.start(YANCHAT_FAILPOINT=point)
        with admin(node) as http, pytest.raises(httpx.TransportError):
            http.post("/message/send", json=ONE)
        node.wait()
        node.start()
        assert push(node, ONE)["messages"][0]["repeated"] is stored
        assert len(outbox(node, "pending")) == 1


@pytest.mark.parametrize(
    ("order", "status", "says"),
    [
        ({"to": [], "message": ""}, 400, "1 to 100 recipients"),
        ({"to": [f"u{n}" for n in range(101)], "message": ""}, 400, "not 101"),
        ({"to": ["a b"], "message": ""}, 400, "to must be 1 to 128 characters"),
        ({"to": ["bob"], "message": "", "from": ""}, 400, "from must be 1 to 128 characters"),
        ({"to": ["bob"], "message": "", "from": "ä"}, 400, "from must be 1 to 128 characters"),
        ({"to": ["bob"], "message": "", "requestId": ""}, 400, "requestId must be 1 to 64 characters"),
        ({"to": ["bob"], "message": "", "requestId": "x" * 65}, 400, "requestId must be 1 to 64 characters"),
        ({"to": ["bob"], "message": "", "requestId": "a\0b"}, 400, "none of them NUL"),
        ({"to": ["bob"], "message": "", "fileType": "x"}, 400, "fileType must be an integer"),
        ({"to": ["bob"], "message": "", "fileType": "9999999999999999999"}, 400, "fileType must fit into 64 bits"),
        ({"to": ["bob"], "message": "", "fileType": 1 << 63}, 400, "fileType must fit into 64 bits"),
        ({"to": ["bob"], "message": "", "fileType": 1.5}, 400, "fileType must be an integer"),
        ({"to": ["bob"], "message": "", "fileType": True}, 400, "$.fileType"),
        ({"to": ["bob"], "message": None}, 400, "$.message"),
        ({"to": ["bob"]}, 400, "missing required field `message`"),
        ({"to": ["bob"], "message": "", "tpyo": 1}, 400, "unknown field `tpyo`"),
        ([], 400, "Expected `object`"),
        ({"to": ["bob"], "message": "x" * 70_000}, 413, "longer than limits.message_size"),
        ({"to": ["bob"], "message": "x" * 300_000}, 413, "The body is longer"),
    ],
)
def test_an_order_that_is_none_is_refused_with_a_sentence(
    one_node: RunningNode, order: object, status: int, says: str
) -> None:
    with admin(one_node) as http:
        response = http.post("/message/send", json=order)
    assert response.status_code == status
    assert says in response.json()["error"]


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b'{"to": ["bob"], "message": "\xff"}', b"[" * 100_000])
def test_bytes_that_are_no_json_are_refused(one_node: RunningNode, body: bytes) -> None:
    with admin(one_node) as http:
        response = http.post("/message/send", content=body)
    assert response.status_code == 400
    assert response.json()["error"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (rb"\ud800", "half a character"),
        (rb"a \udc00 b", "half a character"),
        (b"\xed\xa0\x80", "not UTF-8"),
        (b"\xff", "not UTF-8"),
    ],
)
def test_a_text_that_is_no_unicode_is_refused_for_that(one_node: RunningNode, text: bytes, says: str) -> None:
    with admin(one_node) as http:
        response = http.post("/message/send", content=b'{"to": "bob", "message": "%b"}' % text)
    assert response.status_code == 400
    assert says in response.json()["error"]


@pytest.fixture(scope="module")
def one_node(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with RunningNode(tmp_path_factory.mktemp("s") / "s") as node:
        yield node


def test_what_cannot_be_stored_is_refused_and_may_come_again(tmp_path: Path) -> None:
    """503 with Retry-After, and nothing of it is there; the same request is accepted when there is room."""
    with RunningNode(tmp_path / "s") as node:
        node.terminate()
        node.start(YANCHAT_LIMITS_DISK_RESERVE="1000000GiB")
        with admin(node) as http:
            response = http.post("/message/send", json=ONE)
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) > 0
        assert "disk" in response.json()["error"]
        assert outbox(node, "pending") == []
        node.restart()
        assert push(node, ONE)["messages"][0]["repeated"] is False


def test_too_many_waiting_messages_are_refused(tmp_path: Path) -> None:
    """429 with Retry-After when a recipient has as many as may wait; others still get theirs, all or nobody."""
    with RunningNode(tmp_path / "s", env={"YANCHAT_LIMITS_PENDING_PER_PAIR": "2"}) as node, admin(node) as http:
        statuses = [http.post("/message/send", json={"to": "bob", "message": str(n)}).status_code for n in range(3)]
        assert statuses == [200, 200, 429]
        response = http.post("/message/send", json={"to": ["cid", "bob"], "message": "both"})
        assert response.status_code == 429
        assert "retry-after" in response.headers
        assert "bob" in response.json()["error"]
        assert len(outbox(node, "pending")) == 2
        assert http.post("/message/send", json={"to": "cid", "message": "him"}).status_code == 200
        assert 'yanchat_messages_refused_total{status="429"} 2.0' in http.get("/metrics").text


BODY = json.dumps({"to": ["bob"], "message": "hello", "requestId": "gone"}).encode()
HEAD = b"POST /message/send HTTP/1.1\r\nHost: node\r\nContent-Length: %d\r\n\r\n" % len(BODY)


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("sent", [HEAD[:20], HEAD, HEAD + BODY[:10], HEAD + BODY])
def test_a_client_that_goes_away_midway_harms_nobody(one_node: RunningNode, sent: bytes, reset: bool) -> None:
    """Whatever it had said: the next one is served, and its own request may come again."""
    with raw(one_node) as connection:
        connection.sendall(sent)
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    answer = push(one_node, json.loads(BODY))
    assert len([row for row in outbox(one_node, "pending") if row["message_id"] == answer["messageId"]]) == 1
    assert one_node.process is not None
    assert one_node.process.poll() is None
    assert "failed" not in one_node.log.read_text()


def test_a_hundred_at_the_same_time_are_each_stored_once(one_node: RunningNode) -> None:
    """Among them ten of the same request."""
    bodies = [json.dumps({"to": ["dan"], "message": "m", "requestId": f"q{n // 10}"}).encode() for n in range(100)]
    connections = []
    for body in bodies:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(20)
        connection.connect(str(one_node.directory / "admin.sock"))
        connection.sendall(
            b"POST /message/send HTTP/1.1\r\nHost: n\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        connections.append(connection)
    for connection in connections:
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
        connection.close()
    assert len([row for row in outbox(one_node, "pending") if row["to"] == "dan"]) == 10


async def test_a_node_that_stops_sends_pushes_elsewhere(tmp_path: Path) -> None:
    """503 with Retry-After from the moment it drains; nothing of it is stored."""
    with RunningNode(tmp_path / "s", env={"YANCHAT_NODE_DRAIN": "5s"}) as node:
        async with connect(node.url, "bob"), connect(node.url, "cid"):
            with admin(node) as http:
                assert http.post("/drain").status_code == 202
                answers = []
                end = time.monotonic() + 4
                while time.monotonic() < end and 503 not in answers:
                    answers.append(http.post("/message/send", json={**ONE, "requestId": str(len(answers))}).status_code)
            assert answers[-1] == 503
        node.wait()
