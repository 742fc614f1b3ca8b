"""Who a client is. Mode `none` believes what the query says; a mode with tokens is one more Authenticator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from yanchat.errors import Refused
from yanchat.model import OpenId
from yanchat.protocol.frames import check_openid

MAX_NAME = 128


class User(NamedTuple):
    openid: OpenId
    name: str


class Authenticator(Protocol):
    """Says who asks, from the query and the header fields (names in lower case); raises Refused(400, 401 or 403)."""

    def __call__(self, query: Mapping[str, Sequence[str]], headers: Mapping[str, str]) -> User: ...


def trusting(query: Mapping[str, Sequence[str]], headers: Mapping[str, str]) -> User:
    """Mode `none`: the query names `openid` and `userName` (the openid when it is missing)."""
    openids = query.get("openid", ())
    if len(openids) != 1:
        raise Refused(400, "The query must name one openid, as in /ws?openid=ann.")
    openid = check_openid(openids[0], "openid")
    name = query.get("userName", ("",))[0] or openid
    if len(name) > MAX_NAME or not name.isprintable():
        raise Refused(400, f"userName must be at most {MAX_NAME} printable characters.")
    return User(openid, name)
