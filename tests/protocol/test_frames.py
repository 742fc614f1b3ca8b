"""The wire: the seed's frames are read and written exactly, and any bytes have a defined answer."""

from __future__ import annotations

import json
from random import Random
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.protocol.seed import SEED, holds
from yanchat.errors import Refused
from yanchat.model import ACKED, GIVEN_UP, Envelope, MessageId, Notice, OpenId, SessionId
from yanchat.protocol import client_frames, frames, ids
from yanchat.protocol.session import Conversation, Refusal
from yanchat.protocol.shapes import Ack, Send

ANN, BOB = OpenId("1879878-NKCNO-NKNK"), OpenId("56C02DF0516B4B079ABFCEC08169E577")


def envelope(text: str = "20240102", name: str = "rose") -> Envelope:
    return Envelope(
        order=1704162492912 << 16,
        message_id=MessageId("c41c45611af44a36a79a93d5193aa116"),
        recipient=BOB,
        sender=ANN,
        sender_name=name,
        request_id="fec21e30-9260-486f-b78e-04aa3b3d7b5f",
        text=text,
        file_type=0,
        accepted_at=1704162492912,
    )


def without(frame: dict, *ours: str) -> dict:
    return {key: value for key, value in frame.items() if key not in ours}


def test_the_seeds_send_is_read() -> None:
    assert frames.decode(json.dumps(SEED["type1_send"])) == Send((BOB,), "20240102", 0, None)


def test_the_seeds_ack_is_read() -> None:
    assert frames.decode(json.dumps(SEED["type15_ack"])) == Ack("16516")


def test_the_receipt_is_the_seeds_with_our_keys_added() -> None:
    date = frames.Dates(ZoneInfo("Asia/Shanghai"))(1704162492912)
    frame = json.loads(frames.receipt(date, "20240102", MessageId("0" * 32), None))
    assert frame["params"].pop("messageId") == "0" * 32
    assert frame == SEED["type0_receipt"]
    assert list(frame) == list(SEED["type0_receipt"])


def test_the_push_is_the_seeds_with_our_keys_added() -> None:
    session = SessionId(SEED["type2_push"]["sessionId"])
    frame = json.loads(frames.push(envelope(), session, b'"123"', redelivered=False))
    assert frame.pop("order") == ids.order_text(1704162492912 << 16)
    assert frame == SEED["type2_push"]
    holds(frame, SEED["type2_push"])


def test_the_ack_receipt_is_the_seeds() -> None:
    frame = json.loads(frames.ack_receipt(b"Tue Jan 02 21:59:05 CST 2024", "16516"))
    assert frame == SEED["type16_ack_receipt"]


def test_the_notice_is_the_seeds_with_our_params_added() -> None:
    seed = SEED["type17_notice"]
    told = Notice(1, MessageId(seed["messageId"]), ANN, BOB, seed["requestId"], ACKED, seed["activeTime"])
    frame = json.loads(frames.notice(told, SessionId(seed["sessionId"]), b"d"))
    assert frame["msg"].pop("params") == {"msgid": seed["messageId"], "toUser": ANN, "date": "d"}
    assert frame == seed


def test_a_message_given_up_is_told_with_410_and_a_reason() -> None:
    told = Notice(1, MessageId("0" * 32), BOB, ANN, "r", GIVEN_UP, 5)
    msg = json.loads(frames.notice(told, SessionId("s"), b"d"))["msg"]
    assert msg["status"] == 410
    assert msg["params"]["error"]


def test_the_id_of_a_request_is_the_documented_one() -> None:
    assert ids.message_id_from_request(ANN, "r-1", 0, "20240102") == "0ecae948079381d3be1b59bf3e4d614b"


@given(st.integers(1, (1 << 62) - 1), st.integers())
def test_a_message_id_carries_its_order(order: int, seed: int) -> None:
    assert ids.order_from_message_id(ids.message_id_from_order(order, Random(seed))) == order


@given(st.lists(st.tuples(st.integers(0, 1 << 44), st.integers(1, 100))))
def test_orders_only_ascend_whatever_the_clock_does(steps: list[tuple[int, int]]) -> None:
    orders, last = ids.Orders(7), 7
    for now, count in steps:
        first = orders.take(now, count)
        assert first > last
        last = first + count - 1


@given(st.lists(st.tuples(st.integers(0, 4000), st.sampled_from(["ann", "bob"]))))
def test_a_session_id_is_never_given_twice(logins: list[tuple[int, str]]) -> None:
    given_ids = ids.SessionIds("n:1", 2)
    got = [given_ids.take(OpenId(user), now) for now, user in logins]
    assert len(set(got)) == len(got)


@given(st.binary(max_size=300) | st.text().map(str.encode))
def test_any_bytes_have_an_answer(data: bytes) -> None:
    assert Conversation(0, 0).receive(data, 0.0) is not None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
PARAMS = st.fixed_dictionaries(
    {},
    optional={
        "toMessageId": JSON | st.lists(st.text(max_size=3)),
        "message": JSON,
        "fileType": JSON,
        "msgid": JSON,
    },
)


