"""The WebSocket protocol at its edges: fragments, control frames, closing, and everything that breaks a rule of it."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator

import pytest

from tests.gateway.conftest import Gate
from tests.gateway.raw import (
    BINARY,
    CLOSE,
    CONT,
    PING,
    PONG,
    TEXT,
    Closed,
    Raw,
    close,
    frame,
    header,
    send,
    talker,
    text,
)

HEARTBEAT = b'{"type":11}'


@pytest.fixture
def client(unharmed: Gate) -> Iterator[Raw]:
    """One that is logged in."""
    with talker(unharmed.url) as raw:
        yield raw


def pieces(data: bytes, count: int) -> list[bytes]:
    """A message in this many fragments."""
    size = max(1, -(-len(data) // count))
    parts = [data[at : at + size] for at in range(0, len(data), size)]
    return [frame(CONT if n else TEXT, part, fin=n == len(parts) - 1) for n, part in enumerate(parts)]


# -- messages ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("count", [2, 3, 11])
def test_a_message_may_come_in_fragments(client: Raw, count: int) -> None:
    client.say(b"".join(pieces(HEARTBEAT, count)) + text(HEARTBEAT))
    assert client.json()["type"] == 12
    assert client.json()["type"] == 12


def test_fragments_may_be_empty_and_pings_and_pongs_may_stand_between_them(client: Raw) -> None:
    first, last = pieces(HEARTBEAT, 2)
    client.say(frame(TEXT, b"", fin=False) + frame(CONT, b"", fin=False) + frame(PING, b"1"))
    assert client.frame() == (PONG, b"1")
    client.say(frame(CONT, HEARTBEAT, fin=False) + frame(PONG, b"unasked") + frame(PING, b"2") + frame(CONT))
    assert client.frame() == (PONG, b"2")
    assert client.json()["type"] == 12
    client.say(first + frame(PING, b"3") + last)
    assert client.frame() == (PONG, b"3")
    assert client.json()["type"] == 12


def test_frames_may_be_cut_anywhere(client: Raw) -> None:
    """One byte in each packet, also through headers, masks and control frames."""
    for byte in b"".join(pieces(HEARTBEAT, 3)) + frame(PING, b"p") + text(json.dumps(send("bob", "x" * 130))):
        client.say(bytes((byte,)))
    assert client.json()["type"] == 12
    assert client.frame() == (PONG, b"p")
    assert client.json(0)["status"] == 200


def test_a_long_header_for_a_short_message_is_understood(client: Raw) -> None:
    mask = b"abcd"
    data = bytes(byte ^ mask[n % 4] for n, byte in enumerate(HEARTBEAT))
    client.say(struct.pack("!BBQ", 0x81, 0xFF, len(data)) + mask + data)
    assert client.json()["type"] == 12
    client.say(struct.pack("!BBH", 0x81, 0xFE, len(data)) + mask + data)
    assert client.json()["type"] == 12


def test_text_in_any_script_comes_back_as_it_was_also_when_a_letter_is_cut(client: Raw) -> None:
    words = "héllo 王 \U0001f600 \u0000 \u2028"
    data = json.dumps(send("bob", words), ensure_ascii=False).encode()
    for whole in (frame(TEXT, data), b"".join(pieces(data, len(data)))):
        client.say(whole)
        assert client.json(0)["params"]["message"] == words


@pytest.mark.parametrize("size", [125, 126, 127, 65535, 65536])
def test_the_limit_is_65536_bytes_of_one_message(client: Raw, size: int) -> None:
    """What counts is the payload: the JSON as it is sent, headers and masks not; with all its fragments."""
    frame_ = json.dumps(send("bob", ""))
    data = json.dumps(send("bob", "x" * (size - len(frame_)))).encode()
    assert len(data) == size
    client.say(frame(TEXT, data, mask=bytes(4)))
    assert client.json(0)["status"] == 200
    client.say(b"".join(pieces(data, 3)))
    assert client.json(0)["status"] == 200


@pytest.mark.parametrize("cut", [1, 2, 1000])
def test_one_byte_more_is_too_large(client: Raw, cut: int) -> None:
    client.say(b"".join(pieces(b"x" * 65537, cut)))
    assert client.ends().code == 1009


def test_a_frame_that_only_claims_to_be_large_is_too_large_at_once(client: Raw) -> None:
    """1 GB, of which not a byte is sent; so is one of 2^63 and more."""
    client.say(header(TEXT, 1 << 30))
    assert client.ends().code == 1009


@pytest.mark.parametrize("length", [1 << 31, 1 << 62, (1 << 64) - 1])
def test_no_length_is_too_large_to_be_refused(client: Raw, length: int) -> None:
    client.say(header(BINARY, length) + b"abc")
    assert client.ends().code in {1002, 1009}


def test_who_is_still_sending_a_large_message_is_told_all_the_same(client: Raw) -> None:
    """Closing a socket that holds unread bytes resets it, and the closing frame would be lost."""
    client.say(frame(TEXT, b"x" * 3_000_000, mask=bytes(4)))
    assert client.ends().code == 1009


# -- control frames ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("payload", [b"", b"x", b"y" * 125])
def test_a_ping_is_answered_with_its_payload(client: Raw, payload: bytes) -> None:
    client.say(frame(PING, payload))
    assert client.frame() == (PONG, payload)


def test_a_pong_that_nobody_asked_for_is_ignored(client: Raw) -> None:
    client.say(frame(PONG) + frame(PONG, b"told-1") + frame(PONG, b"z" * 125) + text(HEARTBEAT))
    assert client.json()["type"] == 12


def test_many_pings_are_answered_in_their_order(client: Raw) -> None:
    client.say(b"".join(frame(PING, b"%d" % n) for n in range(500)) + text(HEARTBEAT))
    assert [client.frame() for _ in range(500)] == [(PONG, b"%d" % n) for n in range(500)]
    assert client.json()["type"] == 12


# -- closing -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("code", [None, 1000, 1001, 1003, 1012, 3000, 4999])
def test_a_closing_frame_is_answered_with_its_code_and_the_node_closes(client: Raw, code: int | None) -> None:
    client.say(close(code, "bye" if code else ""))
    opcode, payload = client.frame()
    assert opcode == CLOSE
    assert payload == (struct.pack("!H", code) + b"bye" if code else b"")
    assert not client.more()


@pytest.mark.parametrize("payload", [b"\x03", b"\x03\xe7", b"\x03\xed", b"\x03\xee", b"\x0b\xb7", b"\x13\x88", b"\0\0"])
def test_a_closing_frame_with_a_code_that_may_not_be_sent_is_a_breach(client: Raw, payload: bytes) -> None:
    client.say(frame(CLOSE, payload))
    assert client.ends().code == 1002


def test_a_closing_reason_that_is_not_utf8_is_a_breach(client: Raw) -> None:
    client.say(frame(CLOSE, struct.pack("!H", 1000) + b"\xff"))
    assert client.ends().code in {1002, 1007}


def test_a_closing_frame_in_the_middle_of_fragments_ends_it(client: Raw) -> None:
    client.say(frame(TEXT, b"{", fin=False) + close(1000))
    assert client.ends().code in {1000, 1002}


def test_what_follows_a_closing_frame_is_not_read(unharmed: Gate) -> None:
    """A message behind it is nobody's: no receipt, and it is not stored."""
    with talker(unharmed.url, "closer") as sender, talker(unharmed.url, "close-bob") as bob:
        sender.say(close(1000) + text(send("close-bob", "too late")) + frame(PING, b"x") + b"\xff" * 100)
        assert sender.frame()[0] == CLOSE
        assert not sender.more()
        with talker(unharmed.url, "closer") as again:
            again.say(text(send("close-bob", "in time")))
            assert again.json(0)["status"] == 200
        assert bob.json(2)["msg"]["params"]["message"] == "in time"


