"""A message table that an earlier version has written is opened by this one, and nothing of it is lost or changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import apsw

from tests.contracts.examples import ANN, BOB, CID, message
from yanchat.backends.sqlite.store import open_store
from yanchat.model import ACKED, MessageId, Step, Totals
from yanchat.ports import RowFilter

FIRST = Path(__file__).with_name("version-1.sql")
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def tables(path: Path) -> dict[str, list[Any]]:
    """All that the file holds, by table; without the columns and counters that version 1 had not."""
    db = apsw.Connection(str(path))
    (columns,) = [row[0] for row in db.execute("SELECT group_concat(name) FROM pragma_table_info('outbox')")]
    kept = ",".join(column for column in columns.split(",") if column != "traceparent")
    return {
        "outbox": db.execute(f"SELECT {kept} FROM outbox ORDER BY ord").fetchall(),
        "counters": db.execute(
            "SELECT * FROM counters WHERE name IN ('added', 'adopted', 'moved', 'place', 'published') ORDER BY name"
        ).fetchall(),
        **{
            name: db.execute(f"SELECT * FROM {name} ORDER BY 1").fetchall()
            for name in ("ids", "inbox", "marks", "meta")
        },
    }


async def test_a_table_of_version_1_is_brought_up_and_keeps_everything(tmp_path: Path) -> None:
    path = tmp_path / "node.db"
    apsw.Connection(str(path)).execute(FIRST.read_text())
    before = tables(path)
    assert len(before["outbox"]) == 8
    assert len(before["inbox"]) == 1
    for _ in range(2):
        async with open_store(path) as store:
            assert tables(path) == before
            assert store.store_id == "4fbe047df0410ca215bfb67109621eae"
            expected = Totals(pending=4, delivered=2, expired=1, untold=1, moved=1, adopted=1)
            assert await store.totals() == expected
            rows = await store.search(RowFilter())
            assert [row.envelope.text for row in rows][3] == "日本 'quoted'"
            assert {row.envelope.traceparent for row in rows} == {""}
            assert [row.envelope.recipient for row in await store.open_rows(CID, "messages", 9, 999)] == [CID, CID, CID]
            assert len(await store.open_rows(ANN, "notices", 9, 999)) == 1
            assert await store.known([(MessageId("000000001f40700083ff533bdd726adc"), ANN)]) == [True]
            assert await store.last_order() == 7000 << 16


async def test_a_table_of_version_1_takes_what_this_version_stores(tmp_path: Path) -> None:
    path = tmp_path / "node.db"
    apsw.Connection(str(path)).execute(FIRST.read_text())
    (new,) = message(9000, BOB, trace=TRACE)
    async with open_store(path) as store:
        assert await store.add([[new]]) == [[True]]
    async with open_store(path) as store:
        (row,) = await store.find([new.key])
        assert row is not None
        assert row.envelope == new
        (old,) = message(3000, text="日本 'quoted'")
        await store.record([Step(old.order, ACKED, ACKED, settled_at=9100, told_at=9200)])
        assert (await store.totals()).delivered == 3
