"""What a client may send, as types: `frames.decode` reads the wire and makes Send, Ack or Heartbeat of it."""

from __future__ import annotations

from typing import Any

import msgspec

from yanchat.model import OpenId


class Send(msgspec.Struct, frozen=True, gc=False):
    """Type 1: `{"type": 1, "params": {"toMessageId": "BOB", "message": "hello", "fileType": 0}}`."""

    recipients: tuple[OpenId, ...]
    text: str
    file_type: int
    request_id: str | None
    traceparent: str = ""


class Ack(msgspec.Struct, frozen=True, gc=False):
    """Type 15: `{"type": 15, "params": {"from": "client", "msgid": "…", "fromUser": "…", "toUser": "…"}}`.

    Only `msgid` counts: who the message is from and for, the node's own record says.
    """

    message_id: str


class Heartbeat(msgspec.Struct, frozen=True, gc=False):
    """Type 11: `{"type": 11}`."""


class SendParams(msgspec.Struct, gc=False):
    """What a type 1 says, before its values are checked."""

    toMessageId: str | list[str]
    message: str
    fileType: int | str = 0


class SendFrame(msgspec.Struct, gc=False, tag_field="type", tag=1):
    """Type 1 as it stands on the wire. A traceparent may be anything: one that is none is left out."""

    params: SendParams
    requestId: str | None = None
    traceparent: Any = None


class AckParams(msgspec.Struct, gc=False):
    """What a type 15 says that counts."""

    msgid: str


class AckFrame(msgspec.Struct, gc=False, tag_field="type", tag=15):
    """Type 15 as it stands on the wire."""

    params: AckParams


class HeartbeatFrame(msgspec.Struct, gc=False, tag_field="type", tag=11):
    """Type 11 as it stands on the wire."""


class Anything(msgspec.Struct, gc=False):
    """Any JSON object: what is looked for in a frame that was refused."""

    params: Any = None
    requestId: Any = None
