"""What is no WebSocket gets a plain HTTP answer that says why, and the connection is closed behind it."""

from __future__ import annotations

import socket
import time
from email.utils import parsedate_to_datetime

import pytest

from tests.gateway.conftest import Gate, Start
from tests.gateway.raw import Raw, frame, send, text


def ask(url: str, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """One request, and all that comes back until the node closes."""
    with Raw(url) as raw:
        raw.say(request)
        return raw.answer()


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("GET / HTTP/1.1", 404),
        ("GET /ws/ HTTP/1.1", 404),
        ("GET /metrics?x=/ws HTTP/1.0", 404),
        ("POST /message/send HTTP/1.1", 404),
        ("OPTIONS * HTTP/1.1", 404),
        ("GET //[/ws HTTP/1.1", 404),
        ("POST /ws?openid=ann HTTP/1.1", 405),
        ("DELETE /ws HTTP/1.1", 405),
        ("GET /ws?openid=ann HTTP/1.0", 400),
        ("GET /ws HTTP/1.1", 426),
        ("GET http://127.0.0.1/ws?openid=ann HTTP/1.1", 426),
    ],
)
def test_a_request_that_is_no_upgrade_is_answered_in_http(unharmed: Gate, line: str, status: int) -> None:
    """Path, method, version and the missing upgrade are told apart, in a sentence."""
    answer = ask(unharmed.url, f"{line}\r\nHost: 127.0.0.1\r\n\r\n".encode())
    assert answer.status == status
    assert answer.headers["connection"] == "close"
    assert int(answer.headers["content-length"]) == len(answer.body)
    assert abs(parsedate_to_datetime(answer.headers["date"]).timestamp() - time.time()) < 60
    assert answer.body.endswith(b".\n")
    assert answer.headers.get("allow") == ("GET" if status == 405 else None)
    if status == 426:
        assert answer.headers["upgrade"] == "websocket"
        assert answer.headers["sec-websocket-version"] == "13"


def test_a_head_gets_the_fields_without_a_body(unharmed: Gate) -> None:
    answer = ask(unharmed.url, b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.status == 404
    assert int(answer.headers["content-length"]) > 0
    assert answer.body == b""


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"Upgrade": None}, 426),
        ({"Upgrade": "h2c"}, 426),
        ({"Connection": "keep-alive"}, 426),
        ({"Sec-WebSocket-Version": "8"}, 426),
        ({"Sec-WebSocket-Version": None}, 426),
        ({"Sec-WebSocket-Key": None}, 400),
        ({"Sec-WebSocket-Key": "short"}, 400),
        ({"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="[:-2] + "!!"}, 400),
        ({"Sec-WebSocket-Protocol": "a b c,,"}, 400),
        ({"Content-Length": "5"}, 400),
        ({"Transfer-Encoding": "chunked"}, 400),
        ({"X-Broken": "a\x01b"}, 400),
        ({"X Broken": "blank in a name"}, 400),
        ({f"X-{n}": "many" for n in range(200)}, 400),
        ({"X-Long": "a" * 9000}, 431),
        ({"X-Long": "a" * 8000, "X-Too": "b" * 8000, "X-Much": "c" * 8000}, 431),
    ],
)
def test_an_upgrade_that_breaks_the_rules_is_refused(
    unharmed: Gate, changes: dict[str, str | None], status: int
) -> None:
    with Raw(unharmed.url) as raw:
        raw.say(raw.request("ann", headers=changes))
        answer = raw.answer()
    assert answer.status == status
    assert answer.body.endswith(b".\n")


@pytest.mark.parametrize(
    "request_",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # a client that expects TLS
        b"\r\n\r\n",
        b"get /ws HTTP/1.1\r\n\r\n",
        b"GET /ws\r\n\r\n",
        b"GET /ws HTTP/3\r\n\r\n",
        b"GET /ws?openid=ann HTTP/1.1\nHost: x\n\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
        b"GET  /ws HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x81\x85\x00\x00\x00\x00hello",
        b"GET /ws?openid=ann HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n",
        b"GET /ws?openid=ann HTTP/1.1\r\nno colon\r\n\r\n",
    ],
)
def test_what_is_no_request_at_all_is_answered_with_400(unharmed: Gate, request_: bytes) -> None:
    """At once, also when it has no end."""
    assert ask(unharmed.url, request_).status == 400


def test_a_request_without_an_end_is_answered_when_it_is_too_long(unharmed: Gate) -> None:
    assert ask(unharmed.url, b"GET /" + b"a" * 17000).status == 431


def test_a_body_of_any_length_does_not_hide_the_answer(unharmed: Gate) -> None:
    """The client is still sending when it is refused; what it is told must not be lost in a reset."""
    with Raw(unharmed.url) as raw:
        raw.say(b"POST / HTTP/1.1\r\nContent-Length: 3000000\r\n\r\n" + b"x" * 3_000_000)
        assert raw.answer().status == 404