def test_while_the_node_closes_pings_are_answered_and_messages_are_not(client: Raw) -> None:
    """After three frames that are none: the node has closed, the client still talks, in fragments and pings."""
    client.say(text("x") * 3)
    with pytest.raises(Closed) as closed:
        while True:
            client.json()
    assert closed.value.code == 1008
    client.say(frame(TEXT, b'{"type"', fin=False) + frame(PING, b"1") + text(HEARTBEAT)[:3])
    assert client.frame() == (PONG, b"1")
    client.say(text(HEARTBEAT)[3:] + frame(BINARY, b"x") + frame(CONT, b":11}") + frame(PING, b"2") + close(1008))
    assert client.frame() == (PONG, b"2")
    assert not client.more()


def test_a_close_that_crosses_ours_ends_it(client: Raw) -> None:
    client.say(text("x") * 3 + frame(PING, b"1") + close(1000))
    with pytest.raises(Closed):
        while True:
            client.json()
    assert not client.more()


def test_when_the_client_ends_without_a_closing_frame_so_does_the_node(client: Raw) -> None:
    client.sock.shutdown(1)
    assert not client.more()


# -- breaches ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("bytes_", "code"),
    [
        (frame(TEXT, HEARTBEAT, mask=b""), 1002),
        (frame(PING, b"x", mask=b""), 1002),
        (frame(CLOSE, b"", mask=b""), 1002),
        (frame(TEXT, HEARTBEAT, rsv=1), 1002),
        (frame(TEXT, HEARTBEAT, rsv=2), 1002),
        (frame(TEXT, HEARTBEAT, rsv=4), 1002),
        (frame(PING, b"x", rsv=4), 1002),
        (frame(TEXT, b"", rsv=7), 1002),
        *((frame(opcode, b"x"), 1002) for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)),
        (frame(CONT, b"x"), 1002),
        (frame(CONT, b"x", fin=False), 1002),
        (frame(TEXT, b"a", fin=False) + frame(TEXT, b"b"), 1002),
        (frame(TEXT, b"a", fin=False) + frame(BINARY, b"b"), 1002),
        (frame(PING, b"x", fin=False), 1002),
        (frame(PONG, b"x", fin=False), 1002),
        (frame(CLOSE, b"", fin=False), 1002),
        (frame(PING, b"x" * 126), 1002),
        (frame(PONG, b"x" * 126), 1002),
        (frame(PING, b"x" * 66000), 1002),
        (frame(CLOSE, b"\x03\xe8" + b"x" * 124), 1002),
        (frame(BINARY, HEARTBEAT), 1003),
        (frame(BINARY, b""), 1003),
        (frame(BINARY, b"a", fin=False), 1003),
        (frame(TEXT, b"\xff"), 1007),
        (frame(TEXT, b'{"type":11,"x":"\xc3"}'), 1007),
        (frame(TEXT, b"\xed\xa0\x80"), 1007),  # a surrogate
        (frame(TEXT, b"\xf4\x90\x80\x80"), 1007),  # beyond U+10FFFF
        (frame(TEXT, b"\xc0\xaf"), 1007),  # longer than need be
        (frame(TEXT, b"\xe7\x8e", fin=False) + frame(CONT, b"\x8b\xff"), 1007),
        (frame(TEXT, b"\xe7", fin=False) + frame(PING) + frame(CONT, b"\x8e"), 1007),
    ],
)
def test_a_breach_ends_the_connection_with_its_code(client: Raw, bytes_: bytes, code: int) -> None:
    client.say(bytes_)
    assert client.ends().code == code


