"""`yanchat kick`: close sessions, on whatever node they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, TypedDict

import typer

from yanchat.cli.call import Call, run_async
from yanchat.cli.ordering import TOKEN_FILE, ways_to
from yanchat.cli.render import warn
from yanchat.errors import Unreachable, UsageError

if TYPE_CHECKING:
    from yanchat.cli.nodes import Cluster


class KickedSession(TypedDict):
    openid: str
    session_id: str
    node: str


class Kicked(TypedDict):
    """What a node answers."""

    node: str
    kicked: list[KickedSession]


def kick(
    call: Call,
    openid: Annotated[str | None, typer.Option(metavar="OPENID", help="All sessions of this user.")] = None,
    session_id: Annotated[
        str | None, typer.Option(metavar="ID", help="This session alone, as `yanchat clients` shows it.")
    ] = None,
    admin_token_file: TOKEN_FILE = None,
) -> None:
    """Close sessions of a user, with close code 4002.

    The user may log in again: to keep somebody out, take back his token. What waits for him stays. Any running node is
    asked, and sees to it that the others follow.
    """
    from yanchat.cli.witnesses import admin_token

    if (openid is None) == (session_id is None):
        raise UsageError("Say whom: either --openid OPENID or --session-id ID.")
    order = {"openid": openid} if session_id is None else {"session_id": session_id}
    cluster = call.cluster()
    result = run_async(_order, cluster, admin_token(cluster, admin_token_file), order)
    lines = [f"{one['session_id']} on {one['node']} is told to go." for one in result["kicked"]]
    call.out.document(result, "\n".join(lines))


async def _order(cluster: Cluster, token: str, order: dict[str, str]) -> Any:
    """What the first node answers that can be asked."""
    from yanchat.admin.client import ask_node, understood

    silent: list[str] = []
    for way in await ways_to(cluster, token, None):
        try:
            answer = understood(await ask_node(way.at, "POST", "/kick", body=order), Kicked)
        except Unreachable as error:
            silent.append(str(error))
            continue
        for sentence in silent:
            warn(sentence)
        return answer
    raise Unreachable(silent[0])