@pytest.mark.parametrize(
    ("query", "part"),
    [
        ("", b"openid"),
        ("openid=", b"openid"),
        ("openid=a&openid=b", b"one openid"),
        ("openid=a%20b", b"openid"),
        ("openid=%ff", b"openid"),
        ("openid=" + "a" * 129, b"128"),
        ("openid=%E7%8E%8B", b"ASCII"),
        ("openid=a&userName=" + "b" * 129, b"userName"),
        ("openid=a&userName=a%0Ab", b"userName"),
        ("openid=a&userName=a%00b", b"userName"),
    ],
)
def test_a_bad_openid_or_name_is_refused_with_the_reason(unharmed: Gate, query: str, part: bytes) -> None:
    with Raw(unharmed.url) as raw:
        raw.say(raw.request(target=f"/ws?{query}"))
        answer = raw.answer()
    assert answer.status == 400
    assert part in answer.body


def test_every_character_that_an_openid_may_have_is_taken(gate: Gate) -> None:
    openid = "Az09-_.:@|=+"
    with Raw(gate.url) as raw:
        hello = raw.login(openid)
    assert hello["params"]["openid"] == openid
    assert hello["params"]["userName"] == openid


def test_a_name_may_be_written_in_any_script(gate: Gate) -> None:
    with Raw(gate.url) as raw:
        raw.say(raw.request(target="/ws?openid=bob&userName=%E7%8E%8B%20%22x%22"))
        assert raw.answer().status == 101
        assert raw.json()["params"]["userName"] == '王 "x"'


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [(None, None), ("yanchat.v1", "yanchat.v1"), ("chat, yanchat.v1", "yanchat.v1"), ("chat, superchat", None)],
)
def test_a_subprotocol_is_chosen_only_when_ours_is_offered(gate: Gate, offered: str | None, chosen: str | None) -> None:
    """A client that offers none, or only others, is let in."""
    with Raw(gate.url) as raw:
        raw.say(raw.request("ann", headers={"Sec-WebSocket-Protocol": offered}))
        answer = raw.answer()
        assert answer.status == 101
        assert answer.headers.get("sec-websocket-protocol") == chosen
        assert raw.json()["type"] == 6


def test_extensions_are_declined(gate: Gate) -> None:
    """No compression: a bomb costs memory."""
    with Raw(gate.url) as raw:
        raw.say(raw.request("ann", headers={"Sec-WebSocket-Extensions": "permessage-deflate"}))
        assert "sec-websocket-extensions" not in raw.answer().headers


def test_the_accept_key_is_the_rfcs(gate: Gate) -> None:
    with Raw(gate.url) as raw:
        raw.say(raw.request("ann"))
        assert raw.answer().headers["sec-websocket-accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455, 1.3


def test_a_request_may_come_byte_by_byte(gate: Gate) -> None:
    with Raw(gate.url) as raw:
        for byte in raw.request("ann"):
            raw.say(bytes((byte,)))
        assert raw.answer().status == 101
        assert raw.json()["type"] == 6


def test_frames_right_behind_the_request_are_answered_behind_the_hello(gate: Gate) -> None:
    """One packet: the upgrade, a ping, a message, half a message; then the other half."""
    whole = text(send("ann", "second"))
    with Raw(gate.url) as raw:
        raw.say(raw.request("pipeline") + frame(9, b"are you there") + text(send("ann", "first")) + whole[:20])
        assert raw.answer().status == 101
        assert raw.json()["type"] == 6
        assert raw.frame() == (10, b"are you there")
        assert raw.json(0)["params"]["message"] == "first"
        raw.say(whole[20:])
        assert raw.json(0)["params"]["message"] == "second"


def test_a_half_closed_request_is_answered(gate: Gate) -> None:
    """As `nc -N` sends it."""
    with Raw(gate.url) as raw:
        raw.say(b"GET / HTTP/1.1\r\n\r\n")
        raw.sock.shutdown(socket.SHUT_WR)
        assert raw.answer().status == 404


def test_origins_are_checked_where_the_header_is_there(start: Start) -> None:
    """A client that sends none is no browser and is let in."""
    gate = start("origins", allow="https://chat.example,http://localhost:3000")
    for origin, status in (
        ("https://chat.example", 101),
        ("http://localhost:3000", 101),
        (None, 101),
        ("https://evil.example", 403),
        ("null", 403),
        ("https://chat.example, https://evil.example", 403),
    ):
        with Raw(gate.url) as raw:
            raw.say(raw.request("ann", headers={"Origin": origin}))
            assert raw.answer().status == status, origin
    with Raw(gate.url) as raw:
        evil = raw.request("ann", headers={"Origin": "https://evil.example"})
        raw.say(evil.replace(b"Origin", b"Origin: https://chat.example\r\nOrigin"))
        assert raw.answer().status in {400, 403}
    with Raw(gate.url) as raw:
        twice = raw.request("ann", headers={"Origin": "https://chat.example"})
        raw.say(twice.replace(b"Origin", b"Origin: https://evil.example\r\nOrigin"))
        assert raw.answer().status in {400, 403}
