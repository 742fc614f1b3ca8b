"""The admin application of one node: its groups of routes, put together."""

from __future__ import annotations

from starlette.applications import Starlette

from yanchat.admin.answers import HANDLERS
from yanchat.admin.books import book_routes
from yanchat.admin.cluster import cluster_routes
from yanchat.admin.control import Control
from yanchat.admin.health import health_routes
from yanchat.admin.metrics import metrics_route
from yanchat.admin.openapi import document_route
from yanchat.admin.push import push_routes
from yanchat.admin.rows import row_routes
from yanchat.node.assembly import Assembly
from yanchat.ports import Inbox, Outbox


def build_app(work: Assembly, outbox: Outbox, inbox: Inbox, control: Control) -> Starlette:
    """What the node's Unix socket serves, and its TCP address to whoever has the token."""
    routes = [
        *health_routes(work, outbox, control),
        metrics_route(work, outbox, control),
        *push_routes(work, control),
        *cluster_routes(work, control),
        *row_routes(work, outbox),
        *book_routes(work, outbox, inbox),
        document_route(),
    ]
    return Starlette(routes=routes, exception_handlers=HANDLERS)
