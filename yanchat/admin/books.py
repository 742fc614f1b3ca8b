"""`/trace` and `/audit`: what became of messages, for people; and the rows of the books, to be held against others'."""

from __future__ import annotations

from collections.abc import Mapping

import trio
from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from yanchat.admin.accounts import show
from yanchat.admin.answers import BadRequest, answer, number, openid
from yanchat.admin.stories import tell
from yanchat.model import OPEN, MessageId, Row
from yanchat.node.assembly import Assembly
from yanchat.ports import Inbox, Outbox
from yanchat.protocol.books import held
from yanchat.protocol.ids import parse_message_id

WRITTEN_WITHIN = 1.0
"""Seconds to wait for what is on its way to disk; on a full disk it is told without that."""
MOST_IDS = 100
MOST_ROWS = 10_000
LAST = (1 << 63) - 1


def book_routes(work: Assembly, outbox: Outbox, inbox: Inbox) -> list[Route]:
    """The routes of one node."""
    books = outbox.books

    async def trace(request: Request) -> Response:
        """The life of one message, as this node knows it; without events it does not."""
        message_id = _message_id(request)
        with trio.move_on_after(WRITTEN_WITHIN):
            await work.ledger.flushed()
        story = await books.story(message_id)
        return answer(tell(work.node, message_id, story, work.clock.wall(), with_memory, runs=True))

    def with_memory(row: Row) -> Row:
        """While a row waits, its pushes are in memory alone."""
        item = work.mailboxes.items.get(row.envelope.key)
        if item is None or row.rank > OPEN:
            return row
        return replace(row, attempts=item.attempts, sent_at=item.sent_at, arrived_at=item.arrived_at)

    async def requested(request: Request) -> Response:
        """The messages that a user sent under a request id."""
        query = request.query_params
        sender, request_id = openid(query.get("from"), "from"), query.get("request_id", "")
        if sender is None or not request_id:
            raise BadRequest("Say from and request_id: a request id is its sender's own.")
        return answer({"node": work.node, "message_ids": await books.requested(sender, request_id, MOST_IDS)})

    async def audit(request: Request) -> Response:
        """The books, and what is wrong with them."""
        return answer(show(work.node, await books.account(_whole(request.query_params, "since"))))

    async def rows(request: Request) -> Response:
        """A page of `[order, message_id, to, accepted_at, rank, moved, adopted]` behind the order `after`."""
        page = await books.held(*_page(request.query_params))
        return answer({"node": work.node, "rows": page})

    async def acks(request: Request) -> Response:
        """A page of `[place, message_id, to, origins, acked_at, left]` behind the place `after`."""
        page = await books.held_acks(*_page(request.query_params))
        return answer({"node": work.node, "acks": page})

    async def entries(request: Request) -> Response:
        """The rows and acks of one message, as the pages have them."""
        story = await books.story(_message_id(request))
        return answer({"node": work.node, "rows": list(map(held, story.rows)), "acks": story.acks})

    return [
        Route("/trace/{message_id}", trace),
        Route("/trace", requested),
        Route("/audit", audit),
        Route("/audit/rows", rows),
        Route("/audit/acks", acks),
        Route("/audit/{message_id}", entries),
    ]


def _message_id(request: Request) -> MessageId:
    text = request.path_params["message_id"]
    message_id = parse_message_id(text)
    if message_id is None:
        raise BadRequest(f"{text!r} is no message id: 32 hex digits, with or without dashes.")
    return message_id


def _page(query: Mapping[str, str]) -> tuple[int, int, int]:
    return _whole(query, "after"), _whole(query, "since"), number(query, "limit", MOST_ROWS, MOST_ROWS)


def _whole(query: Mapping[str, str], name: str) -> int:
    """A number from 0 on that SQLite can compare; times are milliseconds, and become orders."""
    text = query.get(name, "0")
    most = LAST >> 16 if name == "since" else LAST
    if not (text.isascii() and text.isdigit() and len(text) <= 19 and int(text) <= most):
        raise BadRequest(f"{name} must be 0 to {most}.")
    return int(text)
