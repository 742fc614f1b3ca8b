"""The admin application: `/readyz`, `/outbox` and `/redeliver`. Answers are JSON; errors are `{"error": sentence}`."""

from __future__ import annotations

import time
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from yanchat.errors import StoreUnavailable, YanchatError
from yanchat.model import MessageId, OpenId, Row
from yanchat.node.assembly import Assembly
from yanchat.ports import Outbox, RowFilter
from yanchat.protocol.ids import is_message_id

STATES = ("pending", "delivered", "expired", "untold", "moved")
MOST_ROWS = 10_000
CHUNK = 1000


class Redeliver(msgspec.Struct, forbid_unknown_fields=True):
    """What `POST /redeliver` takes: all, or those that both `to` and `message_id` name, of which one may be missing."""

    all: bool = False
    to: OpenId | None = None
    message_id: MessageId | None = None
    older_than_s: float | None = None
    dead: bool = False
    dry_run: bool = False


class BadRequest(YanchatError):
    exit_code = 2


def build_app(work: Assembly, outbox: Outbox) -> Starlette:
    """The application of one node."""

    async def ready(_: Request) -> Response:
        """200 when clients are welcome, 503 with the reasons when another node should take them."""
        reasons = [work.lease.trouble] if work.lease.trouble else []
        if work.reception.draining:
            reasons.append("This node is stopping.")
        if not outbox.healthy():
            reasons.append("The message table takes nothing now; look at the disk.")
        return _json({"node": work.node, "ready": not reasons, "reasons": reasons}, 503 if reasons else 200)

    async def list_rows(request: Request) -> Response:
        query = request.query_params
        states = tuple(part for part in query.get("state", "pending,expired").split(",") if part)
        if not set(states) <= set(STATES):
            raise BadRequest(f"state must be any of {', '.join(STATES)}.")
        limit = query.get("limit", "100")
        if not limit.isdigit() or not 1 <= int(limit) <= MOST_ROWS:
            raise BadRequest(f"limit must be 1 to {MOST_ROWS}.")
        rows = await outbox.search(
            RowFilter(
                recipient=OpenId(query["to"]) if "to" in query else None,
                message_id=_id(query.get("message_id")),
                states=states,
                limit=int(limit),
            )
        )
        return _json({"node": work.node, "rows": [as_json(row) for row in rows]})

    async def redeliver(request: Request) -> Response:
        try:
            order = msgspec.json.decode(await request.body(), type=Redeliver)
        except msgspec.DecodeError as error:
            raise BadRequest(f"The order is not understood: {error}.") from None
        if order.all == (order.to is not None or order.message_id is not None):
            raise BadRequest("Say either all, or to or message_id or both of these.")
        rows = await _selected(outbox, order)
        redelivered = 0
        if not order.dry_run:
            redelivered = work.mailboxes.replay([row.envelope.key for row in rows if row.state == "pending"])
            redelivered += await work.looks.push_dead([row for row in rows if row.state == "expired"])
        ids = list(dict.fromkeys(row.envelope.message_id for row in rows))
        return _json({"node": work.node, "selected": len(rows), "redelivered": redelivered, "message_ids": ids})

    async def failed(_: Request, error: Exception) -> Response:
        status = 400 if isinstance(error, BadRequest) else 503 if isinstance(error, StoreUnavailable) else 500
        return _json({"error": str(error)}, status)

    async def missing(request: Request, _: Exception) -> Response:
        return _json({"error": f"There is no {request.method} {request.url.path}."}, 404)

    return Starlette(
        routes=[
            Route("/readyz", ready),
            Route("/outbox", list_rows),
            Route("/redeliver", redeliver, methods=["POST"]),
        ],
        exception_handlers={YanchatError: failed, 404: missing, 405: missing},
    )


async def _selected(outbox: Outbox, order: Redeliver) -> list[Row]:
    """All rows that are meant, read in chunks by order."""
    before = None if order.older_than_s is None else int((time.time() - order.older_than_s) * 1000)
    found: list[Row] = []
    after = 0
    while True:
        rows = await outbox.search(
            RowFilter(
                recipient=order.to,
                message_id=_id(order.message_id),
                states=("pending", "expired") if order.dead else ("pending",),
                accepted_before=before,
                after=after,
                limit=CHUNK,
            )
        )
        found += rows
        if len(rows) < CHUNK:
            return found
        after = rows[-1].envelope.order


def as_json(row: Row) -> dict[str, Any]:
    """One row for people and programs; times in milliseconds since the epoch, null for never. Never the text."""
    envelope = row.envelope
    return {
        "message_id": envelope.message_id,
        "request_id": envelope.request_id,
        "from": envelope.sender,
        "to": envelope.recipient,
        "state": row.state,
        "attempts": row.attempts,
        "accepted_at": envelope.accepted_at,
        "sent_at": row.sent_at or None,
        "arrived_at": row.arrived_at or None,
        "settled_at": row.settled_at or None,
        "told_at": row.told_at or None,
        "moved_at": row.moved_at or None,
        "adopted_at": row.adopted_at or None,
        "told": row.rank <= row.told,
    }


def _id(text: str | None) -> MessageId | None:
    if text is not None and not is_message_id(text):
        raise BadRequest(f"{text!r} is no message id: 32 lower-case hex digits.")
    return None if text is None else MessageId(text)


def _json(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")
