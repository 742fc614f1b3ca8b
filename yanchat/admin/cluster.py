"""`/servers`, `/clients`, `/kick` and `/drain`: who is where in the cluster, and sending them away."""

from __future__ import annotations

import os
import re
from typing import Annotated, Final

import msgspec
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from yanchat.admin.answers import BadRequest, answer, number, openid, read_order
from yanchat.admin.control import Control
from yanchat.errors import NotFound
from yanchat.model import Node, NodeRecord, OpenId, SessionId, SessionRecord
from yanchat.node.assembly import Assembly
from yanchat.protocol import frames
from yanchat.protocol.ids import openid_of
from yanchat.protocol.records import Close

KICKED: Final = 4002
KICKED_BECAUSE: Final = "closed by an operator"
MOST_CLIENTS: Final = 100_000
OPENID: Final = f"^{frames.OPENID.pattern}$"
SESSION_ID: Final = rf"^[^\s_]+:[0-9]{{1,5}}_{frames.OPENID.pattern}_[0-9]{{14}}(-[0-9]+)?$"
_SESSION_ID: Final = re.compile(SESSION_ID[1:-1])


class Kick(msgspec.Struct, forbid_unknown_fields=True):
    """What `POST /kick` takes: either all sessions of a user, or one session."""

    openid: Annotated[str, msgspec.Meta(extra_json_schema={"pattern": OPENID})] | None = None
    session_id: Annotated[str, msgspec.Meta(extra_json_schema={"pattern": SESSION_ID})] | None = None


class Server(msgspec.Struct):
    """A node, as the registry knows it; `admin` is its address for HTTP over TCP, if any.

    Of one that is dead not all may be known: then `started_at` is null, and texts are empty.
    """

    node: Node
    state: str
    sessions: int
    heartbeat_age_s: float
    started_at: int | None
    incarnation: str
    version: str
    url: str
    admin: str


class Servers(msgspec.Struct):
    node: Node
    servers: list[Server]


class Client(msgspec.Struct):
    """A session; `connected_at` in milliseconds since the epoch."""

    openid: OpenId
    user_name: str
    node: Node
    session_id: SessionId
    connected_at: int
    remote: str


class Clients(msgspec.Struct):
    """`total` counts also those that are beyond the limit."""

    node: Node
    total: int
    clients: list[Client]


class KickedSession(msgspec.Struct):
    openid: OpenId
    session_id: SessionId
    node: Node


class Kicked(msgspec.Struct):
    """The sessions that are told to go."""

    node: Node
    kicked: list[KickedSession]


class Draining(msgspec.Struct):
    """The node has been told to stop; `pid` is the process that does."""

    node: Node
    pid: int
    draining: bool = True


def cluster_routes(work: Assembly, control: Control) -> list[Route]:
    """The routes of one node."""

    async def servers(_: Request) -> Response:
        """All nodes that the registry knows."""
        return answer(Servers(work.node, list(map(_server, await work.registry.nodes()))))

    async def clients(request: Request) -> Response:
        """The sessions on live nodes: all, those on one node, or those of one user."""
        query = request.query_params
        limit = number(query, "limit", 1000, MOST_CLIENTS)
        live = {(record.node, record.incarnation) for record in await work.registry.nodes() if record.state != "dead"}
        found = await work.registry.sessions(
            node=Node(query["node"]) if query.get("node") else None, openid=openid(query.get("openid"), "openid")
        )
        sessions = [one for one in found if (one.node, one.incarnation) in live]
        return answer(Clients(work.node, len(sessions), list(map(_client, sessions[:limit]))))

    async def kick(request: Request) -> Response:
        """Close sessions, on whatever node they are."""
        order = await read_order(request, Kick)
        if (order.openid is None) == (order.session_id is None):
            raise BadRequest("Say either openid or session_id.")
        session_id = _session_id(order.session_id)
        user = openid_of(session_id) if session_id is not None else openid(order.openid, "openid")
        assert user is not None
        found = (await work.registry.locate([user])).get(user, ())
        sessions = {one.session_id: one.node for one in found if one.node != work.node}
        sessions |= {one.record.session_id: work.node for one in work.hub.of(user)}  # also who is not claimed yet
        if session_id is not None:
            sessions = {one: node for one, node in sessions.items() if one == session_id}
        if not sessions:
            raise NotFound(f"There is no session {session_id}." if session_id else f"{user} has no session.")
        for one, node in sessions.items():
            if node == work.node:
                work.hub.close(one, KICKED, KICKED_BECAUSE)
            else:
                work.bus.publish(node, [Close(work.node, one, KICKED, KICKED_BECAUSE)])
        return answer(Kicked(work.node, [KickedSession(user, one, node) for one, node in sessions.items()]))

    async def drain(_: Request) -> Response:
        """Stop this node gently, as SIGTERM does; it begins when it has been answered."""
        answered = answer(Draining(work.node, os.getpid()), 202)
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


def _session_id(text: str | None) -> SessionId | None:
    if text is not None and not _SESSION_ID.fullmatch(text):
        raise BadRequest(f"{text!r} is no session id, as 127.0.0.1:8084_bob_20240102102737 is.")
    return None if text is None else SessionId(text)


def _server(record: NodeRecord) -> Server:
    return Server(
        record.node,
        record.state,
        record.sessions,
        round(record.age, 1),
        record.started_at or None,
        record.incarnation,
        record.version,
        record.url,
        record.admin,
    )


def _client(session: SessionRecord) -> Client:
    return Client(
        session.openid, session.user_name, session.node, session.session_id, session.connected_at, session.remote
    )
