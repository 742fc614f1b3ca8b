"""Auth mode `jwt`: who a client is says the token that it brings (RFC 7519); and where it may bring it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import jwt

from yanchat.config import AuthSettings
from yanchat.errors import Refused
from yanchat.gateway.keys import Keys, read_keys
from yanchat.gateway.renewed import Renewed, warn_of_readers
from yanchat.gateway.user import BEARER, MAX_NAME, SUBPROTOCOL, User
from yanchat.protocol.frames import check_openid

HOW: Final = f"send Authorization: Bearer TOKEN, or offer the subprotocols {SUBPROTOCOL} and {BEARER}TOKEN"
NOT_IN_QUERY: Final = frozenset({"token", "access_token", "id_token", "jwt", "bearer", "authorization"})
_WRONG: Final[dict[type[Exception], str]] = {
    jwt.InvalidSignatureError: "The token's signature is wrong.",
    jwt.InvalidAudienceError: "The token is not for this audience (aud).",
    jwt.InvalidIssuerError: "The token is not of the issuer that this node trusts (iss).",
}
_CHECKS: Final[Any] = {"require": ["exp", "sub"], "verify_exp": False, "verify_nbf": False, "verify_iat": False}
"""The times are compared here, with the node's own clock. A token without an end, or for nobody, is none."""


class Tokens:
    """An Authenticator. Raises ConfigError when the keys cannot be used; renewed ones are read when they change."""

    def __init__(self, settings: AuthSettings, wall: Callable[[], int]) -> None:
        self._algorithms, self._leeway, self._wall = frozenset(settings.algorithms), settings.leeway, wall
        self._audience, self._issuer = settings.audience or None, settings.issuer or None
        file = settings.key_file or settings.jwks_file
        self._keys: Renewed[Keys] = Renewed("auth.keys", (file,), lambda: read_keys(settings))
        if "HS256" in settings.algorithms:
            warn_of_readers(file, "auth.key_file" if settings.key_file else "auth.jwks_file")

    def __call__(self, query: Mapping[str, Sequence[str]], headers: Mapping[str, str]) -> User:
        claims = self._verified(_token(query, headers))
        expires = self._expiry(claims)
        try:
            openid = check_openid(claims["sub"], "The token's sub")
        except Refused as refused:
            raise Refused(401, str(refused)) from None
        name = claims.get("name") or openid
        if not isinstance(name, str) or len(name) > MAX_NAME or not name.isprintable():
            raise Refused(401, f"The token's name must be at most {MAX_NAME} printable characters.")
        if any(named != openid for named in query.get("openid", ())):
            raise Refused(403, "The token is of another user than the query's openid; leave that out.")
        return User(openid, name, expires)

    def _verified(self, token: str) -> dict[str, Any]:
        """The claims of a token with a good signature, audience and issuer."""
        try:
            header = jwt.get_unverified_header(token)
            algorithm, kid = header.get("alg"), header.get("kid")
            if algorithm not in self._algorithms:
                accepted = " or ".join(sorted(self._algorithms))
                raise Refused(401, f"The token's algorithm is not accepted; sign it with {accepted}.")
            if "crit" in header:  # RFC 7515, 4.1.11: what is not understood must not be passed over
                raise Refused(401, "The token asks for an extension (crit) that is not known here.")
            key = self._keys.get().find(algorithm, kid)
            if key is None:
                raise Refused(401, "No key of this node fits the token's kid.")
            found: dict[str, Any] = jwt.decode(
                token, key, algorithms=[algorithm], audience=self._audience, issuer=self._issuer, options=_CHECKS
            )
            return found
        except jwt.MissingRequiredClaimError as error:
            raise Refused(401, f"The token has no {error.claim}; mint it with one.") from None
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:
            raise Refused(401, _WRONG.get(type(error), "The token is no JWT that can be read.")) from None

    def _expiry(self, claims: Mapping[str, Any]) -> float:
        """When the session ends, in seconds since 1970; the token is valid now."""
        now = self._wall() / 1000
        end, start = _seconds(claims, "exp") + self._leeway, _seconds(claims, "nbf", -math.inf) - self._leeway
        if now >= end:
            raise Refused(401, "The token has expired; get a new one.")
        if now < start:
            raise Refused(401, "The token is not valid yet (nbf).")
        return end


def _seconds(claims: Mapping[str, Any], claim: str, default: float = 0.0) -> float:
    value = claims.get(claim, default)
    if claim in claims and (type(value) not in (int, float) or not abs(value) < 1e15):
        raise Refused(401, f"The token's {claim} is no number of seconds since 1970.")
    return float(value)


def _token(query: Mapping[str, Sequence[str]], headers: Mapping[str, str]) -> str:
    """The token of a request. In a query it would stand in the logs of whatever it passes."""
    if any(name.lower() in NOT_IN_QUERY for name in query):
        raise Refused(400, f"A token must not stand in the query, where logs keep it; {HOW}.")
    scheme, _, in_header = headers.get("authorization", "").strip().partition(" ")
    offered = [part.strip() for part in headers.get("sec-websocket-protocol", "").split(",")]
    found = [part.removeprefix(BEARER) for part in offered if part.startswith(BEARER)]
    if found and SUBPROTOCOL not in offered:
        raise Refused(400, f"Offer the subprotocol {SUBPROTOCOL} beside the token.")
    if scheme.lower() == "bearer":
        found.append(in_header.strip())
    if not found:
        raise Refused(401, f"This node asks for a token; {HOW}.")
    if len(found) > 1:
        raise Refused(400, f"There is more than one token; {HOW}.")
    return found[0]
