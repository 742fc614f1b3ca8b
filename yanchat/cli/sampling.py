"""What the nodes count, looked at again and again: rates and latencies are what happened between two looks."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import trio

from yanchat.admin.client import NotRunning, Remote
from yanchat.cli.metrics import Metrics, read_metrics
from yanchat.cli.nodes import Cluster
from yanchat.errors import YanchatError
from yanchat.names import slug

if TYPE_CHECKING:
    from yanchat.model import NodeRecord

ALL: Final = "all"
Buckets = Mapping[float, float]
RATES: Final = {
    "accepted_per_s": "messages_accepted_total",
    "delivered_per_s": "messages_delivered_total",
    "redelivered_per_s": "messages_redelivered_total",
    "refused_per_s": "messages_refused_total",
}
LATENCIES: Final = {"accept": "accept_seconds", "delivery": "delivery_seconds", "commit": "store_commit_seconds"}
QUANTILES: Final = {"p50_s": 0.5, "p99_s": 0.99}
SUMS: Final = {
    "sessions": "sessions",
    "connections": "connections",
    "pending": "outbox_pending_messages",
    "lag": "bus_lag_records",
}


class Sample(NamedTuple):
    """One node at one instant. `metrics` is None when it does not say."""

    node: str
    state: str
    """As the registry says; up: but not ready: `unready`."""
    incarnation: str
    sessions: int | None
    at: float
    metrics: Metrics | None
    why: str = ""
    """Why it does not say."""


class Sampler:
    """`look` gives a row for each node, and one for all of them."""

    def __init__(self, cluster: Cluster, token: str) -> None:
        self._cluster, self._token = cluster, token
        self._before: dict[tuple[str, str], Sample] = {}
        self.silent: list[str] = []
        """Why nodes did not answer the last look."""

    async def look(self) -> list[dict[str, Any]]:
        """Ask all nodes at the same time. Unreachable: there is none."""
        samples = await self._ask_all()
        rows = []
        merged: dict[str, dict[float, float]] = {name: {} for name in LATENCIES}
        for sample in samples:
            before = self._before.get((sample.node, sample.incarnation))
            spread = _latencies(before, sample)
            for name, buckets in spread.items():
                for bound, count in buckets.items():
                    merged[name][bound] = merged[name].get(bound, 0.0) + count
            rows.append(_row(before, sample, spread))
        self._before = {(sample.node, sample.incarnation): sample for sample in samples if sample.metrics is not None}
        self.silent = [sample.why for sample in samples if sample.why]
        return [*rows, _sum(rows, merged)]

    async def _ask_all(self) -> list[Sample]:
        records: Sequence[NodeRecord] = ()
        with suppress(YanchatError):  # its nodes say it themselves
            records = await self._cluster.records()
        here = {one.directory.name: one for one in await self._cluster.nodes_here()}
        known = {slug(record.node): record for record in records}
        found: dict[str, Sample] = {}

        async def ask_one(name: str) -> None:
            record, directory = known.get(name), here.get(name)
            node = record.node if record is not None else here[name].name
            at: Path | Remote | None = directory.directory / "admin.sock" if directory is not None else None
            if at is None and record is not None and record.admin and self._token:
                at = Remote(record.admin, self._token)
            metrics, why = await _ask(node, at)
            if record is None and metrics is None:
                return  # it has its directory here, and was stopped
            state = record.state if record is not None else "unknown"
            if state == "up" and metrics is not None and metrics.value("ready") == 0:
                state = "unready"
            incarnation = record.incarnation if record is not None else ""
            sessions = record.sessions if record is not None else None
            found[name] = Sample(
                node, state, incarnation, sessions, time.monotonic(), metrics, "" if state == "dead" else why
            )

        async with trio.open_nursery() as nursery:
            for name in known.keys() | here.keys():
                nursery.start_soon(ask_one, name)
        return [found[name] for name in sorted(found)]


async def _ask(node: str, at: Path | Remote | None) -> tuple[Metrics | None, str]:
    if at is None:
        return None, f"{node} cannot be asked from here; see admin.listen there, and --admin-token-file."
    try:
        return await read_metrics(at), ""
    except NotRunning:
        return None, f"{node} does not run."
    except YanchatError as error:
        return None, str(error)


def _row(before: Sample | None, now: Sample, spread: Mapping[str, Buckets]) -> dict[str, Any]:
    metrics = now.metrics
    row: dict[str, Any] = {"node": now.node, "state": now.state}
    for key, name in SUMS.items():
        row[key] = _whole(metrics.total(name) if metrics is not None else None)
    if row["sessions"] is None:
        row["sessions"] = now.sessions
    for key, name in RATES.items():
        row[key] = _rate(before, now, name)
    row |= _quantiles(spread)
    row["oldest_pending_age_s"] = metrics.value("outbox_oldest_pending_age_seconds") if metrics is not None else None
    return row


def _sum(rows: Iterable[Mapping[str, Any]], merged: Mapping[str, Buckets]) -> dict[str, Any]:
    rows = list(rows)
    up = sum(row["state"] == "up" for row in rows)
    total: dict[str, Any] = {"node": ALL, "state": f"{up} up"}
    for key in (*SUMS, *RATES):
        known = [row[key] for row in rows if row[key] is not None]
        total[key] = round(sum(known), 1) if known else None
    total |= _quantiles(merged)
    ages = [row["oldest_pending_age_s"] for row in rows if row["oldest_pending_age_s"] is not None]
    total["oldest_pending_age_s"] = max(ages) if ages else None
    return total


def _rate(before: Sample | None, now: Sample, name: str) -> float | None:
    if before is None or before.metrics is None or now.metrics is None:
        return None
    first, last = before.metrics.total(name), now.metrics.total(name)
    if first is None or last is None or last < first:
        return None
    return round((last - first) / max(now.at - before.at, 1e-3), 1)


def _latencies(before: Sample | None, now: Sample) -> dict[str, Buckets]:
    """How many values lay up to each bound, since the look before."""
    if before is None or before.metrics is None or now.metrics is None:
        return {}
    spread: dict[str, Buckets] = {}
    for key, name in LATENCIES.items():
        first = before.metrics.buckets(name)
        spread[key] = {bound: count - first.get(bound, 0.0) for bound, count in now.metrics.buckets(name).items()}
    return spread


def _quantiles(spread: Mapping[str, Buckets]) -> dict[str, float | None]:
    return {
        f"{latency}_{key}": quantile(spread.get(latency, {}), q)
        for latency in LATENCIES
        for key, q in QUANTILES.items()
    }


def quantile(buckets: Buckets, q: float) -> float | None:
    """The value below which that part lies, as Prometheus's histogram_quantile tells it; None when there are none.

    >>> quantile({1.0: 50, 2.0: 100, float("inf"): 100}, 0.75), quantile({1.0: 0.0}, 0.5)
    (1.5, None)
    """
    bounds = sorted(buckets)
    rank = q * max(buckets.values(), default=0.0)
    if rank <= 0:
        return None
    below, lower = 0.0, 0.0
    for bound in bounds:
        if buckets[bound] >= rank:
            inside = buckets[bound] - below
            return lower if bound == float("inf") else round(lower + (bound - lower) * (rank - below) / inside, 6)
        below, lower = buckets[bound], bound
    return lower


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
