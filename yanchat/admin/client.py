"""An operator's questions to a running node: over its admin socket, or over TCP with the token of its cluster.

Knows nothing of the node's own code.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx
import msgspec

from yanchat.errors import NotAllowed, NotFound, StoreUnavailable, Unreachable, UsageError, YanchatError

ASKED: Final = httpx.Timeout(10.0, connect=2.0)
ORDERED: Final = httpx.Timeout(30.0, connect=2.0)
"""What is ordered may take the node as long as it has messages."""


class Remote(NamedTuple):
    """Where a node of another machine answers (`NodeRecord.admin`), and the token that it asks for."""

    address: str
    token: str

    def __repr__(self) -> str:
        return self.address  # no traceback shows the token


class NotRunning(Unreachable):
    """Nothing serves the admin socket."""


async def ask_node(
    at: Path | Remote,
    method: str,
    path: str,
    *,
    query: Mapping[str, str] | None = None,
    body: object = None,
    within: float | None = None,
) -> Any:
    """Ask a running node over its admin socket, or at its admin address; the JSON, or the text, that it answers.

    `within`: seconds, for what takes longer than usual. Raises NotRunning, Unreachable (no answer in time), NotAllowed
    (another user's node, another token), and what the node says.
    """
    headers = {}
    if isinstance(at, Remote):
        transport, base = httpx.AsyncHTTPTransport(), f"http://{at.address}"
        headers["Authorization"] = f"Bearer {at.token}"
        absent = f"Nothing answers at {at}, a node's admin address; see whether that node runs, and admin.listen."
    else:
        transport, base = httpx.AsyncHTTPTransport(uds=str(at)), "http://node"
        absent = f"No node serves {at}; start it with `yanchat serve`."
        if not at.exists():
            raise NotRunning(absent)
        if not os.access(at, os.R_OK | os.W_OK):
            raise NotAllowed(f"{at} belongs to another user; call this as the user that runs the node.")
    timeout = ASKED if method == "GET" else ORDERED
    if within is not None:
        timeout = httpx.Timeout(within, connect=2.0)
    try:
        async with httpx.AsyncClient(transport=transport, base_url=base, timeout=timeout, headers=headers) as http:
            response = await http.request(method, path, params=query, json=body)
    except (httpx.ConnectError, httpx.ConnectTimeout):
        raise NotRunning(absent) from None
    except (httpx.RequestError, httpx.InvalidURL) as error:
        raise Unreachable(
            f"The node behind {at} does not answer ({str(error) or type(error).__name__}); see its log."
        ) from None
    return _heard(at, response)


def _heard(at: Path | Remote, response: httpx.Response) -> Any:
    is_json = "json" in response.headers.get("content-type", "")
    try:
        if response.is_success:
            return response.json() if is_json else response.text
        said = response.json()
        sentence = str(said["error"]) if "error" in said else " ".join(said["reasons"])
    except (ValueError, TypeError, KeyError, RecursionError):  # no node says that
        if response.is_success:
            raise not_understood("it is no JSON") from None
        sentence = f"The node behind {at} answers with status {response.status_code}; see its log."
    if response.status_code == 401:
        raise NotAllowed(f"The node behind {at} has another token; admin.token_file must be the same on all nodes.")
    kinds = {400: UsageError, 404: NotFound, 503: StoreUnavailable}
    raise kinds.get(response.status_code, YanchatError)(sentence)


def understood(answer: Any, kind: Any, key: str = "") -> Any:
    """An answer, or what it has under a key, as that kind. Unreachable: it is something else, so no node's of ours."""
    if key and not (isinstance(answer, dict) and key in answer):
        raise not_understood(f"there is no {key}")
    try:
        return msgspec.convert(answer[key] if key else answer, kind)
    except msgspec.ValidationError as error:
        raise not_understood(str(error)) from None


def not_understood(why: str) -> Unreachable:
    return Unreachable(f"The node answers what is not understood: {why}; is it a node, and of this version?")
