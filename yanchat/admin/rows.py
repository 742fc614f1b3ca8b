"""`/outbox` and `/redeliver`: the rows of a node's message table, for people."""

from __future__ import annotations

import time
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from yanchat.admin.answers import BadRequest, answer, message_id, number, openid, read_order
from yanchat.model import MessageId, OpenId, Row
from yanchat.node.assembly import Assembly
from yanchat.ports import Outbox, RowFilter

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


def row_routes(work: Assembly, outbox: Outbox) -> list[Route]:
    """The routes of one node."""

    async def list_rows(request: Request) -> Response:
        """The oldest rows of some states."""
        query = request.query_params
        states = tuple(part for part in query.get("state", "pending,expired").split(",") if part)
        if not set(states) <= set(STATES):
            raise BadRequest(f"state must be any of {', '.join(STATES)}.")
        rows = await outbox.search(
            RowFilter(
                recipient=openid(query.get("to"), "to"),
                message_id=message_id(query.get("message_id")),
                states=states,
                limit=number(query, "limit", 100, MOST_ROWS),
            )
        )
        return answer({"node": work.node, "rows": [as_json(row) for row in rows]})

    async def redeliver(request: Request) -> Response:
        """Push rows again now."""
        order = await read_order(request, Redeliver)
        if order.all == (order.to is not None or order.message_id is not None):
            raise BadRequest("Say either all, or to or message_id or both of these.")
        rows = await _selected(outbox, order)
        redelivered = 0
        if not order.dry_run:
            redelivered = work.mailboxes.replay([row.envelope.key for row in rows if row.state == "pending"])
            redelivered += await work.looks.push_dead([row for row in rows if row.state == "expired"])
        ids = list(dict.fromkeys(row.envelope.message_id for row in rows))
        return answer({"node": work.node, "selected": len(rows), "redelivered": redelivered, "message_ids": ids})

    return [Route("/outbox", list_rows), Route("/redeliver", redeliver, methods=["POST"])]


async def _selected(outbox: Outbox, order: Redeliver) -> list[Row]:
    """All rows that are meant, read in chunks by order."""
    before = None if order.older_than_s is None else int((time.time() - order.older_than_s) * 1000)
    to, wanted = openid(order.to, "to"), message_id(order.message_id)
    found: list[Row] = []
    after = 0
    while True:
        rows = await outbox.search(
            RowFilter(
                recipient=to,
                message_id=wanted,
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
