"""A connection without a socket: held against a second implementation, for any frames cut into any pieces."""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import OPEN, State
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from tests.gateway.raw import BINARY, CLOSE, CONT, PING, PONG, TEXT, Raw, frame, header
from yanchat.config import LimitSettings
from yanchat.gateway.admission import Admission
from yanchat.gateway.auth import trusting
from yanchat.gateway.connection import CLOSING, GONE, LEAVING, PARTED, SHAKING_HANDS, TALKING, Connection
from yanchat.gateway.handshake import Handshake
from yanchat.model import Envelope, MessageId, Node, OpenId, SessionId, SessionRecord
from yanchat.node.hub import Outlet, Session
from yanchat.protocol.session import Conversation

LIMITS = LimitSettings(message_size=300, outgoing_buffer=10_000)
REQUEST = Raw.request(None, "ann")  # type: ignore[arg-type]


class Listener:
    """Stands where `node/reception.py` does: takes logins, and notes what sessions say."""

    def __init__(self, pauses: list[bool] | None = None) -> None:
        self.heard_texts: list[bytes] = []
        self.ends = 0
        self._pauses = pauses or []

    def enter(self, openid: OpenId, user_name: str, remote: str, outlet: Outlet) -> Session:
        record = SessionRecord(SessionId("s"), openid, Node("n:1"), "i", user_name, 0, remote)
        return Session(record, outlet, Conversation(0, 0), self)

    def heard(self, session: Session, data: bytes) -> bool:
        self.heard_texts.append(data)
        return not (self._pauses and self._pauses.pop())

    def answered(self, session: Session) -> None:
        raise AssertionError("nothing was asked")

    def ended(self, session: Session) -> None:
        self.ends += 1


def connected(listener: Listener) -> Connection:
    connection = Connection("127.0.0.1", LIMITS, Handshake(Admission(LIMITS, (), trusting, 1000), listener))
    connection.receive(REQUEST)
    assert connection.phase == TALKING
    connection.sent(b"")
    connection.resume()
    connection.receive(b"")
    return connection


@dataclass
class Told:
    """What an implementation did with the bytes until it sent its closing frame."""

    texts: list[bytes] = field(default_factory=list)
    pongs: list[bytes] = field(default_factory=list)
    code: int | None = None


def said(told: Told, out: bytes) -> None:
    """Add what a server has sent."""
    at = 0
    while at < len(out) and told.code is None:
        opcode, length = out[at] & 0x0F, out[at + 1]
        assert length < 126
        payload = out[at + 2 : at + 2 + length]
        at += 2 + length
        if opcode == PONG:
            told.pongs.append(payload)
        else:
            assert opcode == CLOSE
            told.code = struct.unpack("!H", payload[:2])[0] if payload else 1005


def by_ours(pieces: list[bytes], pauses: list[bool]) -> Told:
    """Our connection; while its session is paused, pieces wait, as they do in the kernel."""
    listener, told = Listener(list(pauses)), Told()
    connection = connected(listener)
    for piece in pieces:
        while connection.paused:
            connection.resume()
            connection.receive(b"")
        connection.receive(piece)
    while connection.paused:
        connection.resume()
        connection.receive(b"")
    said(told, b"".join(connection.out))
    told.texts = listener.heard_texts
    assert listener.ends == (connection.phase != TALKING)
    assert (told.code is None) == (connection.phase == TALKING)
    return told


def by_the_core(data: bytes) -> Told:
    """The sans-IO core of `websockets` alone, with the few rules that it leaves to its user."""
    protocol, told = ServerProtocol(state=OPEN, max_size=(None, LIMITS.message_size)), Told()
    parts: bytearray | None = None
    protocol.receive_data(data)
    events = protocol.events_received()
    for event in events:
        assert isinstance(event, Frame)
        if event.opcode is Opcode.BINARY:
            told.code = 1003
        elif event.opcode in {Opcode.TEXT, Opcode.CONT}:
            parts = (parts or bytearray()) + event.data
            if len(parts) > LIMITS.message_size:  # its own check counts control frames in between as well
                told.code = 1009
            elif event.fin:
                try:
                    bytes(parts).decode()
                    told.texts.append(bytes(parts))
                except UnicodeDecodeError:
                    told.code = 1007
                parts = None
        elif event.opcode is Opcode.PING:
            told.pongs.append(bytes(event.data))
        if told.code is not None:  # we have closed: what follows is not looked at
            return told
    if protocol.close_sent is not None:
        told.code = protocol.close_sent.code
    return told