@pytest.mark.parametrize("cut", [1, 2, 5])
def test_a_breach_is_seen_however_its_bytes_come(unharmed: Gate, cut: int) -> None:
    for bytes_, code in (
        (text(HEARTBEAT) + frame(BINARY, b"x"), 1003),
        (frame(TEXT, b"\xff"), 1007),
        (frame(3, b"x"), 1002),
    ):
        with talker(unharmed.url) as client:
            for at in range(0, len(bytes_), cut):
                client.say(bytes_[at : at + cut])
            assert client.ends().code == code


# -- what is no frame of ours ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b'"type"',
        b"{}",
        b'{"type":"1"}',
        b'{"type":1}',
        b'{"type":1,"params":null}',
        b'{"type":18,"params":{}}',
        b'{"type":1e999}',
        b"{" * 10_000,
        b'{"type":11,"deep":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        b'{"type":1,"params":{"toMessageId":' + b'{"a":' * 10_000 + b"1" + b"}" * 10_000 + b"}}",
        b'{"type":11}{"type":11}',
        b'{"type":11,"x":"\\ud800"}',
        b'{"type":' + b"9" * 5000 + b"}",
        b"\xef\xbb\xbf" + HEARTBEAT,
    ],
)
def test_what_is_no_frame_of_ours_has_one_answer_and_the_connection_stays(client: Raw, data: bytes) -> None:
    client.say(frame(TEXT, data, mask=bytes(4)) + text(HEARTBEAT))
    answers = [client.json(), client.json()]
    assert any(answer["type"] == 12 for answer in answers)
    assert {(answer["type"], answer["status"]) for answer in answers} <= {(0, 400), (12, 200)}


def test_three_bad_frames_in_a_row_end_it_and_a_good_one_forgives(client: Raw) -> None:
    client.say((text("x") * 2 + text(HEARTBEAT)) * 3)
    for _ in range(9):
        assert client.json()["status"] in {200, 400}
    client.say(text("x") * 3 + text(HEARTBEAT))
    assert [client.json(0)["status"] for _ in range(3)] == [400, 400, 400]
    ended = client.ends()
    assert ended.code == 1008
    assert "three" in ended.reason
