"""The wire frames between a client and its node: decode, encode, the table of types. Nothing here keeps state.

What a client may send is decoded into Send, Ack or Heartbeat; all else raises Refused. What a node sends is built
from byte templates, whose parts are JSON already: an openid, an id and a node's address need no escaping (`OPENID`),
all other text passes through `json_text`.
"""

from __future__ import annotations

import datetime
import re
from typing import Final

import msgspec

from yanchat.errors import Refused
from yanchat.model import ACKED, Envelope, MessageId, Notice, OpenId, SessionId
from yanchat.protocol.ids import order_text
from yanchat.protocol.shapes import Ack, AckFrame, Anything, Heartbeat, HeartbeatFrame, Send, SendFrame

OPENID: Final = re.compile(r"[A-Za-z0-9\-_.:@|=+]{1,128}")
MAX_RECIPIENTS: Final = 100
MAX_REQUEST_ID: Final = 64
TRACEPARENT: Final = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
"""W3C Trace Context, 3.2; what follows in later versions of it is not carried."""
_INTEGER = re.compile(r"-?[0-9]{1,19}")
_INT64 = range(-(1 << 63), 1 << 63)

json_text = msgspec.json.Encoder().encode
"""Any string as JSON bytes, quotes included."""


_decode = msgspec.json.Decoder(SendFrame | AckFrame | HeartbeatFrame).decode
_HEARTBEAT = Heartbeat()