lengths = st.sampled_from([125, 126, 127, 299, 300, 301])
payloads = st.binary(max_size=12) | st.text(max_size=12).map(str.encode) | lengths.map(lambda n: b"x" * n)
masks = st.binary(min_size=4, max_size=4)


@st.composite
def fragments(draw: st.DrawFn) -> bytes:
    """A message in pieces, control frames between them, sometimes without its beginning or its end."""
    whole = draw(payloads)
    cuts = sorted(draw(st.lists(st.integers(0, len(whole)), min_size=1, max_size=3)))
    parts = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    out = []
    for n, part in enumerate(parts):
        out.append(frame(CONT if n else TEXT, part, fin=n == len(parts) - 1, mask=draw(masks)))
        if draw(st.booleans()):
            out.append(frame(draw(st.sampled_from([PING, PONG])), b"between"))
    return b"".join(draw(st.sampled_from([out, out, out, out[1:], out[:-1]])))


closes = st.builds(
    lambda code, reason: frame(CLOSE, struct.pack("!H", code) + reason),
    st.sampled_from([1000, 1001, 1005, 1006, 999, 2999, 3000, 4999, 5000]),
    st.text(max_size=5).map(str.encode) | st.binary(max_size=5),
)
controls = st.builds(frame, st.sampled_from([PING, PONG]), st.binary(max_size=125), mask=masks)
odd = st.one_of(
    st.builds(frame, st.integers(0, 15), payloads, fin=st.booleans(), rsv=st.sampled_from([0, 0, 0, 1, 2, 4])),
    st.builds(frame, st.sampled_from([TEXT, PING]), payloads, mask=st.just(b"")),
    st.builds(header, st.sampled_from([TEXT, CONT, BINARY]), st.sampled_from([301, 65535, 65536, 1 << 63])),
    st.builds(frame, st.just(CLOSE), st.binary(max_size=3)),
    st.binary(max_size=20),
)
texts = st.builds(frame, st.just(TEXT), payloads, mask=masks)
conversations = st.lists(st.one_of(texts, texts, controls, fragments(), closes, odd), max_size=12).map(b"".join)


@given(conversations, st.integers(0, 2**32), st.sampled_from([1, 2, 3, 30, 1000]), st.lists(st.booleans(), max_size=8))
@example(frame(PING, b"a") + frame(TEXT, b"b"), 0, 1, [])
@example(frame(TEXT, b"x" * 300) + frame(TEXT, b"x" * 301), 0, 7, [True, True])
@example(frame(PING, b"x" * 126) + frame(TEXT, b"x"), 0, 1000, [])
@example(frame(TEXT, b"x" * 200, fin=False) + frame(CONT, b"x" * 101), 0, 1000, [])
@example(frame(TEXT, b"x" * 200, fin=False) + frame(PING, b"p" * 125) + frame(CONT, b"x" * 100), 0, 1000, [])
def test_any_frames_in_any_pieces_mean_what_they_mean_to_the_core(
    data: bytes, seed: int, most: int, pauses: list[bool]
) -> None:
    """The same texts, the same pongs, and the same end, however the bytes come and whenever the session rests."""
    rng, at, pieces = random.Random(seed), 0, []
    while at < len(data):
        step = rng.randint(1, most)
        pieces.append(data[at : at + step])
        at += step
    ours, core = by_ours(pieces, pauses), by_the_core(data)
    if (ours.code is None) != (core.code is None):  # one of them waits for the rest of a header, or for a payload
        rest = bytes(LIMITS.message_size + 20)
        ours, core = by_ours([*pieces, rest], pauses), by_the_core(data + rest)
    assert (ours.texts, ours.pongs) == (core.texts, core.pongs)
    assert ours.code == core.code or (ours.code, core.code) in {
        (1002, 1009),  # a control frame too long even for a message
        *(
            (code, 1002) for code in (1000, 1001, 1005, 3000, 4999)
        ),  # closing in the middle of a message is no breach to us
    }


@given(st.binary(max_size=400), st.lists(st.integers(1, 40), max_size=20), st.booleans())
def test_any_bytes_before_the_upgrade_have_the_same_answer_in_any_pieces(
    noise: bytes, steps: list[int], begun: bool
) -> None:
    """An HTTP answer, or waiting for more; never a session, never an exception."""
    data = (REQUEST[: len(noise)] if begun else b"") + noise
    whole, cut = (Connection("h", LIMITS, Handshake(Admission(LIMITS, (), trusting, 9), Listener())) for _ in range(2))
    whole.receive(data)
    rest = data
    for step in steps:
        cut.receive(rest[:step])
        rest = rest[step:]
    cut.receive(rest)
    for connection in (whole, cut):
        answer = b"".join(connection.out)
        assert (connection.phase, answer) == (SHAKING_HANDS, b"") or (
            connection.phase == LEAVING and answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 101"))
        )
    assert whole.phase == cut.phase
    assert b"".join(whole.out)[:12] == b"".join(cut.out)[:12]


