"""An operator's questions to a running node, over its admin socket. Knows nothing of the node's own code."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import httpx

from yanchat.errors import NotAllowed, NotFound, StoreUnavailable, Unreachable, UsageError, YanchatError

ASKED: Final = httpx.Timeout(10.0, connect=2.0)
ORDERED: Final = httpx.Timeout(30.0, connect=2.0)
"""What is ordered may take the node as long as it has messages."""


class NotRunning(Unreachable):
    """Nothing serves the admin socket."""


async def ask_node(
    socket: Path, method: str, path: str, *, query: Mapping[str, str] | None = None, body: object = None
) -> Any:
    """Ask a running node over its admin socket; the JSON that it answers.

    Raises NotRunning, Unreachable (no answer in time), NotAllowed (another user's node), and what the node says.
    """
    if not socket.exists():
        raise NotRunning(f"No node serves {socket}; start it with `yanchat serve`.")
    if not os.access(socket, os.R_OK | os.W_OK):
        raise NotAllowed(f"{socket} belongs to another user; call this as the user that runs the node.")
    transport = httpx.AsyncHTTPTransport(uds=str(socket))
    timeout = ASKED if method == "GET" else ORDERED
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://node", timeout=timeout) as http:
            response = await http.request(method, path, params=query, json=body)
    except httpx.ConnectError:
        raise NotRunning(f"No node serves {socket}; start it with `yanchat serve`.") from None
    except httpx.TransportError as error:
        raise Unreachable(
            f"The node behind {socket} does not answer ({str(error) or type(error).__name__}); see its log."
        ) from None
    if response.is_success:
        return response.json()
    kinds = {400: UsageError, 404: NotFound, 503: StoreUnavailable}
    try:
        sentence = str(response.json()["error"])
    except (ValueError, TypeError, KeyError):
        sentence = f"The node behind {socket} answers with status {response.status_code}; see its log."
    raise kinds.get(response.status_code, YanchatError)(sentence)
