"""`/servers`, `/clients`, `/kick` and `/drain`: who is where in the cluster, and sending them away."""

from __future__ import annotations

import os
from typing import Any, Final

import msgspec
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from yanchat.admin.answers import BadRequest, answer, number, openid, read_order
from yanchat.admin.control import Control
from yanchat.errors import NotFound
from yanchat.model import Node, SessionId, SessionRecord
from yanchat.node.assembly import Assembly
from yanchat.protocol.ids import openid_of
from yanchat.protocol.records import Close

KICKED: Final = 4002
KICKED_BECAUSE: Final = "closed by an operator"
MOST_CLIENTS: Final = 100_000


class Kick(msgspec.Struct, forbid_unknown_fields=True):
    """What `POST /kick` takes: either all sessions of a user, or one session."""

    openid: str | None = None
    session_id: str | None = None


def cluster_routes(work: Assembly, control: Control) -> list[Route]:
    """The routes of one node."""

    async def servers(_: Request) -> Response:
        """All nodes that the registry knows."""
        nodes = [
            {
                "node": record.node,
                "state": record.state,
                "sessions": record.sessions,
                "heartbeat_age_s": round(record.age, 1),
                "started_at": record.started_at,
                "incarnation": record.incarnation,
                "version": record.version,
                "url": record.url,
                "admin": record.admin,
            }
            for record in await work.registry.nodes()
        ]
        return answer({"node": work.node, "servers": nodes})

    async def clients(request: Request) -> Response:
        """The sessions on live nodes: all, those on one node, or those of one user."""
        query = request.query_params
        limit = number(query, "limit", 1000, MOST_CLIENTS)
        live = {(record.node, record.incarnation) for record in await work.registry.nodes() if record.state != "dead"}
        found = await work.registry.sessions(
            node=Node(query["node"]) if query.get("node") else None, openid=openid(query.get("openid"), "openid")
        )
        sessions = [one for one in found if (one.node, one.incarnation) in live]
        return answer({"node": work.node, "total": len(sessions), "clients": list(map(_client, sessions[:limit]))})

    async def kick(request: Request) -> Response:
        """Close sessions, on whatever node they are."""
        order = await read_order(request, Kick)
        if (order.openid is None) == (order.session_id is None):
            raise BadRequest("Say either openid or session_id.")
        session_id = SessionId(order.session_id or "")
        user = openid(order.openid if order.session_id is None else openid_of(session_id), "openid or session_id")
        assert user is not None
        found = (await work.registry.locate([user])).get(user, ())
        sessions = {one.session_id: one.node for one in found if one.node != work.node}
        sessions |= {one.record.session_id: work.node for one in work.hub.of(user)}  # also who is not claimed yet
        if order.session_id is not None:
            sessions = {one: node for one, node in sessions.items() if one == session_id}
        if not sessions:
            raise NotFound(f"There is no session {session_id}." if session_id else f"{user} has no session.")
        for one, node in sessions.items():
            if node == work.node:
                work.hub.close(one, KICKED, KICKED_BECAUSE)
            else:
                work.bus.publish(node, [Close(work.node, one, KICKED, KICKED_BECAUSE)])
        kicked = [{"openid": user, "session_id": one, "node": node} for one, node in sessions.items()]
        return answer({"node": work.node, "kicked": kicked})

    async def drain(_: Request) -> Response:
        """Stop this node gently, as SIGTERM does; it begins when it has been answered."""
        answered = answer({"node": work.node, "pid": os.getpid(), "draining": True}, 202)
        answered.background = BackgroundTask(begin)
        return answered

    async def begin() -> None:
        control.drain()

    return [
        Route("/servers", servers),
        Route("/clients", clients),
        Route("/kick", kick, methods=["POST"]),
        Route("/drain", drain, methods=["POST"]),
    ]


def _client(session: SessionRecord) -> dict[str, Any]:
    return {
        "openid": session.openid,
        "user_name": session.user_name,
        "node": session.node,
        "session_id": session.session_id,
        "connected_at": session.connected_at,
        "remote": session.remote,
    }
