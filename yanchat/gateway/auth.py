"""Who a client is. Mode `none` believes what the query says; mode `jwt`, in tokens.py, asks for a token."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from yanchat.config import AuthSettings
from yanchat.errors import Refused
from yanchat.gateway.user import MAX_NAME, Authenticator, User
from yanchat.protocol.frames import check_openid


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


def open_authenticator(auth: AuthSettings, wall: Callable[[], int]) -> Authenticator:
    """The authenticator that the settings ask for; `wall` in milliseconds. Raises ConfigError for unusable keys."""
    if auth.mode == "none":
        return trusting
    from yanchat.gateway.tokens import Tokens  # noqa: PLC0415 - mode none needs no cryptography

    return Tokens(auth, wall)
