"""`GET /metrics`: what a node counts, under the names that Prometheus, `yanchat top` and the dashboard know it by.

Base units (seconds, bytes), and labels of few values only: never a user, a session or an address. Everything is read
when it is asked for; nothing here is touched while messages pass.
"""

from __future__ import annotations

import platform
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from itertools import accumulate
from typing import Any, Final, NamedTuple

import trio
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from yanchat import __version__, build
from yanchat.admin.control import Control
from yanchat.admin.health import unready
from yanchat.errors import YanchatError
from yanchat.node.assembly import Assembly
from yanchat.ports import Outbox
from yanchat.protocol.books import Waits
from yanchat.protocol.records import Topic
from yanchat.telemetry import Counters, Histogram

ASKED_WITHIN: Final = 2.0
"""Seconds for what has to be asked of the disk or the bus; what does not answer is left out of this answer."""

COUNTERS: Final[tuple[tuple[str, str, Callable[[Counters], float]], ...]] = (
    ("messages_accepted", "Rows stored and promised: one for each message and recipient.", lambda c: c.accepted),
    ("messages_delivered", "Rows of this node that their recipients have acked.", lambda c: c.delivered),
    ("messages_acked", "Acks of users here that were recorded.", lambda c: c.acked),
    ("messages_pushed", "Messages handed to sessions here, repeats included.", lambda c: c.pushed),
    ("messages_redelivered", "Rows of this node that were sent once more.", lambda c: c.redelivered),
    (
        "messages_duplicates",
        "Sends that were stored before, and arrivals that were acked before.",
        lambda c: c.duplicates,
    ),
    ("messages_expired", "Rows given up after their lifetime.", lambda c: c.expired),
    ("notices_told", "Notices that senders have.", lambda c: c.told),
    ("bus_published_records", "Records handed to the bus for other nodes.", lambda c: c.bus_published),
    ("bus_publish_errors", "Batches that the bus may not have stored; they are sent again.", lambda c: c.bus_failed),
    ("bus_unreadable_records", "Records of an unknown kind or form, ignored.", lambda c: c.bus_unreadable),
    ("registry_errors", "Failed questions to the registry.", lambda c: c.registry_failed),
    ("store_errors", "Failed calls of the message table.", lambda c: c.store_failed),
)
REFUSALS: Final = (400, 413, 429, 503)
HISTOGRAMS: Final[tuple[tuple[str, str, float, Callable[[Counters], Histogram]], ...]] = (
    ("accept_seconds", "From a message's coming to its receipt.", 1000, lambda c: c.accept_ms),
    ("delivery_seconds", "From a row's acceptance to its recipient's ack.", 1000, lambda c: c.loop_ms),
    ("accept_batch_messages", "Messages that one commit accepts.", 1, lambda c: c.accept_batch),
    ("store_commit_seconds", "Of a writing transaction, until it is on disk.", 1, lambda c: c.commit_seconds),
    ("loop_lag_seconds", "How much later than asked the event loop woke a sleeper.", 1, lambda c: c.loop_lag_seconds),
)


class _Asked(NamedTuple):
    """What had to be waited for; None where there was no answer."""

    waits: Waits | None
    lag: Mapping[Topic, int] | None


