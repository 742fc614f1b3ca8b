"""`yanchat servers`: the nodes, and whether what the registry says of them and their sessions fits together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from yanchat.cli.call import Call, flag, run_async
from yanchat.cli.render import Cells, Columns, ago, note, span
from yanchat.cli.watch import WATCH, watch
from yanchat.errors import UsageError

if TYPE_CHECKING:
    from yanchat.ports import Registry

COLUMNS: Columns = (
    ("NODE", "node"),
    ("STATE", "state"),
    ("SESSIONS", "sessions"),
    ("LAST HEARTBEAT", "heartbeat_age_s"),
    ("STARTED", "started_at"),
    ("VERSION", "version"),
)
CELLS: Cells = {"heartbeat_age_s": lambda seconds: f"{span(seconds)} ago", "started_at": lambda at: f"{ago(at)} ago"}


def servers(
    call: Call,
    check: Annotated[
        bool, flag("--check", "Say what in the registry contradicts itself, and exit with 10 if anything does.")
    ] = False,
    repair: Annotated[
        bool, flag("--repair", "Mend that, and remove topics of nodes that are gone; live nodes are never touched.")
    ] = False,
    yes: Annotated[bool, flag("--yes", "With --repair: do not ask.")] = False,
    watch_: Annotated[float | None, WATCH] = None,
) -> int:
    """List the nodes of the cluster, or check what the registry says of them and of their sessions.

    --check looks twice, so that what is just coming or going is not accused. A dead node is, unless its directory is
    here: then it can be started again. A topic is only removed when its node is not registered and nothing waits in it.
    """
    if watch_ is not None and (check or repair):
        raise UsageError("--watch only looks; give it without --check and --repair.")
    if yes and not repair:
        raise UsageError("--yes answers what --repair asks; give both.")
    cluster = call.cluster()
    if check or repair:
        from yanchat.cli import repair as repairing

        return repairing.repair(call, cluster, yes) if repair else repairing.check(call, cluster)

    async def look() -> int:
        async with cluster.open_registry() as registry:
            if watch_ is not None:
                await watch(call.out, watch_, COLUMNS, CELLS, lambda: _rows(registry))
            rows = await _rows(registry)
            call.out.table(COLUMNS, rows, CELLS)
            if not rows:
                note("No nodes; start one with `yanchat serve`.")
            return 0

    code: int = run_async(look)
    return code


async def _rows(registry: Registry) -> list[dict[str, Any]]:
    return [
        {
            "node": record.node,
            "state": record.state,
            "sessions": record.sessions,
            "heartbeat_age_s": round(record.age, 1),
            # of a node that has died Redis knows hardly more than the name
            "started_at": record.started_at or None,
            "incarnation": record.incarnation,
            "version": record.version,
        }
        for record in await registry.nodes()
    ]
