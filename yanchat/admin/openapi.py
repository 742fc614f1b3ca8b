"""`/openapi.json`: what admin HTTP takes and answers (OpenAPI 3.1). The schemas are made from the types themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from yanchat import __version__
from yanchat.admin.accounts import NodeBooks
from yanchat.admin.answers import answer
from yanchat.admin.cluster import MOST_CLIENTS, Clients, Draining, Kick, Kicked, Servers
from yanchat.admin.health import Health, Readiness
from yanchat.admin.push import OPENID, Push, Pushed
from yanchat.admin.rows import MOST_ROWS, STATES, Redeliver, Redelivered, Rows
from yanchat.admin.stories import Told
from yanchat.model import MessageId, Node
from yanchat.protocol.books import Held, HeldAck

UUID: Final = {"type": "string", "pattern": "^([0-9a-f]{32}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})$"}
LAST: Final = (1 << 63) - 1


class Failure(msgspec.Struct):
    """A sentence that says what is wrong and what to do."""

    error: str


class MessageIds(msgspec.Struct):
    node: Node
    message_ids: list[MessageId]


class HeldRows(msgspec.Struct):
    """Each row: order, message id, recipient, accepted at (ms), rank, moved, adopted."""

    node: Node
    rows: list[Held]


class HeldAcks(msgspec.Struct):
    """Each ack: place, message id, recipient, origins, acked at (ms), left."""

    node: Node
    acks: list[HeldAck]


class HeldEntries(msgspec.Struct):
    node: Node
    rows: list[Held]
    acks: list[HeldAck]


class Operation(NamedTuple):
    method: str
    path: str
    summary: str
    answers: type | str
    """A type of JSON, or a media type."""
    query: Sequence[dict[str, Any]] = ()
    order: type | None = None
    status: int = 200
    refusals: Sequence[int] = ()
    also: int | None = None
    """Another status with the same answer."""


def _query(name: str, schema: dict[str, Any], *, required: bool = False) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": schema, "required": required}


def _whole(name: str, least: int, most: int, default: int) -> dict[str, Any]:
    return _query(name, {"type": "integer", "minimum": least, "maximum": most, "default": default})


USER: Final = {"type": "string", "pattern": OPENID}
ID: Final = {"name": "message_id", "in": "path", "required": True, "schema": UUID}
SINCE: Final = _whole("since", 0, LAST >> 16, 0)
PAGE: Final = (_whole("after", 0, LAST, 0), SINCE, _whole("limit", 1, MOST_ROWS, MOST_ROWS))
ANY_STATES: Final = {"type": "string", "pattern": f"^({'|'.join(STATES)})(,({'|'.join(STATES)}))*$"}

OPERATIONS: Final = (
    Operation("get", "/healthz", "Whether the node can work at all (503: it should be killed)", Health, also=503),
    Operation(
        "get", "/readyz", "Whether clients are welcome (503: another node should take them)", Readiness, also=503
    ),
    Operation("get", "/metrics", "What the node counts, for Prometheus", "text/plain"),
    Operation(
        "post",
        "/message/send",
        "Push a message; 200 when it is on disk, repeatable with its requestId",
        Pushed,
        order=Push,
        refusals=(429,),
    ),
    Operation("get", "/servers", "All nodes that the registry knows", Servers),
    Operation(
        "get",
        "/clients",
        "The sessions on live nodes",
        Clients,
        (_query("node", {"type": "string"}), _query("openid", USER), _whole("limit", 1, MOST_CLIENTS, 1000)),
    ),
    Operation("post", "/kick", "Close a user's sessions (4002), on whatever node", Kicked, order=Kick, refusals=(404,)),
    Operation("post", "/drain", "Stop this node gently", Draining, status=202),
    Operation(
        "get",
        "/outbox",
        "The oldest rows of some states",
        Rows,
        (
            _query("to", USER),
            _query("message_id", {"type": "string", "pattern": "^[0-9a-f]{32}$"}),
            _query("state", ANY_STATES),
            _whole("limit", 1, MOST_ROWS, 100),
        ),
    ),
    Operation("post", "/redeliver", "Push rows again now", Redelivered, order=Redeliver),
    Operation(
        "get", "/trace/{message_id}", "The life of a message, as this node knows it", Told, (ID,), refusals=(404,)
    ),
    Operation(
        "get",
        "/trace",
        "The messages that a user sent under a request id",
        MessageIds,
        (
            _query("from", USER, required=True),
            _query("request_id", {"type": "string", "minLength": 1}, required=True),
        ),
    ),
    Operation("get", "/audit", "The books of this node, and what is wrong with them", NodeBooks, (SINCE,)),
    Operation("get", "/audit/rows", "The rows of the books, page by page", HeldRows, PAGE),
    Operation("get", "/audit/acks", "The acks of the books, page by page", HeldAcks, PAGE),
    Operation("get", "/audit/{message_id}", "The rows and acks of one message", HeldEntries, (ID,), refusals=(404,)),
    Operation("get", "/openapi.json", "This document", "application/json"),
)
_NONE: Final = {"type": "null"}
_TEXT: Final = {"type": "string"}
RULES: Final[dict[str, dict[str, Any]]] = {
    "Kick": {
        "oneOf": [
            {"required": ["openid"], "properties": {"openid": _TEXT, "session_id": _NONE}},
            {"required": ["session_id"], "properties": {"session_id": _TEXT, "openid": _NONE}},
        ]
    },
    "Redeliver": {
        "anyOf": [
            {"required": ["all"], "properties": {"all": {"const": True}, "to": _NONE, "message_id": _NONE}},
            {"required": ["to"], "properties": {"all": {"const": False}, "to": _TEXT}},
            {"required": ["message_id"], "properties": {"all": {"const": False}, "message_id": _TEXT}},
        ]
    },
}
"""What a type alone cannot say."""
FILE_TYPE: Final = {
    "anyOf": [
        {"type": "integer", "minimum": -(1 << 63), "maximum": LAST},
        {"type": "string", "pattern": "^-?[0-9]{1,18}$"},
    ],
    "default": 0,
}
REFUSALS: Final = {
    400: "It is not understood, or cannot be: see the sentence",
    401: "Over TCP: no token, or another one",
    404: "There is no such thing",
    408: "The body did not come in time",
    413: "It is too large",
    429: "Too much waits already; `Retry-After` says when to try again",
    503: "It cannot be done now; `Retry-After` says when to try again",
}


def document_route() -> Route:
    """The route; the document is the same on every node of a version."""
    document = msgspec.json.encode(document_of(OPERATIONS))

    async def show(_: Request) -> Response:
        """What admin HTTP takes and answers."""
        return answer(msgspec.Raw(document))

    return Route("/openapi.json", show)


def document_of(operations: Sequence[Operation]) -> dict[str, Any]:
    """The whole document."""
    kinds = {kind for one in operations for kind in (one.order, one.answers) if isinstance(kind, type)}
    types: list[type] = sorted({Failure, *kinds}, key=lambda kind: kind.__name__)
    schemas, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    names = {kind: str(schema["$ref"]) for kind, schema in zip(types, schemas, strict=True)}
    for name, rule in RULES.items():
        components[name] |= rule
    components["Push"]["properties"]["fileType"] = FILE_TYPE
    paths: dict[str, dict[str, Any]] = {}
    for one in operations:
        paths.setdefault(one.path, {})[one.method] = _operation(one, names)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "yanchat admin",
            "version": __version__,
            "description": "Operations of one node; over its Unix socket, and over TCP with the cluster's token.",
        },
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": "Over TCP: what admin.token_file holds."}
            },
        },
    }


def _operation(one: Operation, names: dict[type, str]) -> dict[str, Any]:
    answers = {"description": "Done", "content": _content(one.answers, names)}
    responses = {str(one.status): answers}
    refusals = {401, 408, 413, 503, *one.refusals} | ({400} if one.query or one.order else set())
    for status in sorted(refusals):
        responses[str(status)] = {"description": REFUSALS[status], "content": _content(Failure, names)}
    if one.also is not None:
        responses[str(one.also)] = {**answers, "description": "Not so: the reasons say why"}
    operation: dict[str, Any] = {"summary": one.summary, "responses": responses}
    if one.query:
        operation["parameters"] = list(one.query)
    if one.order is not None:
        operation["requestBody"] = {"required": True, "content": _content(one.order, names)}
    return operation


def _content(kind: type | str, names: dict[type, str]) -> dict[str, Any]:
    if isinstance(kind, str):
        return {kind: {"schema": {"type": "object" if "json" in kind else "string"}}}
    return {"application/json": {"schema": {"$ref": names[kind]}}}