@given(
    st.fixed_dictionaries({}, optional={"type": JSON | st.integers(0, 20), "params": PARAMS | JSON, "requestId": JSON})
)
def test_any_json_has_an_answer(frame: dict) -> None:
    event = Conversation(0, 0).receive(json.dumps(frame), 0.0)
    if isinstance(event, Send):
        assert all(frames.OPENID.fullmatch(user) for user in event.recipients)
        assert isinstance(event.text, str)


@pytest.mark.parametrize("kind", [3, 4, 5, 7, 8, 9, 10, 13, 14, 18, 0, 2, 16, 17, 99])
def test_reserved_and_unknown_types_are_answered_with_400(kind: int) -> None:
    event = Conversation(0, 0).receive(json.dumps({"type": kind, "params": {}}), 0.0)
    assert isinstance(event, Refusal)
    assert event.refused.status == 400
    assert not event.hang_up


@pytest.mark.parametrize(
    "data", [b"[" * 10_000, b'{"x":' + b"[" * 10_000, b'{"type":1,"params":{"message":"\\ud800"}}']
)
def test_deep_or_broken_json_is_answered_with_400(data: bytes) -> None:
    with pytest.raises(Refused) as caught:
        frames.decode(data)
    assert caught.value.status == 400


@given(st.lists(st.booleans(), max_size=30))
def test_three_bad_frames_in_a_row_end_the_conversation(goods: list[bool]) -> None:
    conversation, bad = Conversation(0, 0), 0
    for good in goods:
        event = conversation.receive(b'{"type":11}' if good else b"{", 0.0)
        bad = 0 if good else bad + 1
        assert isinstance(event, Refusal) != good
        assert getattr(event, "hang_up", False) == (bad >= 3)


@given(st.lists(st.floats(0, 5), max_size=60))
def test_no_client_sends_faster_than_its_rate_for_long(pauses: list[float]) -> None:
    conversation, now, passed = Conversation(2, 0), 100.0, 0
    frame = json.dumps(SEED["type1_send"])
    for pause in pauses:
        now += pause
        event = conversation.receive(frame, now)
        if isinstance(event, Refusal):
            assert event.refused.status == 429
            assert event.refused.retry_after
            assert event.text == "20240102"
        else:
            passed += 1
    assert passed <= 4 + 2 * sum(pauses) + 1


@pytest.mark.parametrize(
    ("given_type", "carried"), [(0, "0"), (7, "7"), ("7", "7"), (-3, "-3"), (1 << 62, str(1 << 62))]
)
def test_a_file_type_is_carried_as_the_push_has_it(given_type: object, carried: str) -> None:
    sent = frames.decode(json.dumps({"type": 1, "params": {"toMessageId": "b", "message": "", "fileType": given_type}}))
    assert isinstance(sent, Send)
    assert str(sent.file_type) == carried


def test_recipients_count_once_and_are_at_most_a_hundred() -> None:
    def send(users: list[str]) -> object:
        return frames.decode(json.dumps({"type": 1, "params": {"toMessageId": users, "message": "x"}}))

    assert send(["b", "a", "b"]).recipients == ("b", "a")
    for users in ([], [f"u{n}" for n in range(101)], ["b b"], [""], ["x" * 129]):
        with pytest.raises(Refused):
            send(users)


@given(st.text(), st.text(max_size=20))
def test_any_text_and_name_make_a_valid_push(text: str, name: str) -> None:
    frame = json.loads(frames.push(envelope(text, name), SessionId("s"), frames.json_text(name), redelivered=True))
    assert frame["msg"]["params"]["message"] == text
    assert frame["msg"]["params"]["fromUser"]["userName"] == name
    assert frame["redelivered"] is True


TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_a_traced_message_carries_its_trace_to_the_push_and_to_the_notice() -> None:
    sent = frames.decode(client_frames.send((BOB,), "hello", traceparent=TRACE))
    assert isinstance(sent, Send)
    assert sent.traceparent == TRACE
    traced = replace(envelope(), traceparent=sent.traceparent)
    told = Notice(1, MessageId("0" * 32), BOB, ANN, "r", ACKED, 1, TRACE)
    for frame in (
        frames.push(traced, SessionId("s"), b'""', redelivered=True),
        frames.notice(told, SessionId("s"), b""),
    ):
        assert json.loads(frame)["traceparent"] == TRACE
        assert client_frames.decode(frame).traceparent == TRACE


@pytest.mark.parametrize(
    "given_trace",
    [
        "",
        "00",
        TRACE[:-1],
        TRACE + "-00",
        TRACE + "\n",
        TRACE.upper(),
        "ff" + TRACE[2:],
        TRACE.replace("0af7651916cd43dd8448eb211c80319c", "0" * 32),
        TRACE.replace("b7ad6b7169203331", "0" * 16),
        TRACE[:-3] + '"01',
        7,
        [TRACE],
        {"a": 1},
        None,
    ],
)
def test_a_traceparent_that_is_none_is_left_out_and_the_message_is_sent_all_the_same(given_trace: object) -> None:
    frame = {"type": 1, "params": {"toMessageId": "b", "message": "x"}, "traceparent": given_trace}
    assert frames.decode(json.dumps(frame)) == Send((OpenId("b"),), "x", 0, None, "")
