"""The trace that a message was sent in is stored with it, and goes with it from node to node."""

from __future__ import annotations

from tests.contracts.backends import Buses, Store
from tests.contracts.examples import ANN, BOB, HERE, THERE, message
from tests.contracts.test_bus import publish, take
from yanchat.model import ACKED, Notice, Row, SessionId
from yanchat.ports import RowFilter
from yanchat.protocol.records import Push, Tell

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def test_a_trace_stays_with_its_message(store: Store) -> None:
    """However the row is read, with and without an id of its own."""
    (traced,), (requested,), (plain,) = message(1, trace=TRACE), message(2, request="r-1", trace=TRACE), message(3)
    await store.add([[traced], [requested], [plain]])
    for rows in (
        await store.search(RowFilter()),
        await store.find([traced.key, requested.key, plain.key]),
        await store.open_rows(BOB, "messages", 9, 999),
        await store.movable(0, 9),
        await store.settle([one.key for one in (traced, requested, plain)], rank=ACKED, told=0, at=5),
        await store.open_rows(ANN, "notices", 9, 999),
    ):
        assert {row.envelope.message_id: row.envelope.traceparent for row in rows if row is not None} == {
            traced.message_id: TRACE,
            requested.message_id: TRACE,
            plain.message_id: "",
        }


async def test_a_trace_comes_with_an_adopted_row(store: Store) -> None:
    (traced,) = message(1, trace=TRACE)
    (came,) = await store.adopt([Row(traced)], at=9)
    assert came.envelope == traced
    (row,) = await store.search(RowFilter())
    assert row.envelope == traced


async def test_a_trace_goes_over_the_bus_with_its_message_and_its_notice(buses: Buses) -> None:
    (traced,) = message(1, trace=TRACE)
    told = Notice(traced.order, traced.message_id, BOB, ANN, "r", ACKED, 9, TRACE)
    sessions = (SessionId("s1"),)
    wanted = [Push(HERE, traced, sessions, "first", False), Tell(HERE, told, sessions)]
    async with buses.connect(HERE) as here, buses.connect(THERE) as there, there.subscribe("message") as batches:
        await publish(here, THERE, wanted)
        assert await take(batches, 2) == wanted
