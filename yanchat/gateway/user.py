"""Who a client is, once he has shown it, and where a token may stand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, Protocol

from yanchat.model import OpenId

MAX_NAME: Final = 128
SUBPROTOCOL: Final = "yanchat.v1"
BEARER: Final = "bearer."
"""With this before it a token may be offered as a subprotocol: browsers can send no header fields of their own."""


class User(NamedTuple):
    openid: OpenId
    name: str
    expires: float = math.inf
    """When the session must end, in seconds since 1970."""


class Authenticator(Protocol):
    """Says who asks, from the query and the header fields (names in lower case); raises Refused(400, 401 or 403)."""

    def __call__(self, query: Mapping[str, Sequence[str]], headers: Mapping[str, str]) -> User: ...
