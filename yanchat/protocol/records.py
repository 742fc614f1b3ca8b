"""The records between nodes: what each kind says, and its form on the bus (headers and a JSON value).

Unknown kinds and keys are ignored, so that nodes of two versions live together. What happens on each kind is in
`node/delivery.py` and `node/adoption.py` (topic message) and `node/settlement.py` (topic ack).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec

from yanchat.errors import Refused
from yanchat.model import ACKED, GIVEN_UP, Envelope, Key, MessageId, Node, Notice, OpenId, Row, SessionId
from yanchat.names import is_node
from yanchat.protocol import frames
from yanchat.protocol.ids import is_message_id
from yanchat.protocol.rows import RowValue

Topic = Literal["message", "ack"]
Headers = Mapping[str, str]


class Push(msgspec.Struct, frozen=True, gc=False):
    """kind `message`: push this to these sessions. `cause` is first or retry."""

    origin: Node
    envelope: Envelope
    sessions: tuple[SessionId, ...]
    cause: str
    redelivered: bool


class Tell(msgspec.Struct, frozen=True, gc=False):
    """kind `notice`: tell these sessions of the sender."""

    origin: Node
    notice: Notice
    sessions: tuple[SessionId, ...]


class Pull(msgspec.Struct, frozen=True, gc=False):
    """kind `pull`: a session of this user was claimed, and you stand in his pending set: look."""

    origin: Node
    openid: OpenId
    session_id: SessionId


class Close(msgspec.Struct, frozen=True, gc=False):
    """kind `close`: close that session."""

    origin: Node
    session_id: SessionId
    code: int
    reason: str


class Adopt(msgspec.Struct, frozen=True, gc=False):
    """kind `adopt`: take over these rows of the node `dead`; `run` says whose answer to it counts.

    `earlier`: nodes of which it had adopted rows itself.
    """

    origin: Node
    run: str
    dead: Node
    rows: tuple[Row, ...]
    earlier: tuple[Node, ...] = ()


class Arrived(msgspec.Struct, frozen=True, gc=False):
    """kind `arrived`: handed to the sessions."""

    origin: Node
    keys: tuple[Key, ...]


class Acked(msgspec.Struct, frozen=True, gc=False):
    """kind `ack`: the recipient's client has them, and it is on disk here."""

    origin: Node
    keys: tuple[Key, ...]


class Told(msgspec.Struct, frozen=True, gc=False):
    """kind `told`: the sender's client has the notices of this rank."""

    origin: Node
    keys: tuple[Key, ...]
    rank: int


class Gone(msgspec.Struct, frozen=True, gc=False):
    """kind `gone`: these sessions are not here (any more): look again."""

    origin: Node
    sessions: tuple[tuple[OpenId, SessionId], ...]


class Adopted(msgspec.Struct, frozen=True, gc=False):
    """kind `adopted`: these rows of the node `dead` are on disk here; for the run alone, no living node heeds it."""

    origin: Node
    run: str
    dead: Node
    keys: tuple[Key, ...]


Record = Push | Tell | Pull | Close | Adopt | Arrived | Acked | Told | Gone | Adopted

KINDS: Final[dict[type, str]] = {
    Push: "message",
    Tell: "notice",
    Pull: "pull",
    Close: "close",
    Adopt: "adopt",
    Arrived: "arrived",
    Acked: "ack",
    Told: "told",
    Gone: "gone",
    Adopted: "adopted",
}
_MESSAGE_TOPIC = (Push, Tell, Pull, Close, Adopt)
_STATUS = {ACKED: 200, GIVEN_UP: 410}
_RANK = {status: rank for rank, status in _STATUS.items()}


def topic_of(record: Record) -> Topic:
    return "message" if isinstance(record, _MESSAGE_TOPIC) else "ack"


def key_of(record: Record) -> str | None:
    """The openid concerned, none for batches: records of one key keep their order."""
    if isinstance(record, Push):
        return record.envelope.recipient
    if isinstance(record, Tell):
        return record.notice.sender
    return record.openid if isinstance(record, Pull) else None


def encode(record: Record, incarnation: str) -> tuple[dict[str, str], bytes]:
    """Headers and value."""
    headers = {"kind": KINDS[type(record)], "origin": record.origin, "incarnation": incarnation}
    match record:
        case Push(envelope=envelope):
            headers |= {"sessions": ",".join(record.sessions), "cause": record.cause, **_trace(envelope.traceparent)}
            return headers, frames.push(envelope, record.sessions[0], b'""', record.redelivered)
        case Tell(notice=notice):
            headers |= {
                "sessions": ",".join(record.sessions),
                "order": f"{notice.order:x}",
                **_trace(notice.traceparent),
            }
            return headers, frames.notice(notice, record.sessions[0], b"")
        case Pull():
            value: dict[str, Any] = {"openid": record.openid, "sessionId": record.session_id}
        case Close():
            value = {"sessionId": record.session_id, "code": record.code, "reason": record.reason}
        case Adopt():
            value = {"run": record.run, "from": record.dead, "rows": [RowValue.of(row) for row in record.rows]}
            value |= {"earlier": record.earlier} if record.earlier else {}
        case Adopted():
            value = {"run": record.run, "from": record.dead, "keys": record.keys}
        case Arrived() | Acked():
            value = {"keys": record.keys}
        case Told():
            value = {"keys": record.keys, "status": _STATUS[record.rank]}
        case Gone():
            value = {"sessions": record.sessions}
    return headers, msgspec.json.encode(value)


