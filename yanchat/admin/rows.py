"""`/outbox` and `/redeliver`: the rows of a node's message table, for people."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Annotated

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from yanchat.admin.answers import BadRequest, answer, message_id, number, openid, read_order
from yanchat.model import Key, MessageId, Node, OpenId, Row
from yanchat.node.assembly import Assembly
from yanchat.ports import Outbox, RowFilter
from yanchat.protocol import frames

STATES = ("pending", "delivered", "expired", "untold", "moved")
MOST_ROWS = 10_000
CHUNK = 1000
LONGEST_AGO = 1e9
OPENID = f"^{frames.OPENID.pattern}$"
MESSAGE_ID = "^[0-9a-f]{32}$"


class Redeliver(msgspec.Struct, forbid_unknown_fields=True):
    """What `POST /redeliver` takes: all, or those that both `to` and `message_id` name, of which one may be missing."""

    all: bool = False
    to: Annotated[OpenId, msgspec.Meta(extra_json_schema={"pattern": OPENID})] | None = None
    message_id: Annotated[MessageId, msgspec.Meta(extra_json_schema={"pattern": MESSAGE_ID})] | None = None
    older_than_s: Annotated[float, msgspec.Meta(ge=0, le=LONGEST_AGO)] | None = None
    dead: bool = False
    dry_run: bool = False


class ShownRow(msgspec.Struct, rename={"sender": "from"}):
    """Times in milliseconds since the epoch, null for never. Never the text."""

    message_id: MessageId
    request_id: str
    sender: OpenId
    to: OpenId
    state: str
    attempts: int
    accepted_at: int
    sent_at: int | None
    arrived_at: int | None
    settled_at: int | None
    told_at: int | None
    moved_at: int | None
    adopted_at: int | None
    told: bool


class Rows(msgspec.Struct):
    node: Node
    rows: list[ShownRow]


class Redelivered(msgspec.Struct):
    """How many rows were meant, and how many of them had somebody to be pushed to now."""

    node: Node
    selected: int
    redelivered: int
    message_ids: list[MessageId]


def row_routes(work: Assembly, outbox: Outbox) -> list[Route]:
    """The routes of one node."""

    async def list_rows(request: Request) -> Response:
        """The oldest rows of some states."""
        query = request.query_params
        states = tuple(part for part in query.get("state", "pending,expired").split(",") if part)
        if not states or not set(states) <= set(STATES):
            raise BadRequest(f"state must be any of {', '.join(STATES)}.")
        rows = await outbox.search(
            RowFilter(
                recipient=openid(query.get("to"), "to"),
                message_id=message_id(query.get("message_id")),
                states=states,
                limit=number(query, "limit", 100, MOST_ROWS),
            )
        )
        return answer(Rows(work.node, list(map(show, rows))))

    async def redeliver(request: Request) -> Response:
        """Push rows again now."""
        order = await read_order(request, Redeliver)
        if order.all == (order.to is not None or order.message_id is not None):
            raise BadRequest("Say either all, or to or message_id or both of these.")
        selected = redelivered = 0
        pending: list[Key] = []
        ids: dict[MessageId, None] = {}
        async for rows in _selected(outbox, order):
            selected += len(rows)
            ids |= dict.fromkeys(row.envelope.message_id for row in rows)
            if not order.dry_run:
                pending += [row.envelope.key for row in rows if row.state == "pending"]
                redelivered += await work.looks.push_dead([row for row in rows if row.state == "expired"])
        redelivered += work.mailboxes.replay(pending)
        return answer(Redelivered(work.node, selected, redelivered, list(ids)))

    return [Route("/outbox", list_rows), Route("/redeliver", redeliver, methods=["POST"])]


async def _selected(outbox: Outbox, order: Redeliver) -> AsyncIterator[list[Row]]:
    """All rows that are meant, in chunks by order: together their texts may be more than memory holds."""
    before = None if order.older_than_s is None else int((time.time() - order.older_than_s) * 1000)
    to, wanted = openid(order.to, "to"), message_id(order.message_id)
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
        yield rows
        if len(rows) < CHUNK:
            return
        after = rows[-1].envelope.order


def show(row: Row) -> ShownRow:
    """One row for people and programs."""
    envelope = row.envelope
    return ShownRow(
        envelope.message_id,
        envelope.request_id,
        envelope.sender,
        envelope.recipient,
        row.state,
        row.attempts,
        envelope.accepted_at,
        row.sent_at or None,
        row.arrived_at or None,
        row.settled_at or None,
        row.told_at or None,
        row.moved_at or None,
        row.adopted_at or None,
        row.rank <= row.told,
    )