@given(st.lists(st.sampled_from([0, 1, 124, 125, 126, 127, 5000, 65535, 65536, 70000]), max_size=6))
def test_what_is_sent_is_read_by_another_implementation(sizes: list[int]) -> None:
    """Texts of all lengths, and pings."""
    connection = connected(Listener())
    client = ClientProtocol(parse_uri("ws://x/"), state=OPEN)
    for size in sizes:
        connection.send(b"x" * size)
        connection.ping(b"p" * (size % 126))
    client.receive_data(b"".join(connection.out))
    got = [(event.opcode, len(event.data)) for event in client.events_received() if isinstance(event, Frame)]
    assert got == [pair for size in sizes for pair in ((Opcode.TEXT, size), (Opcode.PING, size % 126))]
    assert client.state is State.OPEN


@pytest.mark.parametrize(
    ("code", "reason", "sent"),
    [
        (4002, "kicked", (4002, "kicked")),
        (1012, "é" * 100, (1012, "é" * 61)),
        (1005, "may not be sent", (1000, "")),
        (99, "is no code", (1000, "")),
        (-1, "is no code", (1000, "")),
    ],
)
def test_any_code_and_reason_make_a_closing_frame(code: int, reason: str, sent: tuple[int, str]) -> None:
    """They may come from another node: a reason is cut between two letters, a code that may not be sent is 1000."""
    listener = Listener()
    connection = connected(listener)
    connection.close(code, reason)
    client = ClientProtocol(parse_uri("ws://x/"), state=OPEN)
    client.receive_data(b"".join(connection.out))
    assert client.close_rcvd is not None
    assert (client.close_rcvd.code, client.close_rcvd.reason) == sent
    assert listener.ends == 1


def test_nothing_is_sent_after_the_closing_frame() -> None:
    connection = connected(Listener())
    connection.close(1000, "")
    out = list(connection.out)
    connection.send(b"late")
    connection.ping(b"late")
    connection.close(1001, "late")
    assert connection.out == out
    assert connection.phase == CLOSING
    connection.receive(frame(CLOSE, struct.pack("!H", 1000)))
    assert connection.out == out
    assert connection.phase == PARTED
    connection.end()
    connection.send(b"late")
    connection.resume()
    assert (connection.phase, connection.out) == (GONE, ())


def test_a_session_that_is_closed_while_it_rests_still_hears_the_closing_frame() -> None:
    """What came before is thrown away: half a frame of it must not be taken for the beginning of what follows."""
    listener = Listener([True])
    connection = connected(listener)
    connection.receive(frame(TEXT, b"1") + frame(TEXT, b"2") + frame(TEXT, b"3")[:3])
    assert connection.paused
    connection.close(4002, "kicked")
    assert connection.backlog
    connection.receive(b"")
    connection.receive(frame(TEXT, b"3")[3:] + frame(CLOSE, struct.pack("!H", 4002)))
    assert connection.phase == PARTED
    assert listener.heard_texts == [b"1"]


def test_the_outgoing_buffer_tells_when_it_is_half_full_and_when_not() -> None:
    connection = connected(Listener())
    connection.send(b"x" * 4000)
    assert not connection.congested
    assert connection.reading
    connection.send(b"x" * 1000)
    assert connection.congested
    assert not connection.reading
    connection.sent(b"y" * 5000)
    assert connection.congested
    connection.sent(b"y" * 4999)
    assert not connection.congested
    assert connection.reading


def test_what_waits_for_a_slow_client_waits_once() -> None:
    """A retry of what is still waiting adds nothing: the queue is as long as the window, however long it takes."""
    connection = connected(Listener())
    session = connection.session
    assert session is not None
    envelope = Envelope(1, MessageId("0" * 32), OpenId("ann"), OpenId("bob"), "bob", "r", "hello", 0, 1)
    connection.send(b"x" * 6000)
    for cause in ("first", "first", *["retry"] * 50):
        session.push(envelope, Node("n:1"), cause, redelivered=cause == "retry")
    assert len(connection.out) == 1
    connection.sent(b"")
    assert len(connection.out) == 1
    assert b'"message":"hello"' in connection.out[0]
    session.push(envelope, Node("n:1"), "retry", redelivered=True)
    assert len(connection.out) == 2
