"""The records between nodes: what is encoded is decoded the same, and what is unknown is ignored."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yanchat.model import ACKED, GIVEN_UP, OPEN, Envelope, MessageId, Node, Notice, OpenId, Row, SessionId
from yanchat.protocol import records

users = st.sampled_from(["ann", "bob", "a:b@c|d"]).map(OpenId)
ids = st.integers(0, (1 << 128) - 1).map(lambda value: MessageId(f"{value:032x}"))
keys = st.lists(st.tuples(ids, users), max_size=4).map(tuple)
sessions = st.lists(st.sampled_from(["n:1_ann_20240102102737", "s-2"]).map(SessionId), min_size=1, max_size=3).map(
    tuple
)
nodes = st.sampled_from([Node("127.0.0.1:8084"), Node("[::1]:80")])
times = st.integers(0, 1 << 47)
traces = st.sampled_from(["", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"])
envelopes = st.builds(
    Envelope,
    order=st.integers(0, (1 << 63) - 1),
    message_id=ids,
    recipient=users,
    sender=users,
    sender_name=st.text(max_size=9),
    request_id=st.text(max_size=9),
    text=st.text(max_size=30),
    file_type=st.integers(-(1 << 63), (1 << 63) - 1),
    accepted_at=times,
    traceparent=traces,
)
notices = st.builds(
    Notice,
    order=st.integers(0, (1 << 63) - 1),
    message_id=ids,
    recipient=users,
    sender=users,
    request_id=st.text(max_size=9),
    rank=st.sampled_from([ACKED, GIVEN_UP]),
    at=times,
    traceparent=traces,
)
ranks = st.sampled_from([OPEN, GIVEN_UP, ACKED])
rows = st.builds(
    Row,
    envelope=envelopes,
    rank=ranks,
    told=ranks,
    attempts=st.integers(0, 99),
    sent_at=times,
    arrived_at=times,
    settled_at=times,
    told_at=times,
)
any_record = st.one_of(
    st.builds(records.Push, nodes, envelopes, sessions, st.sampled_from(["first", "retry"]), st.booleans()),
    st.builds(records.Tell, nodes, notices, sessions),
    st.builds(records.Pull, nodes, users, st.just(SessionId("s"))),
    st.builds(records.Close, nodes, st.just(SessionId("s")), st.integers(1000, 4999), st.text(max_size=9)),
    st.builds(records.Adopt, nodes, st.text(max_size=9), nodes, st.lists(rows, max_size=3).map(tuple)),
    st.builds(records.Adopted, nodes, st.text(max_size=9), nodes, keys),
    st.builds(records.Arrived, nodes, keys),
    st.builds(records.Acked, nodes, keys),
    st.builds(records.Told, nodes, keys, st.sampled_from([ACKED, GIVEN_UP])),
    st.builds(records.Gone, nodes, st.lists(st.tuples(users, st.just(SessionId("s")))).map(tuple)),
)


@given(any_record)
def test_a_record_survives_the_bus(record: records.Record) -> None:
    assert records.decode(*records.encode(record, "i")) == record


@given(st.dictionaries(st.sampled_from(["kind", "origin", "sessions", "cause"]), st.text(max_size=9)), st.binary())
def test_what_is_unknown_or_broken_is_ignored(headers: dict[str, str], value: bytes) -> None:
    assert records.decode(headers, value) is None or headers.get("kind") in records.KINDS.values()


def test_a_broken_message_id_never_reaches_the_store() -> None:
    headers = {"kind": "ack", "origin": "n:1"}
    assert records.decode(headers, b'{"keys": [["not-hex", "bob"]]}') is None
    assert records.decode(headers, b'{"keys": [["%s", "bob"]]}' % (b"0" * 32)) is not None


def test_a_row_is_carried_whole_or_not_at_all() -> None:
    """As the protocol page shows it; with an id or a status that is none, the record is unreadable."""
    headers = {"kind": "adopt", "origin": "n:1"}
    value = (
        b'{"run":"r","from":"n:1","rows":[{"order":"018cc7b2a3700000","messageId":"%s","to":"bob","from":"ann",'
        b'"requestId":"r-1","message":"hello","activeTime":9,"status":%s,"told":410}]}'
    )
    record = records.decode(headers, value % (b"c" * 32, b"200"))
    assert isinstance(record, records.Adopt)
    (row,) = record.rows
    assert (row.envelope.key, row.rank, row.told) == (("c" * 32, "bob"), ACKED, GIVEN_UP)
    assert records.decode(headers, value % (b"not-hex", b"200")) is None
    assert records.decode(headers, value % (b"c" * 32, b"201")) is None


@pytest.mark.parametrize("field", ["activeTime", "attempts", "sentAt", "arrivedAt", "settledAt", "toldAt", "fileType"])
@pytest.mark.parametrize("number", [1 << 63, 1 << 70, -(1 << 63) - 1])
def test_a_number_that_no_message_table_holds_makes_no_row(field: str, number: int) -> None:
    row = {
        "order": "1",
        "messageId": "c" * 32,
        "to": "bob",
        "from": "ann",
        "requestId": "",
        "message": "",
        "activeTime": 1,
    }
    headers = {"kind": "adopt", "origin": "n:1"}
    value = {"run": "r", "from": "n:1", "rows": [row]}
    assert records.decode(headers, json.dumps(value).encode()) is not None
    assert records.decode(headers, json.dumps(value | {"rows": [row | {field: number}]}).encode()) is None
    assert records.decode(headers, json.dumps(value | {"rows": [row | {"order": "8" + "0" * 15}]}).encode()) is None


@pytest.mark.parametrize("node", ["", "x" * 300, "x" * 300 + ":1", "n1", "n1:x"])
def test_who_cannot_be_a_node_is_not_answered(node: str) -> None:
    """No topic could have the name that would be asked for, again and again."""
    adopt = json.dumps({"run": "r", "from": node, "rows": []}).encode()
    assert records.decode({"kind": "adopt", "origin": "n:1"}, adopt) is None
    adopt = json.dumps({"run": "r", "from": "n:1", "rows": [], "earlier": ["n:2", node]}).encode()
    assert records.decode({"kind": "adopt", "origin": "n:1"}, adopt) is None
    keys = json.dumps({"keys": []}).encode()
    assert records.decode({"kind": "ack", "origin": node}, keys) is None
    assert records.decode({"kind": "ack", "origin": "n:1"}, keys) is not None


@given(any_record)
def test_the_trace_of_a_message_is_a_header_of_its_record(record: records.Record) -> None:
    trace = getattr(getattr(record, "envelope", getattr(record, "notice", None)), "traceparent", "")
    headers, _ = records.encode(record, "i")
    assert headers.get("traceparent", "") == trace


def test_a_traceparent_that_is_none_does_not_leave_the_record() -> None:
    """It would stand in a client's frame as it is."""
    envelope = Envelope(1, MessageId("c" * 32), OpenId("bob"), OpenId("ann"), "", "r", "hello", 0, 9)
    headers, value = records.encode(records.Push(Node("n:1"), envelope, (SessionId("s"),), "first", False), "i")
    record = records.decode({**headers, "traceparent": '00-"'}, value)
    assert isinstance(record, records.Push)
    assert record.envelope.traceparent == ""