def _trace(traceparent: str) -> dict[str, str]:
    return {"traceparent": traceparent} if traceparent else {}


def decode(headers: Headers, value: bytes) -> Record | None:
    """The record, or None for what this version does not know or cannot read (the caller counts those)."""
    try:
        record = _decode(headers, value)
        return record if record is None or all(map(is_message_id, _message_ids(record))) else None
    except (KeyError, ValueError, msgspec.DecodeError, Refused):
        return None


def _message_ids(record: Record) -> list[MessageId]:
    match record:
        case Push(envelope=envelope):
            return [envelope.message_id]
        case Tell(notice=notice):
            return [notice.message_id]
        case Adopt(rows=rows):
            return [row.envelope.message_id for row in rows]
        case Arrived(keys=keys) | Acked(keys=keys) | Told(keys=keys) | Adopted(keys=keys):
            return [message_id for message_id, _ in keys]
    return []


def _node(text: str) -> Node:
    """Who is answered, or read; ValueError for what cannot be a node."""
    if not is_node(text):
        raise ValueError("no node")
    return Node(text)


def _decode(headers: Headers, value: bytes) -> Record | None:
    origin = _node(headers["origin"])
    sessions = tuple(map(SessionId, headers.get("sessions", "").split(",")))
    traceparent = frames.usable_traceparent(headers.get("traceparent", ""))
    match headers["kind"]:
        case "message":
            frame = _push(value)
            return Push(origin, frame.envelope(traceparent), sessions, headers["cause"], frame.redelivered)
        case "notice":
            return Tell(origin, _notice(value).notice(int(headers["order"], 16), traceparent), sessions)
        case "pull":
            pull = _pull(value)
            return Pull(origin, pull.openid, pull.sessionId)
        case "close":
            close = _close(value)
            return Close(origin, close.sessionId, close.code, close.reason)
        case "adopt":
            adopt = _adopt(value)
            rows = tuple(row.row() for row in adopt.rows)
            return Adopt(origin, adopt.run, _node(adopt.dead), rows, tuple(map(_node, adopt.earlier)))
        case "adopted":
            adopted = _adopted(value)
            return Adopted(origin, adopted.run, adopted.dead, adopted.keys)
        case "arrived":
            return Arrived(origin, _keys(value).keys)
        case "ack":
            return Acked(origin, _keys(value).keys)
        case "told":
            told = _keys(value)
            return Told(origin, told.keys, _RANK[told.status])
        case "gone":
            return Gone(origin, _gone(value).sessions)
    return None


class _User(msgspec.Struct):
    openid: OpenId
    userName: str = ""


class _PushParams(msgspec.Struct):
    toUser: _User
    fromUser: _User
    message: str
    fileType: str


class _PushMsg(msgspec.Struct):
    params: _PushParams


class _PushFrame(msgspec.Struct):
    activeTime: int
    messageId: MessageId
    msg: _PushMsg
    requestId: str
    order: str
    redelivered: bool = False

    def envelope(self, traceparent: str) -> Envelope:
        params = self.msg.params
        return Envelope(
            order=int(self.order, 16),
            message_id=self.messageId,
            recipient=params.toUser.openid,
            sender=params.fromUser.openid,
            sender_name=params.fromUser.userName,
            request_id=self.requestId,
            text=params.message,
            file_type=int(params.fileType),
            accepted_at=self.activeTime,
            traceparent=traceparent,
        )


class _NoticeParams(msgspec.Struct):
    toUser: OpenId


class _NoticeMsg(msgspec.Struct):
    status: int
    params: _NoticeParams


class _NoticeFrame(msgspec.Struct):
    activeTime: int
    messageId: MessageId
    msg: _NoticeMsg
    requestId: str
    to: tuple[OpenId]

    def notice(self, order: int, traceparent: str) -> Notice:
        recipient, rank = self.msg.params.toUser, _RANK[self.msg.status]
        sender, at = self.to[0], self.activeTime
        return Notice(order, self.messageId, recipient, sender, self.requestId, rank, at, traceparent)


class _PullValue(msgspec.Struct):
    openid: OpenId
    sessionId: SessionId


class _CloseValue(msgspec.Struct):
    sessionId: SessionId
    code: int
    reason: str = ""


class _AdoptValue(msgspec.Struct):
    run: str
    dead: Node = msgspec.field(name="from")
    rows: tuple[RowValue, ...]
    earlier: tuple[Node, ...] = ()


class _AdoptedValue(msgspec.Struct):
    run: str
    dead: Node = msgspec.field(name="from")
    keys: tuple[tuple[MessageId, OpenId], ...]


class _KeysValue(msgspec.Struct):
    keys: tuple[tuple[MessageId, OpenId], ...]
    status: int = 200


class _GoneValue(msgspec.Struct):
    sessions: tuple[tuple[OpenId, SessionId], ...]


_push = msgspec.json.Decoder(_PushFrame).decode
_notice = msgspec.json.Decoder(_NoticeFrame).decode
_pull = msgspec.json.Decoder(_PullValue).decode
_close = msgspec.json.Decoder(_CloseValue).decode
_adopt = msgspec.json.Decoder(_AdoptValue).decode
_adopted = msgspec.json.Decoder(_AdoptedValue).decode
_keys = msgspec.json.Decoder(_KeysValue).decode
_gone = msgspec.json.Decoder(_GoneValue).decode
