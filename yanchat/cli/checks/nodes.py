"""The nodes: whether clients reach them, whether they are ready, their clocks, and what the registry says of them."""

from __future__ import annotations

import datetime
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import httpx
import trio

from yanchat.admin.client import NotRunning, Remote, ask_node, understood
from yanchat.cli.checks import Finding, failure, ok, warning
from yanchat.cli.checks.files import expiry
from yanchat.cli.checks.machine import descriptors
from yanchat.cli.checks.services import skew
from yanchat.cli.metrics import read_metrics
from yanchat.cli.nodes import Cluster, Here
from yanchat.cli.render import span
from yanchat.errors import YanchatError
from yanchat.names import slug

if TYPE_CHECKING:
    from yanchat.model import NodeRecord

ANSWERED_WITHIN: Final = 5.0
Look = Callable[[], Awaitable[list[Finding]]]


async def look_at_nodes(cluster: Cluster, registered: Sequence[NodeRecord] | None, token: str) -> list[Finding]:
    """All that are registered, if that is known, and all whose directory is here."""
    records = registered or ()
    try:
        here = {one.directory.name: one for one in await cluster.nodes_here()}
    except YanchatError:  # there are none, or they are another user's, which is said elsewhere
        here = {}
    known = {slug(record.node): record for record in records}
    looks: list[Look] = []
    for record in records:
        if record.state != "dead":
            looks.append(partial(_reach, record.node, record.url))
    for name in sorted(here.keys() | known.keys()):
        looks.append(partial(_ask, cluster, here.get(name), known.get(name), token))
    found: list[list[Finding]] = [[] for _ in looks]

    async def look_one(number: int, look: Look) -> None:
        found[number] = await look()

    async with trio.open_nursery() as nursery:  # one that hangs holds up nobody else's answer
        for number, look in enumerate(looks):
            nursery.start_soon(look_one, number, look)
    if not looks and registered is None:
        detail = f"which are registered is not known, and none has its state in {cluster.state}"
        return [warning("nodes", detail, "see what else is found here")]
    if not looks:
        return [
            warning("nodes", "no node is registered, and none has its state here", "start one with `yanchat serve`")
        ]
    all_found = [finding for findings in found for finding in findings]
    return all_found or [
        ok("nodes", "none is registered; those of this machine are stopped, and nothing waits in them")
    ]


# -- as a client sees it -----------------------------------------------------------------------------------------------
async def _reach(node: str, url: str) -> list[Finding]:
    """Ask where clients connect: a node answers a request without an upgrade, and says what time it is."""
    at = url.replace("ws", "http", 1)
    timeout = httpx.Timeout(ANSWERED_WITHIN)
    before = time.time()
    try:
        async with httpx.AsyncClient(verify=False, timeout=timeout, trust_env=False) as http:  # noqa: S501 - see below
            response = await http.get(at)
            after = time.time()
            certificate = _certificate(response)
    except httpx.RemoteProtocolError:
        detail = f"{node} closes a connection to {url} without an answer"
        return [warning("nodes.reachable", detail, "see its log; a node behind a proxy answers only that one")]
    except (httpx.TransportError, httpx.InvalidURL) as error:
        why = "no answer in time" if isinstance(error, httpx.TimeoutException) else str(error) or type(error).__name__
        fix = "see whether it runs, node.advertise, and the network and firewall between"
        return [failure("nodes.reachable", f"{node} is registered, but {url} cannot be reached: {why}", fix)]
    return [ok("nodes.reachable", f"{url} answers"), *_clock(node, response.headers, before, after), *certificate]


def _clock(node: str, headers: httpx.Headers, before: float, after: float) -> Iterator[Finding]:
    try:
        date = parsedate_to_datetime(headers["date"]).timestamp()
    except (KeyError, ValueError):
        return
    yield skew("clock.nodes", node, date - after, date + 1 - before)  # the field has no fractions


def _certificate(response: httpx.Response) -> list[Finding]:
    """What is served, whoever has issued it: when it ends is all that is asked here."""
    from cryptography import x509

    ssl_object = response.extensions["network_stream"].get_extra_info("ssl_object")
    data = ssl_object.getpeercert(binary_form=True) if ssl_object is not None else None
    if not data:
        return []
    until: datetime.datetime = x509.load_der_x509_certificate(data).not_valid_after_utc
    return [expiry("certificate.served", f"what {response.url.netloc.decode()} serves", until)]


