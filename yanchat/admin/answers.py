"""How admin HTTP answers: JSON, and `{"error": sentence}` for all that is refused; reading orders and queries."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final, TypeVar

import msgspec
import structlog
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from yanchat.errors import NotFound, Refused, StoreUnavailable, Unreachable, YanchatError
from yanchat.model import MessageId, OpenId
from yanchat.protocol.frames import check_openid
from yanchat.protocol.ids import is_message_id

RETRY_AFTER: Final = 5
"""Seconds, where nobody has said better."""
T = TypeVar("T")


class BadRequest(YanchatError):
    exit_code = 2


def answer(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), status, headers, media_type="application/json")


def refuse(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> Response:
    return answer({"error": sentence}, status, headers)


async def read_order(request: Request, kind: type[T]) -> T:
    """The body as an order of this kind; BadRequest when it is none."""
    body = await request.body()
    try:
        return msgspec.json.decode(body, type=kind)
    except (UnicodeDecodeError, msgspec.DecodeError) as error:  # what is not UTF-8 was the former before msgspec 0.23
        if not _is_utf8(body):
            raise BadRequest("The order is not UTF-8, as JSON has to be.") from None
        if _has_half_a_character(body):
            sentence = (
                "The order is not valid Unicode: an escape as \\ud800 is half a character, and needs its other half."
            )
            raise BadRequest(sentence) from None
        raise BadRequest(f"The order is not understood: {error}.") from None
    except RecursionError:
        raise BadRequest("The order is nested too deeply.") from None


def _is_utf8(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


def _has_half_a_character(body: bytes) -> bool:
    """Whether it is JSON but for a lone surrogate, of which the decoder may say that its input was truncated."""
    try:
        json.dumps(json.loads(body), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    except (ValueError, RecursionError):
        pass
    return False


def number(query: Mapping[str, str], name: str, default: int, most: int) -> int:
    """A number of the query, from 1 on; BadRequest when it is none."""
    text = query.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and 1 <= int(text) <= most):
        raise BadRequest(f"{name} must be 1 to {most}.")
    return int(text)


def openid(text: str | None, name: str) -> OpenId | None:
    """The openid, if there is one; BadRequest when it is none."""
    try:
        return None if text is None else check_openid(text, name)
    except Refused as refused:
        raise BadRequest(str(refused)) from None


def message_id(text: str | None) -> MessageId | None:
    """The message id, if there is one; BadRequest when it is none."""
    if text is not None and not is_message_id(text):
        raise BadRequest(f"{text!r} is no message id: 32 lower-case hex digits.")
    return None if text is None else MessageId(text)


# -- what goes wrong ---------------------------------------------------------------------------------------------------
async def failed(_: Request, error: Exception) -> Response:
    """An error that yanchat raises on purpose."""
    match error:
        case Refused():
            return refuse(error.status, str(error), _later(error.retry_after))
        case BadRequest():
            return refuse(400, str(error))
        case NotFound():
            return refuse(404, str(error))
        case StoreUnavailable() | Unreachable():
            return refuse(503, str(error), _later(RETRY_AFTER))
    return refuse(500, str(error))


async def not_served(request: Request, error: Exception) -> Response:
    """No such path, or not with this method."""
    headers = error.headers if isinstance(error, HTTPException) else None
    status = error.status_code if isinstance(error, HTTPException) else 404
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        return refuse(status, f"{request.method} is not answered on {request.url.path}.", headers)
    return refuse(404, f"There is no {request.method} {request.url.path}; see /openapi.json for what there is.")


async def left(_: Request, __: Exception) -> Response:
    """Whoever asked has gone before the end of his question: nobody hears this."""
    return Response(status_code=400)


async def broken(request: Request, error: Exception) -> Response:
    """What should not happen."""
    structlog.get_logger().error("admin.failed", path=request.url.path, exc_info=error)
    return refuse(500, f"This should not happen ({type(error).__name__}); see the log of this node.")


HANDLERS: Final[dict[Any, Any]] = {
    YanchatError: failed,
    ClientDisconnect: left,
    404: not_served,
    405: not_served,
    Exception: broken,
}


def _later(seconds: int | None) -> dict[str, str] | None:
    return None if seconds is None else {"Retry-After": str(seconds)}
