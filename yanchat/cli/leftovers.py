"""Topics of nodes that are not registered: which may go, as far as this machine can tell, and their removal."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, NamedTuple

from yanchat.cli.nodes import Cluster
from yanchat.cli.render import warn
from yanchat.errors import YanchatError

if TYPE_CHECKING:
    from yanchat.backends.kafka.leftovers import Leftover


class Topic(NamedTuple):
    """A topic of a node that is not registered, and whether it may go."""

    leftover: Leftover
    removable: bool
    sentence: str


async def find_topics(cluster: Cluster, registered: Collection[str]) -> list[Topic]:
    """The topics of all nodes but these."""
    import trio

    from yanchat.backends import leftovers_of

    leftovers = leftovers_of(cluster.settings)
    if leftovers is None:
        return []
    found = await trio.to_thread.run_sync(leftovers.find, registered, abandon_on_cancel=True)
    return [await _judged(cluster, leftover) for leftover in found]


async def _judged(cluster: Cluster, leftover: Leftover) -> Topic:
    of_whom = f"{leftover.topic} is of a node that is not registered"
    if why := await _outbox_here(cluster, leftover.slug):
        return Topic(leftover, False, f"{of_whom}, but {why}.")
    if leftover.waiting:
        waits = "1 record waits" if leftover.waiting == 1 else f"{leftover.waiting} records wait"
        text = f"{of_whom}, but {waits} in it; the node fetches that when it starts, else it goes with kafka.retention."
        return Topic(leftover, False, text)
    return Topic(leftover, True, f"{of_whom}, and nothing waits in it; --repair removes it.")


async def _outbox_here(cluster: Cluster, slug: str) -> str:
    """Why the node of this slug may still need its topics, as far as this machine can tell; empty when it does not."""
    from yanchat.backends.sqlite.store import open_store
    from yanchat.directory import locked

    directory = cluster.directory(slug)
    if not (directory / "node.db").exists():
        return ""
    try:
        with locked(directory, f"a process holds {directory}; see whether it reaches the registry"):
            async with open_store(directory / "node.db") as store:
                totals = await store.totals()
    except YanchatError as error:
        return str(error).rstrip(".")
    waiting = totals.pending + totals.untold
    if not waiting:
        return ""
    waits = "1 message waits" if waiting == 1 else f"{waiting} messages wait"
    return f"{waits} in {directory}; start it, or have that adopted: `yanchat redeliver --adopt HOST:PORT`"


async def remove_topics(
    cluster: Cluster, registered: Collection[str], agreed: Iterable[Topic], removed: set[str]
) -> None:
    """Remove those that may still go, and put their names into `removed`."""
    import trio

    from yanchat.backends import leftovers_of

    leftovers = leftovers_of(cluster.settings)
    assert leftovers is not None
    wanted = {topic.leftover.topic for topic in agreed}
    for topic in await find_topics(cluster, registered):
        may_go = topic.removable and topic.leftover.topic in wanted
        if may_go and await trio.to_thread.run_sync(leftovers.remove, topic.leftover):
            removed.add(topic.leftover.topic)
    for name in sorted(wanted - removed):
        warn(f"{name} stays: it is in use again.")