def decode(data: bytes | str) -> Send | Ack | Heartbeat:
    """Read a client's frame. Raises Refused(400) with a sentence for anything that is not one, whatever the bytes."""
    try:
        frame = _decode(data)
    except msgspec.ValidationError as error:
        raise Refused(400, f"The frame is not understood: {error}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Refused(400, "The frame is not JSON; send one JSON object in each text frame.") from None
    except RecursionError:
        raise Refused(400, "The frame is nested too deeply.") from None
    if type(frame) is SendFrame:
        return _send(frame)
    if type(frame) is AckFrame:
        return Ack(frame.params.msgid)
    return _HEARTBEAT


def _send(frame: SendFrame) -> Send:
    params, request_id = frame.params, frame.requestId
    to = params.toMessageId
    if type(to) is str:
        recipients: tuple[OpenId, ...] = (OpenId(to),)
    else:
        recipients = tuple(dict.fromkeys(map(OpenId, to)))
        if not 1 <= len(to) <= MAX_RECIPIENTS:
            raise Refused(400, f"toMessageId must name 1 to {MAX_RECIPIENTS} recipients, not {len(to)}.")
    for recipient in recipients:
        check_openid(recipient, "toMessageId")
    file_type = params.fileType
    if isinstance(file_type, str):
        if not _INTEGER.fullmatch(file_type):
            raise Refused(400, "fileType must be an integer.")
        file_type = int(file_type)
    if file_type not in _INT64:
        raise Refused(400, "fileType must fit into 64 bits.")
    if request_id is not None:
        check_request_id(request_id)
    traceparent = "" if frame.traceparent is None else usable_traceparent(frame.traceparent)
    return Send(recipients, params.message, file_type, request_id, traceparent)


def check_openid(text: str, what: str) -> OpenId:
    """The openid, if it is one; else Refused(400)."""
    if not OPENID.fullmatch(text):
        raise Refused(400, f"{what} must be 1 to 128 characters out of ASCII letters, digits and -_.:@|=+.")
    return OpenId(text)


def check_request_id(text: str) -> str:
    """The request id, if it is one; else Refused(400). A NUL stands between the parts that make a message's id."""
    if not 1 <= len(text) <= MAX_REQUEST_ID or "\0" in text:
        raise Refused(400, f"requestId must be 1 to {MAX_REQUEST_ID} characters, and none of them NUL.")
    return text


def usable_traceparent(given: object) -> str:
    """The traceparent, "" when it is none: a mistake in tracing loses no message (W3C Trace Context, 4.3)."""
    return given if isinstance(given, str) and TRACEPARENT.fullmatch(given) else ""


_decode_anything = msgspec.json.Decoder(Anything).decode


def glimpse(data: bytes | str) -> tuple[str, str | None]:
    """Text and request id of a frame that was refused, as far as they are there: its client knows it by them."""
    try:
        frame = _decode_anything(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return "", None
    text = frame.params.get("message") if isinstance(frame.params, dict) else ""
    request_id = frame.requestId
    known = isinstance(request_id, str) and len(request_id) <= MAX_REQUEST_ID
    return text if isinstance(text, str) else "", request_id if known else None


class Dates:
    """Java's `Date.toString()` in one time zone, kept for the second it was made for."""

    def __init__(self, zone: datetime.tzinfo) -> None:
        self._zone, self._second, self._text = zone, -1, b""

    def __call__(self, now_ms: int) -> bytes:
        """
        >>> from zoneinfo import ZoneInfo
        >>> Dates(ZoneInfo("Asia/Shanghai"))(1704162492912)
        b'Tue Jan 02 10:28:12 CST 2024'
        """
        second = now_ms // 1000
        if second != self._second:
            self._second = second
            local = datetime.datetime.fromtimestamp(second, self._zone)
            day, month = _DAYS[local.weekday()], _MONTHS[local.month - 1]
            zone = json_text(local.tzname() or "UTC")[1:-1].decode()
            self._text = f"{day} {month} {local:%d %H:%M:%S} {zone} {local:%Y}".encode()
        return self._text


_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def receipt(date: bytes, text: str, message_id: MessageId, request_id: str | None) -> bytes:
    """Type 0, status 200: the message is on disk."""
    request = b',"requestId":%b' % json_text(request_id) if request_id is not None else b""
    return b'{"type":0,"params":{"date":"%b","message":%b,"messageId":"%b"%b},"status":200}' % (
        date,
        json_text(text),
        message_id.encode(),
        request,
    )


def failure(date: bytes, refused: Refused, text: str = "", request_id: str | None = None) -> bytes:
    """Type 0, any other status: nothing was stored; `error` says why."""
    params: dict[str, object] = {"date": date.decode(), "message": text, "error": str(refused)}
    if refused.retry_after is not None:
        params["retryAfter"] = refused.retry_after
    if request_id is not None:
        params["requestId"] = request_id
    return msgspec.json.encode({"type": 0, "params": params, "status": refused.status})


def ack_receipt(date: bytes, message_id: str, status: int = 200) -> bytes:
    """Type 16: the ack is on disk (200), or why not (403, 404, 503)."""
    return b'{"type":16,"params":{"date":"%b","message":%b},"status":%d}' % (date, json_text(message_id), status)


def hello(openid: OpenId, user_name: str, session_id: SessionId, node: str, pending: bool) -> bytes:
    """Type 6: the session stands; `pending` says whether something will now come."""
    return (
        b'{"type":6,"params":{"openid":"%b","userName":%b,"sessionId":"%b","node":"%b","pending":%b},"status":200}'
        % (
            openid.encode(),
            json_text(user_name),
            session_id.encode(),
            node.encode(),
            b"true" if pending else b"false",
        )
    )


def heartbeat(date: bytes) -> bytes:
    """Type 12: the answer to type 11."""
    return b'{"type":12,"params":{"date":"%b"},"status":200}' % date


def push(envelope: Envelope, session_id: SessionId, name_json: bytes, redelivered: bool) -> bytes:
    """Type 2 in its envelope, for one session; `name_json` is the recipient's userName as JSON."""
    recipient = envelope.recipient.encode()
    return (
        b'{"activeTime":%d,"from":"system","messageId":"%b","msg":{"type":2,"params":{'
        b'"toUser":{"openid":"%b","loginStatus":"1","userName":%b},'
        b'"fromUser":{"openid":"%b","loginStatus":"1","userName":%b},'
        b'"message":%b,"fileType":"%d"},"status":200},"msgType":1,"requestId":%b,"sessionId":"%b",'
        b'"to":["%b"],"trigger":1,"order":"%b"%b%b}'
    ) % (
        envelope.accepted_at,
        envelope.message_id.encode(),
        recipient,
        name_json,
        envelope.sender.encode(),
        json_text(envelope.sender_name),
        json_text(envelope.text),
        envelope.file_type,
        json_text(envelope.request_id),
        session_id.encode(),
        recipient,
        order_text(envelope.order).encode(),
        b',"redelivered":true' if redelivered else b"",
        _traceparent(envelope.traceparent) if envelope.traceparent else b"",
    )


def notice(told: Notice, session_id: SessionId, date: bytes) -> bytes:
    """Type 17 in its envelope, for one session: delivered (200) or given up (410)."""
    delivered = told.rank == ACKED
    return (
        b'{"activeTime":%d,"from":"system","messageId":"%b","msg":{"type":17,"status":%b,"params":{'
        b'"msgid":"%b","toUser":"%b","date":"%b"%b}},"msgType":1,"requestId":%b,"sessionId":"%b",'
        b'"to":["%b"],"trigger":1%b}'
    ) % (
        told.at,
        told.message_id.encode(),
        b"200" if delivered else b"410",
        told.message_id.encode(),
        told.recipient.encode(),
        date,
        b"" if delivered else b',"error":"The recipient did not ack the message in its lifetime; it was given up."',
        json_text(told.request_id),
        session_id.encode(),
        told.sender.encode(),
        _traceparent(told.traceparent) if told.traceparent else b"",
    )


def _traceparent(text: str) -> bytes:
    return b',"traceparent":"%b"' % text.encode()
