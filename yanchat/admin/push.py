"""`POST /message/send`: a back end pushes a message to users, under the same rules as a client that sends one."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
import trio
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from yanchat.admin.answers import answer, read_order
from yanchat.admin.control import Control
from yanchat.errors import Refused, RegistryUnavailable
from yanchat.model import MessageId, Node, OpenId
from yanchat.node.assembly import Assembly
from yanchat.protocol import frames
from yanchat.protocol.frames import check_openid
from yanchat.protocol.shapes import Send

SYSTEM: Final = OpenId("system")
LOCATED_WITHIN: Final = 2.0
"""Seconds to find out who is there; the message is stored by then."""

OPENID: Final = f"^{frames.OPENID.pattern}$"
User = Annotated[str, msgspec.Meta(extra_json_schema={"pattern": OPENID})]
"""Checked with a sentence; the schema is for the document."""
Users = Annotated[list[User], msgspec.Meta(extra_json_schema={"minItems": 1, "maxItems": frames.MAX_RECIPIENTS})]
RequestId = Annotated[
    str, msgspec.Meta(extra_json_schema={"minLength": 1, "maxLength": frames.MAX_REQUEST_ID, "pattern": "^[^\\x00]*$"})
]
FileType = int | float | str
"""Any writing of an integer: JSON does not tell 1.0 from 1, and the wire takes "1" as well."""


class Push(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    """A message to one user or to several. With `requestId` it may be sent again without harm: it is the same one."""

    to: Users | User
    message: str
    file_type: FileType = 0
    sender: User = msgspec.field(default=SYSTEM, name="from")
    request_id: RequestId | None = None
    notices: bool = False
    """Whether the sender is told (type 17) when a recipient has acked."""


class PushedTo(msgspec.Struct, rename="camel"):
    to: OpenId
    message_id: MessageId
    repeated: bool
    """It had been stored before."""


class Pushed(msgspec.Struct, rename="camel"):
    """All of it is on disk. `absent`: who has no session now, and gets it at the next login; null: nobody knows."""

    node: Node
    message_id: MessageId
    request_id: str | None
    messages: list[PushedTo]
    absent: list[OpenId] | None


def push_routes(work: Assembly, control: Control) -> list[Route]:
    """The routes of one node."""

    async def push(request: Request) -> Response:
        """200 when it is on disk, never before."""
        order = await read_order(request, Push)
        send = _checked(order, control.limits().message_size, request.headers.get("traceparent", ""))
        if work.reception.draining:
            raise Refused(503, "This node is stopping; send it to another one.", retry_after=1)
        message_id, news = await work.intake.push(OpenId(order.sender), send, notify=order.notices)
        absent = await _absent(work, send.recipients)
        messages = [PushedTo(to, message_id, repeated=not new) for to, new in zip(send.recipients, news, strict=True)]
        return answer(Pushed(work.node, message_id, order.request_id, messages, absent))

    return [Route("/message/send", push, methods=["POST"])]


def _checked(order: Push, message_size: int, traceparent: str) -> Send:
    """The order as the frame that a client would send: one set of rules. Raises Refused (400, 413)."""
    check_openid(order.sender, "from")
    text = frames.json_text(order.message)
    if len(text) > message_size:
        raise Refused(413, f"The message is longer than limits.message_size, {message_size} bytes.")
    file_type = order.file_type
    if isinstance(file_type, float) and file_type.is_integer():
        file_type = int(file_type)
    frame = {
        "type": 1,
        "params": {"toMessageId": order.to, "message": msgspec.Raw(text), "fileType": str(file_type)},
        "requestId": order.request_id,
        "traceparent": traceparent,
    }
    try:
        send = frames.decode(msgspec.json.encode(frame))
    except Refused as refused:
        raise Refused(refused.status, str(refused).replace("toMessageId", "to")) from None
    assert isinstance(send, Send)
    return send


async def _absent(work: Assembly, recipients: tuple[OpenId, ...]) -> list[OpenId] | None:
    """Who of them has no session on any node now; None when that cannot be told."""
    elsewhere = [openid for openid in recipients if not work.mailboxes.here(openid)]
    if not elsewhere:
        return []
    with trio.move_on_after(LOCATED_WITHIN):
        try:
            found = await work.registry.locate(elsewhere)
        except RegistryUnavailable:
            return None
        there = {openid for openid in elsewhere if any(one.node != work.node for one in found.get(openid, ()))}
        return [openid for openid in elsewhere if openid not in there]
    return None
