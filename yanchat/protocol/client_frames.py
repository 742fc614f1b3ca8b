"""The wire frames as a client sees them: what it sends, encoded; what it gets, decoded. Nothing here keeps state."""

from __future__ import annotations

from typing import Final

import msgspec

from yanchat.model import MessageId, OpenId


class Hello(msgspec.Struct, frozen=True):
    """Type 6."""

    openid: str
    session_id: str
    node: str
    pending: bool


class Receipt(msgspec.Struct, frozen=True):
    """Type 0: accepted when `status` is 200, else `error` says why, and `retry_after` when to try again."""

    status: int
    message_id: str
    request_id: str
    error: str
    retry_after: int


class Message(msgspec.Struct, frozen=True):
    """Type 2: a message for us; `sent_at` is when the node accepted it, in milliseconds since the epoch."""

    message_id: MessageId
    sender: OpenId
    sender_name: str
    recipient: OpenId
    text: str
    file_type: int
    sent_at: int
    order: str
    redelivered: bool
    traceparent: str = ""
    """The trace that its sender sent it in, if any."""


class AckReceipt(msgspec.Struct, frozen=True):
    """Type 16."""

    status: int
    message_id: str


class Settled(msgspec.Struct, frozen=True):
    """Type 17: what became of our message to one recipient; 200 delivered, 410 expired."""

    status: int
    message_id: str
    request_id: str
    recipient: str
    error: str
    traceparent: str = ""


class HeartbeatAnswer(msgspec.Struct, frozen=True):
    """Type 12."""


class Other(msgspec.Struct, frozen=True):
    """A frame of another type, as it came."""

    raw: str


Frame = Hello | Receipt | Message | AckReceipt | Settled | HeartbeatAnswer | Other
HEARTBEAT: Final = '{"type":11}'


def send(
    recipients: tuple[str, ...], text: str, file_type: int = 0, request_id: str | None = None, traceparent: str = ""
) -> str:
    """Type 1."""
    to = recipients[0] if len(recipients) == 1 else list(recipients)
    frame: dict[str, object] = {"type": 1, "params": {"toMessageId": to, "message": text, "fileType": file_type}}
    if request_id is not None:
        frame["requestId"] = request_id
    if traceparent:
        frame["traceparent"] = traceparent
    return msgspec.json.encode(frame).decode()


def ack(message: Message) -> str:
    """Type 15."""
    params = {
        "from": "client",
        "msgid": message.message_id,
        "fromUser": message.sender,
        "toUser": message.recipient,
    }
    return msgspec.json.encode({"type": 15, "params": params}).decode()


class _User(msgspec.Struct):
    openid: OpenId = OpenId("")
    userName: str = ""


class _Params(msgspec.Struct):
    """The params of all types in one: each type fills its own."""

    openid: str = ""
    sessionId: str = ""
    node: str = ""
    pending: bool = False
    messageId: str = ""
    requestId: str = ""
    error: str = ""
    retryAfter: int = 0
    message: str = ""
    fileType: str = "0"
    toUser: _User | str = ""
    fromUser: _User = msgspec.field(default_factory=_User)


class _Inner(msgspec.Struct):
    type: int
    status: int = 200
    params: _Params = msgspec.field(default_factory=_Params)


class _Any(msgspec.Struct):
    type: int = -1
    status: int = 200
    params: _Params = msgspec.field(default_factory=_Params)
    msg: _Inner | None = None
    activeTime: int = 0
    messageId: MessageId = MessageId("")
    requestId: str = ""
    order: str = ""
    redelivered: bool = False
    traceparent: str = ""


_decode = msgspec.json.Decoder(_Any).decode


def decode(data: str | bytes) -> Frame:
    """Read a frame of a node; what is not known is Other."""
    try:
        frame = _decode(data)
    except msgspec.DecodeError:
        return Other(data if isinstance(data, str) else data.decode(errors="replace"))
    params = frame.params
    if frame.msg is not None and frame.msg.type == 2:
        return _message(frame, frame.msg.params)
    if frame.msg is not None and frame.msg.type == 17:
        inner = frame.msg
        to = inner.params.toUser if isinstance(inner.params.toUser, str) else inner.params.toUser.openid
        error = inner.params.error
        return Settled(inner.status, frame.messageId, frame.requestId, to, error, frame.traceparent)
    if frame.type == 6:
        return Hello(params.openid, params.sessionId, params.node, params.pending)
    if frame.type == 0:
        return Receipt(frame.status, params.messageId, params.requestId, params.error, params.retryAfter)
    if frame.type == 16:
        return AckReceipt(frame.status, params.message)
    if frame.type == 12:
        return HeartbeatAnswer()
    return Other(data if isinstance(data, str) else data.decode(errors="replace"))


def _message(frame: _Any, params: _Params) -> Message:
    to, sender = params.toUser, params.fromUser
    return Message(
        frame.messageId,
        sender.openid,
        sender.userName,
        to.openid if isinstance(to, _User) else OpenId(to),
        params.message,
        int(params.fileType),
        frame.activeTime,
        frame.order,
        frame.redelivered,
        frame.traceparent,
    )
