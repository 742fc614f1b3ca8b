"""`yanchat doctor`: is all that a cluster needs as it has to be? What is looked at, and how, is in checks/."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from yanchat.cli.call import Call, run_async
from yanchat.cli.nodes import LEASE, Cluster, hush
from yanchat.cli.ordering import TOKEN_FILE
from yanchat.cli.render import note
from yanchat.errors import Unreachable, YanchatError

if TYPE_CHECKING:
    from yanchat.cli.checks import Finding
    from yanchat.model import NodeRecord

UNHEALTHY = 10
Group = Callable[[], Awaitable[list["Finding"]]]
_STYLES = {"ok": "", "warn": "yellow", "fail": "red"}


def doctor(
    call: Call,
    admin_token_file: TOKEN_FILE = None,
) -> int:
    """Look at everything that nodes need, and say what is wrong and what to do about it.

    Redis and Kafka and how they are set up, the disk, SQLite, clocks, limits, permissions and certificates, and every
    node that is registered or has its state here. Nothing is changed. Ends with 10 when something is wrong; a warning
    is no failure.
    """
    from yanchat.cli.witnesses import admin_token

    cluster = call.cluster()
    hush()
    try:
        token = admin_token(cluster, admin_token_file)
    except YanchatError:
        token = ""  # a finding says why
    counts: Counter[str] = Counter()

    def show(finding: Finding) -> None:
        counts[finding.status] += 1
        sentence = f"{finding.status:<5}{finding.check:<20} {finding.detail}"
        if finding.fix:
            sentence += f"\n{'':26}{finding.fix}"
        call.out.item(finding._asdict(), sentence, _STYLES[finding.status])

    call.out.begin_list()
    run_async(_examine, cluster, token, show)
    note(_sum_up(counts["fail"], counts["warn"]))
    return UNHEALTHY if counts["fail"] else 0


def _sum_up(failures: int, warnings: int) -> str:
    """
    >>> _sum_up(0, 0), _sum_up(1, 2)
    ('All is well.', '1 failure, 2 warnings.')
    """
    counts = [(failures, "failure"), (warnings, "warning")]
    said = ", ".join(f"{count} {noun}{'s' * (count > 1)}" for count, noun in counts if count)
    return f"{said or 'All is well'}."


async def _examine(cluster: Cluster, token: str, show: Callable[[Finding], None]) -> None:
    """All groups at the same time; each is shown as a whole, in their order."""
    import trio

    from yanchat.cli.checks.files import look_at_files
    from yanchat.cli.checks.machine import look_at_machine
    from yanchat.cli.checks.nodes import beats, look_at_nodes, look_at_registry
    from yanchat.cli.checks.services import look_at_kafka, look_at_redis

    settings, state = cluster.settings, cluster.state
    known, failed = await _records(cluster)
    records = known or []
    groups: list[Group] = [partial(_in_thread, partial(look_at_machine, settings, state))]
    groups.append(partial(_in_thread, partial(look_at_files, settings, state)))
    if settings.node.profile == "cluster":
        groups.append(partial(_in_thread, partial(look_at_redis, settings)))
        groups.append(partial(_in_thread, partial(look_at_kafka, settings, [record.node for record in records])))
    groups.append(partial(look_at_nodes, cluster, known, token))
    if records:
        groups.append(partial(look_at_registry, cluster))
    found: dict[int, list[Finding]] = {}
    done = [trio.Event() for _ in groups]

    async def look(number: int, group: Group) -> None:
        found[number] = await group()
        done[number].set()

    async with trio.open_nursery() as nursery:
        for number, group in enumerate(groups):
            nursery.start_soon(look, number, group)
        for number, event in enumerate(done):
            await event.wait()
            for finding in found[number]:
                show(finding)
    for finding in (*failed, *beats(records, LEASE)):
        show(finding)


async def _records(cluster: Cluster) -> tuple[list[NodeRecord] | None, Sequence[Finding]]:
    """What the registry says of all nodes; None when that is not known, and why."""
    from yanchat.cli.checks import failure
    from yanchat.errors import ConfigError, RegistryUnavailable

    try:
        return await cluster.records(), ()
    except (RegistryUnavailable, ConfigError) as error:
        redis_says = cluster.settings.node.profile == "cluster"
        return None, () if redis_says else (failure("registry", str(error), "look at the disk"),)
    except Unreachable as error:
        if not cluster.inhabited:  # no node has ever run here
            return [], ()
        return None, (failure("registry", str(error), "call this with the same settings as the nodes"),)
    except YanchatError as error:
        return None, (failure("registry", str(error), "call this as the user that runs the nodes; see the disk"),)


async def _in_thread(look: Callable[[], list[Finding]]) -> list[Finding]:
    import trio

    return await trio.to_thread.run_sync(look, abandon_on_cancel=True)