# -- as it sees itself -------------------------------------------------------------------------------------------------
async def _ask(cluster: Cluster, here: Here | None, record: NodeRecord | None, token: str) -> list[Finding]:
    node = record.node if record is not None else here.name if here is not None else ""
    dead = record is None or record.state == "dead"
    at = _place(here, record, token)
    if at is None:
        if record is not None and not dead:
            return [_unasked(record, cluster)]
        detail = f"{node} is registered and dead, and its state is not on this machine"
        return [warning("nodes.ready", detail, "start it, or forget it: `yanchat servers --repair`")]
    try:
        understood(await ask_node(at, "GET", "/readyz", within=ANSWERED_WITHIN), bool, "ready")
    except NotRunning as error:
        if here is not None and dead:
            return await _waiting(node, here, registered=record is not None)
        return [
            failure("nodes.ready", f"{node} is registered, but its admin HTTP does not answer: {error}", "see its log")
        ]
    except YanchatError as error:
        fix = "see its log, and what else is found here; one that hangs has to be killed"
        return [failure("nodes.ready", f"{node} is not ready: {error}", fix)]
    return [ok("nodes.ready", f"{node} is ready"), *(await _descriptors(node, at, cluster))]


def _unasked(record: NodeRecord, cluster: Cluster) -> Finding:
    """Whether clients reach it has been seen; what it says of itself has not."""
    if record.admin:
        why, fix = f"it answers at {record.admin} only to who has the token", "give --admin-token-file"
    else:
        why, fix = f"it has no admin address, and its state is not in {cluster.state}", "set admin.listen there"
    return warning("nodes.ready", f"{record.node} was not asked: {why}", f"{fix}, or call this where its state is")


def _place(here: Here | None, record: NodeRecord | None, token: str) -> Path | Remote | None:
    """Where its admin HTTP is; None when it cannot be asked from here."""
    if here is not None:
        return here.directory / "admin.sock"
    return Remote(record.admin, token) if record is not None and record.admin and token else None


async def _waiting(node: str, here: Here, *, registered: bool) -> list[Finding]:
    """A node of this machine that does not run: whether anything waits in it."""
    from yanchat.backends.sqlite.books import FileBooks

    file = here.directory / "node.db"
    if not file.exists():
        return []
    books = FileBooks(file)
    try:
        waits, unfinished = await books.waits(), await books.unfinished()
    except YanchatError as error:
        return [
            failure("nodes.ready", f"{node} does not run, and its messages cannot be read: {error}", "see the disk")
        ]
    fix = f"start it: `{here.command}`; or move them: `yanchat redeliver --adopt {node}`"
    if waits.pending or waits.untold:
        counts = ((waits.pending, "message"), (waits.untold, "notice"))
        what = " and ".join(f"{count} {noun}{'s' * (count > 1)}" for count, noun in counts if count)
        verb = "waits" if waits.pending + waits.untold == 1 else "wait"
        return [warning("nodes.ready", f"{node} does not run, and {what} {verb} in it", fix)]
    if unfinished:
        detail = f"{node} does not run; nothing waits in it, but it has acks or given-up messages that others may need"
        return [warning("nodes.ready", detail, fix) if registered else ok("nodes.ready", detail)]
    goes = f"{here.directory} may be removed if it is to stay away"
    if registered:
        fix = f"start it: `{here.command}`; or remove the directory, then `yanchat servers --repair`"
        return [warning("nodes.ready", f"{node} has died; nothing is left in it: {goes}", fix)]
    return [ok("nodes.ready", f"{node} does not run, and nothing is left in it: {goes}")]


async def _descriptors(node: str, at: Path | Remote, cluster: Cluster) -> list[Finding]:
    try:
        metrics = await read_metrics(at)
    except YanchatError:
        return []  # it has answered before; so it is of another version
    may, used = metrics.process("max_fds"), metrics.process("open_fds")
    if may is None or used is None:
        return []
    return [descriptors("descriptors", node, int(may), int(used), cluster.settings.limits.connections)]


# -- as the registry sees them -----------------------------------------------------------------------------------------
async def look_at_registry(cluster: Cluster) -> list[Finding]:
    """Whether it contradicts itself; takes some seconds when it seems to."""
    from yanchat.cli.repair import find_contradictions

    try:
        found = await find_contradictions(cluster)
    except YanchatError as error:
        return [failure("registry", str(error), "see what else is found here")]
    if not found:
        return [ok("registry", "it does not contradict itself")]
    more = f", and {len(found) - 1} more" if len(found) > 1 else ""
    return [failure("registry", f"{found[0].sentence}{more}", "yanchat servers --check, then --repair")]


def beats(records: Sequence[NodeRecord], lease: float) -> Iterator[Finding]:
    """Whether heartbeats come in time."""
    for record in records:
        if record.state != "dead" and record.age > lease / 2:
            yield warning(
                "nodes.heartbeat",
                f"{record.node} has last been heard of {span(record.age)} ago",
                "see its log and load",
            )
