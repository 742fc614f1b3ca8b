"""`yanchat servers --check` and `--repair`: what cannot be so in the registry, and topics of nodes that are gone."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import typer

from yanchat.cli.call import Call, run_async
from yanchat.cli.leftovers import Topic, find_topics, remove_topics
from yanchat.cli.nodes import LEASE, Cluster
from yanchat.cli.render import note, warn
from yanchat.errors import UsageError, YanchatError

if TYPE_CHECKING:
    from yanchat.model import Contradiction
    from yanchat.ports import Registry

UNHEALTHY: Final = 10
AGAIN_AFTER: Final = 3.5
"""Seconds between two looks: more than a heartbeat, by which live nodes put much right themselves."""
ROUNDS: Final = 5
SHOWN: Final = 20
"""Of one kind, to a person."""
_OF_GONE: Final = ("dead", "gone_holder")


class Findings(NamedTuple):
    contradictions: list[Contradiction]
    topics: list[Topic]
    failure: YanchatError | None = None
    """Why nothing is known of the topics."""


class Repaired(NamedTuple):
    mended: list[Contradiction]
    left: list[Contradiction]
    removed: set[str]
    failure: YanchatError | None = None
    """Why not all topics were removed that may be."""


def check(call: Call, cluster: Cluster) -> int:
    """Say what contradicts; the exit code."""
    found: list[Contradiction] = run_async(find_contradictions, cluster)
    _show(call, found, ())
    if call.out.form != "person":
        call.out.table((), [_row(one, mended=False) for one in found])
    if not found:
        note("The registry does not contradict itself.")
        return 0
    if any(one.mendable for one in found):
        note("Mend it with `yanchat servers --repair`.")
    return UNHEALTHY


def repair(call: Call, cluster: Cluster, yes: bool) -> int:
    """Mend what contradicts and remove topics that nobody needs, after asking; the exit code."""
    begun = time.monotonic()
    found: Findings = run_async(_look, cluster)
    mendable = [one for one in found.contradictions if one.mendable]
    removable = [topic for topic in found.topics if topic.removable]
    _show(call, found.contradictions, found.topics)
    done = Repaired([], found.contradictions, set())
    if (mendable or removable) and _agreed(call, len(mendable), len(removable), yes):
        done = run_async(_mend, cluster, mendable, removable, begun)
    if call.out.form != "person":
        rows = [_row(one, mended=True) for one in done.mended] + [_row(one, mended=False) for one in done.left]
        call.out.table((), rows + [_topic_row(one, removed=one.leftover.topic in done.removed) for one in found.topics])
    if done.mended or done.removed:
        note(f"{_counted(len(done.mended), len(done.removed), 'mended', 'removed')}.")
    if not done.left:
        note("The registry does not contradict itself.")
    if failure := found.failure or done.failure:
        raise failure
    return UNHEALTHY if done.left else 0


# -- looking -----------------------------------------------------------------------------------------------------------
async def standing(registry: Registry, again_after: float) -> list[Contradiction]:
    """What stands there for longer than a session or a node takes to come or go."""
    import trio

    first = await registry.contradictions()
    if not first:
        return []
    await trio.sleep(again_after)
    again = set(await registry.contradictions())
    return [one for one in first if one in again]


async def find_contradictions(cluster: Cluster) -> list[Contradiction]:
    """What stands in the registry for longer than a node or a session takes to come or go; looks twice if need be."""
    async with cluster.open_registry() as registry:
        return await _accused(registry, cluster)


async def _accused(registry: Registry, cluster: Cluster) -> list[Contradiction]:
    """All that stands there; a node whose directory is here is not gone, for it can be started again."""
    found = await standing(registry, AGAIN_AFTER)
    return [one for one in found if one.kind not in _OF_GONE or not cluster.has(one.node)]


async def _look(cluster: Cluster) -> Findings:
    async with cluster.open_registry() as registry:
        found = await _accused(registry, cluster)
        forgotten = {one.node for one in found if one.kind == "dead"}
        try:
            return Findings(found, await find_topics(cluster, await _registered(registry) - forgotten))
        except YanchatError as error:  # the registry is mended all the same
            return Findings(found, [], error)


async def _registered(registry: Registry) -> set[str]:
    """All nodes that are in the registry in any way."""
    found = {one.node for one in await registry.contradictions() if one.kind == "unregistered"}
    return found | {record.node for record in await registry.nodes()}


# -- mending -----------------------------------------------------------------------------------------------------------
def _agreed(call: Call, contradictions: int, topics: int, yes: bool) -> bool:
    what = _counted(contradictions, topics, "to mend", "to remove")
    if yes:
        return True
    if not sys.stdin.isatty():
        raise UsageError(f"There are {what}; give --yes, for there is no terminal to ask you on.")
    agreed = typer.confirm(f"There are {what}. Do it now?", err=True)
    if not agreed:
        note("Nothing was done.")
    return agreed


async def _mend(cluster: Cluster, mendable: list[Contradiction], removable: list[Topic], begun: float) -> Repaired:
    import trio

    async with cluster.open_registry() as registry:
        mended, left = dict.fromkeys(mendable), list(mendable)
        for _ in range(ROUNDS):  # mending one may bare another: a node's pending sets, when it is forgotten
            await registry.mend([one for one in left if one.mendable])
            left = await _accused(registry, cluster)
            mended.update(dict.fromkeys(one for one in left if one.mendable))
            if not any(one.mendable for one in left):
                break
        done = Repaired([one for one in mended if one not in left], left, set())
        try:
            if removable:
                # by then each live node has come back into a registry that had just lost everything
                await trio.sleep(max(0.0, begun + LEASE - time.monotonic()))
                await remove_topics(cluster, await _registered(registry), removable, done.removed)
        except YanchatError as error:
            return done._replace(failure=error)
    return done


# -- showing -----------------------------------------------------------------------------------------------------------
def _show(call: Call, contradictions: Iterable[Contradiction], topics: Iterable[Topic]) -> None:
    """A person reads the sentences; a program gets them as data, and who calls it sees them on stderr."""
    for sentence in _sentences(contradictions, topics):
        if call.out.form == "person":
            call.out.line(sentence)
        elif sys.stdin.isatty():
            warn(sentence)


def _sentences(contradictions: Iterable[Contradiction], topics: Iterable[Topic]) -> Iterator[str]:
    counts: Counter[str] = Counter()
    for one in contradictions:
        counts[one.kind] += 1
        if counts[one.kind] <= SHOWN:
            yield one.sentence
    for kind, count in counts.items():
        if count > SHOWN:
            yield f"And {count - SHOWN} more of the kind {kind}; --json lists them all."
    for topic in topics:
        yield topic.sentence


def _row(one: Contradiction, *, mended: bool) -> dict[str, Any]:
    return {
        "kind": one.kind,
        "node": one.node or None,
        "openid": one.openid or None,
        "session_id": one.session_id or None,
        "topic": None,
        "sentence": one.sentence,
        "mended": mended,
    }


def _topic_row(topic: Topic, *, removed: bool) -> dict[str, Any]:
    return {
        "kind": "topic",
        "node": None,
        "openid": None,
        "session_id": None,
        "topic": topic.leftover.topic,
        "sentence": topic.sentence,
        "mended": removed,
    }


def _counted(contradictions: int, topics: int, mended: str, removed: str) -> str:
    """
    >>> _counted(1, 0, "to mend", "to remove"), _counted(0, 2, "mended", "removed")
    ('1 contradiction to mend', '2 topics removed')
    """
    parts = [(contradictions, "contradiction", mended), (topics, "topic", removed)]
    return " and ".join(f"{count} {noun}{'s' * (count != 1)} {what}" for count, noun, what in parts if count)
