"""`yanchat clients`: the sessions on the live nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from yanchat.cli.call import Call, run_async
from yanchat.cli.nodes import named
from yanchat.cli.render import Cells, Columns, ago, note
from yanchat.cli.watch import WATCH, watch

if TYPE_CHECKING:
    from yanchat.ports import Registry

COLUMNS: Columns = (
    ("OPENID", "openid"),
    ("NAME", "user_name"),
    ("NODE", "node"),
    ("CONNECTED", "connected_at"),
    ("FROM", "remote"),
    ("SESSION", "session_id"),
)
CELLS: Cells = {"connected_at": lambda at: f"{ago(at)} ago"}


def clients(
    call: Call,
    node: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Only the sessions on this node.")] = None,
    openid: Annotated[str | None, typer.Option(metavar="OPENID", help="Only the sessions of this user.")] = None,
    watch_: Annotated[float | None, WATCH] = None,
) -> None:
    """List the sessions of all users."""
    cluster = call.cluster()

    async def look() -> None:
        async with cluster.open_registry() as registry:
            if watch_ is not None:
                await watch(call.out, watch_, COLUMNS, CELLS, lambda: _rows(registry, node, openid))
            rows = await _rows(registry, node, openid)
            call.out.table(COLUMNS, rows, CELLS)
            if not rows:
                note("No sessions.")

    run_async(look)


async def _rows(registry: Registry, node: str | None, openid: str | None) -> list[dict[str, Any]]:
    from yanchat.model import Node, OpenId

    nodes = named(await registry.nodes(), node)
    live = {(record.node, record.incarnation) for record in nodes if record.state != "dead"}
    sessions = await registry.sessions(
        node=None if node is None else Node(node), openid=None if openid is None else OpenId(openid)
    )
    return [
        {
            "openid": session.openid,
            "user_name": session.user_name,
            "node": session.node,
            "session_id": session.session_id,
            "connected_at": session.connected_at,
            "remote": session.remote,
        }
        for session in sessions
        if (session.node, session.incarnation) in live
    ]
