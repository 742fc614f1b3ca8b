"""The contradictions that any registry may hold, found in what it says; a backend adds those of its own form."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from yanchat.model import Contradiction, Node, NodeRecord, OpenId, SessionRecord
from yanchat.names import slug


class Places(NamedTuple):
    """Where things stand, as a person finds them."""

    nodes: str
    sessions: Callable[[OpenId], str]
    pending: Callable[[OpenId], str]


def find_contradictions(
    nodes: Sequence[NodeRecord],
    sessions: Iterable[SessionRecord],
    pending: Iterable[tuple[OpenId, Node]],
    places: Places,
) -> list[Contradiction]:
    """All that contradict each other in these, which are all that there are."""
    known = {record.node: record for record in nodes}
    found = []
    for entry in sessions:
        if why := _why_ghost(known.get(entry.node), entry):
            text = f"{places.sessions(entry.openid)}: session {entry.session_id} of {entry.openid} is on {entry.node},"
            text += f" {why}; --repair removes it."
            found.append(Contradiction("ghost", text, entry.node, entry.openid, entry.session_id, entry))
    found += [_dead(record.node, places.nodes) for record in nodes if record.state == "dead"]
    for openid, node in pending:
        if node not in known:
            text = f"{places.pending(openid)}: {node} holds something for {openid}, and is not registered; start it,"
            text += " or let --repair take it out if it is gone for good."
            found.append(Contradiction("gone_holder", text, node, openid))
    return found + _same_slugs(nodes)


def _why_ghost(record: NodeRecord | None, entry: SessionRecord) -> str:
    if record is None:
        return "which is not registered"
    if record.state == "dead":
        return "which is dead"
    return "which has started again since" if record.incarnation != entry.incarnation else ""


def _dead(node: Node, place: str) -> Contradiction:
    return Contradiction(
        "dead",
        f"{place}: {node} is dead. Start it, or have its messages adopted where its directory is: `yanchat redeliver"
        f" --adopt {node}`; if it is gone for good, --repair removes it.",
        node,
    )


def _same_slugs(nodes: Iterable[NodeRecord]) -> list[Contradiction]:
    live = defaultdict(list)
    for record in nodes:
        if record.state != "dead":
            live[slug(record.node)].append(record.node)
    return [
        Contradiction(
            "same_slug",
            f"{' and '.join(sorted(same))} are live and share the name {name} on the bus and on disk; stop all but one,"
            " and give the others another --advertise.",
            min(same),
        )
        for name, same in live.items()
        if len(same) > 1
    ]
