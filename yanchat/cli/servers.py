"""`yanchat servers`: the nodes, and whether what the registry says of them and their sessions fits together."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

from yanchat.cli.call import Call, flag, run_async
from yanchat.cli.render import Cells, Columns, ago, note, span, warn
from yanchat.cli.watch import WATCH, watch
from yanchat.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from yanchat.cli.nodes import Cluster
    from yanchat.model import NodeRecord, SessionRecord
    from yanchat.ports import Registry

UNHEALTHY = 10
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
        bool, flag("--check", "Exit with 10 when the registry contradicts itself, and say where.")
    ] = False,
    repair: Annotated[bool, flag("--repair", "Remove what contradicts; live nodes are never touched.")] = False,
    watch_: Annotated[float | None, WATCH] = None,
) -> int:
    """List the nodes of the cluster."""
    if watch_ is not None and (check or repair):
        raise UsageError("--watch only looks; give it without --check and --repair.")
    cluster = call.cluster()

    async def look() -> int:
        async with cluster.open_registry() as registry:
            if watch_ is not None:
                await watch(call.out, watch_, COLUMNS, CELLS, lambda: _rows(registry))
            if check or repair:
                findings = await _findings(registry, cluster)
                for finding in findings:
                    warn(finding.sentence)
                if repair:
                    await _repair(registry, findings)
            rows = await _rows(registry)
            call.out.table(COLUMNS, rows, CELLS)
            if not rows:
                note("No nodes; start one with `yanchat serve`.")
            if check or repair:
                return _verdict(findings, repair)
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
            "started_at": record.started_at,
            "incarnation": record.incarnation,
            "version": record.version,
        }
        for record in await registry.nodes()
    ]


class _Finding:
    """One contradiction, and what mends it."""

    def __init__(
        self, sentence: str, ghosts: Sequence[SessionRecord] = (), forgotten: NodeRecord | None = None
    ) -> None:
        self.sentence, self.ghosts, self.forgotten = sentence, ghosts, forgotten


async def _findings(registry: Registry, cluster: Cluster) -> list[_Finding]:
    """What stands there for longer than a node takes to come or go: nodes and sessions are not read at one instant."""
    import trio

    if await _look_for_findings(registry, cluster):
        await trio.sleep(0.5)
        return await _look_for_findings(registry, cluster)
    return []


async def _look_for_findings(registry: Registry, cluster: Cluster) -> list[_Finding]:
    from yanchat.names import slug

    nodes = {record.node: record for record in await registry.nodes()}
    ghosts: dict[tuple[str, str], list[SessionRecord]] = {}
    for session in await registry.sessions():
        record = nodes.get(session.node)
        if record is None:
            why = "which the registry does not know"
        elif record.state == "dead":
            why = "which is dead"
        elif record.incarnation != session.incarnation:
            why = "but of an earlier start of it"
        else:
            continue
        ghosts.setdefault((session.node, why), []).append(session)
    found = [
        _Finding(f"{len(sessions)} of the sessions are on {node}, {why}.", sessions)
        for (node, why), sessions in ghosts.items()
    ]
    found += [
        _Finding(f"{record.node} is dead, and its directory is gone: it cannot come back.", forgotten=record)
        for record in nodes.values()
        if cluster.settings.node.profile == "embedded"
        and record.state == "dead"
        and not (cluster.state / "nodes" / slug(record.node)).exists()
    ]
    slugs = Counter(slug(record.node) for record in nodes.values() if record.state != "dead")
    found += [
        _Finding(f"{count} live nodes have the directory nodes/{name}; stop all but one.")
        for name, count in slugs.items()
        if count > 1
    ]
    return found


async def _repair(registry: Registry, findings: list[_Finding]) -> None:
    for finding in findings:
        if finding.ghosts:
            await registry.reap(finding.ghosts)
        if finding.forgotten is not None:
            await registry.forget(finding.forgotten)


def _verdict(findings: list[_Finding], repaired: bool) -> int:
    if not findings:
        note("The registry does not contradict itself.")
        return 0
    left = (
        [finding for finding in findings if not finding.ghosts and finding.forgotten is None] if repaired else findings
    )
    if repaired:
        note(f"{len(findings) - len(left)} of {len(findings)} contradictions removed.")
    else:
        note("Remove them with `yanchat servers --repair`; a live node does that by itself in a few seconds.")
    return UNHEALTHY if left else 0