def metrics_route(work: Assembly, outbox: Outbox, control: Control) -> Route:
    """The route of one node."""
    process = ProcessCollector(registry=None)

    async def metrics(request: Request) -> Response:
        """What the node counts, as text for Prometheus."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(process)
        registry.register(_Node(work, outbox, control, await _ask(work, outbox)))
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), headers={"content-type": content_type})

    return Route("/metrics", metrics)


async def _ask(work: Assembly, outbox: Outbox) -> _Asked:
    async def answer(of: int, ask: Callable[[], Awaitable[Any]]) -> None:
        try:
            answers[of] = await ask()
        except YanchatError:
            pass  # counters tell of it

    answers: list[Any] = [None, None]
    with trio.move_on_after(ASKED_WITHIN):
        async with trio.open_nursery() as nursery:
            for of, ask in enumerate((outbox.books.waits, work.bus.lag)):
                nursery.start_soon(answer, of, ask)
    return _Asked(*answers)


class _Node(Collector):
    """One answer."""

    def __init__(self, work: Assembly, outbox: Outbox, control: Control, asked: _Asked) -> None:
        self._work, self._outbox, self._control, self._asked = work, outbox, control, asked

    def collect(self) -> Iterator[Metric]:
        counters = self._work.counters
        about = {
            "version": __version__,
            "build": build(),
            "python": platform.python_version(),
            "node": self._work.node,
        }
        yield InfoMetricFamily("yanchat_build", "What runs here, and under which name the others know it.", about)
        for name, text, count in COUNTERS:
            yield CounterMetricFamily(f"yanchat_{name}", text, count(counters))
        yield CounterMetricFamily("yanchat_logins", "Sessions that were opened.", self._work.hub.opened)
        refused = CounterMetricFamily(
            "yanchat_messages_refused", "Sends answered with another status than 200.", labels=["status"]
        )
        for status in REFUSALS:
            refused.add_metric([str(status)], counters.refused[status])
        yield refused
        for name, text, per_unit, of in HISTOGRAMS:
            yield _histogram(f"yanchat_{name}", text, per_unit, of(counters))
        for name, text, value in self._gauges():
            yield GaugeMetricFamily(f"yanchat_{name}", text, value)
        yield from self._by_lane()

    def _gauges(self) -> Iterator[tuple[str, str, float]]:
        work, asked = self._work, self._asked
        yield "ready", "Whether clients are welcome.", not unready(work, self._outbox)
        yield "draining", "Whether the node is stopping.", work.reception.draining
        yield "connections", "Open sockets of clients.", self._control.connections()
        yield "sessions", "Sessions here.", len(work.hub.all())
        yield "users", "Users with a session here.", work.hub.users
        yield "peers", "Other live nodes.", work.lease.peers
        yield "mailboxes", "Users for whom something is in memory.", len(work.mailboxes.boxes)
        yield "mailbox_rows", "Open messages and untold notices in memory.", len(work.mailboxes.items)
        yield "registry_heartbeat_age_seconds", "Since the last heartbeat that succeeded.", work.lease.age
        yield "bus_silent_seconds", "Since the bus was last known to answer; below 10 normally.", work.bus.silent()
        yield "store_healthy", "Whether the message table took the last write.", self._outbox.healthy()
        with suppress(OSError):
            free = self._outbox.free_bytes()
            if free is not None:
                yield "disk_free_bytes", "Free on the disk of the message table.", free
        reserve = self._control.limits().disk_reserve
        yield "disk_reserve_bytes", "With less free than this nothing more is accepted.", reserve
        if asked.waits is not None:
            yield "outbox_pending_messages", "Rows that wait for their recipients' acks.", asked.waits.pending
            yield "outbox_untold_notices", "Settled rows of which the senders do not know yet.", asked.waits.untold
            oldest = asked.waits.oldest
            age = max(0, work.clock.wall() - oldest) / 1000 if oldest else 0.0
            yield "outbox_oldest_pending_age_seconds", "Of the row that has waited longest; 0 when none waits.", age

    def _by_lane(self) -> Iterator[Metric]:
        busy = GaugeMetricFamily(
            "yanchat_lane_busy_seconds", "For how long a driver's thread has not come back.", labels=["lane"]
        )
        for lane, seconds in self._control.lanes().items():
            busy.add_metric([lane], seconds)
        yield busy
        if self._asked.lag is not None:
            lag = GaugeMetricFamily("yanchat_bus_lag_records", "Records for this node not yet done.", labels=["topic"])
            for topic, records in self._asked.lag.items():
                lag.add_metric([topic], records)
            yield lag


def _histogram(name: str, text: str, per_unit: float, of: Histogram) -> Metric:
    buckets = [
        ("+Inf" if bound is None else f"{bound / per_unit:g}", total)
        for bound, total in zip((*of.bounds, None), accumulate(of.counts), strict=True)
    ]
    return HistogramMetricFamily(name, text, buckets, of.sum / per_unit)
