"""The message table on SQLite: what it does about a broken file, a full disk, kill -9; and what its calls cost."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.contracts.examples import BOB, CID, THERE, acked, message
from tests.small_disk import SmallDisk, small_disk
from yanchat.backends.sqlite.database import Database
from yanchat.backends.sqlite.store import open_store
from yanchat.errors import StoreUnavailable
from yanchat.model import ACKED, Row, Step, Totals
from yanchat.ports import RowFilter


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.db"


# -- the file ----------------------------------------------------------------------------------------------------------
async def test_a_broken_store_file_is_told_by_its_name(path: Path) -> None:
    path.write_bytes(b"SQLite format 3\0" + b"\xff" * 5000)
    with pytest.raises(StoreUnavailable, match=r"a\.db cannot be opened"):
        async with open_store(path):
            pass


async def test_a_store_that_breaks_while_it_is_open_fails_calls_and_nothing_else(path: Path) -> None:
    async with open_store(path) as store:
        await store.add([message(at, text="x" * 500) for at in range(1, 400)])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] + b"\xff" * (len(whole) // 2))
    async with open_store(path) as store:
        with pytest.raises(StoreUnavailable, match=r"a\.db cannot be used"):
            await store.search(RowFilter())
        assert await store.mark("alive", 1) == 0


async def test_a_directory_that_goes_away_is_not_called_a_full_disk(tmp_path: Path) -> None:
    directory = tmp_path / "state"
    directory.mkdir()
    async with open_store(directory / "a.db", disk_reserve=1) as store:
        directory.rename(tmp_path / "away")
        with pytest.raises(StoreUnavailable, match="was removed or replaced"):
            await store.add([message(1)])


async def test_the_file_of_a_store_does_not_grow_when_as_much_goes_as_comes(path: Path) -> None:
    async with open_store(path) as store:
        sizes = []
        for turn in range(1, 30):
            messages = [message(turn * 1000 + at, request=f"{turn}-{at}", text="x" * 300) for at in range(100)]
            await store.add(messages)
            await store.record([Step(one[0].order, ACKED, ACKED) for one in messages])
            await store.ack([acked(message(turn * 1000 + at)[0], THERE, at=turn * 1000) for at in range(100)])
            while await store.purge(turn * 1000 - 1000, 50):
                pass
            sizes.append(await store._lane.run(lambda db: db.connection.pragma("page_count")))
        assert sizes[-1] <= sizes[4] * 1.5


# -- a full disk -------------------------------------------------------------------------------------------------------
@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", megabytes=4) as disk:
        yield disk


async def test_a_full_disk_fails_the_call_whole_and_all_is_well_when_there_is_room(disk: SmallDisk) -> None:
    disk.fill(leave=2**21)
    sent = 0
    async with open_store(disk.path / "a.db") as store:
        with pytest.raises(StoreUnavailable, match="full"):
            for at in range(1, 2000):
                await store.add([message(at, BOB, CID, text="x" * 2000)])
                sent = at
        assert not store.healthy()
        assert sent > 20
        with pytest.raises(StoreUnavailable, match="full"):
            await store.add([message(3000, text="x" * 20_000)])
        assert (await store.totals()).pending == 2 * sent
        assert len(await store.open_rows(CID, "messages", 9999, 1 << 30)) == sent

        disk.make_room()
        assert await store.add([message(at, text="x" * 2000) for at in range(4000, 4100)]) == [[True]] * 100
        assert store.healthy()
    async with open_store(disk.path / "a.db") as store:
        assert (await store.totals()).pending == 2 * sent + 100


async def test_a_store_that_cannot_be_made_for_want_of_room_says_so(disk: SmallDisk) -> None:
    disk.fill()
    with pytest.raises(StoreUnavailable, match=r"a\.db cannot be opened: the disk is full; make room"):
        async with open_store(disk.path / "a.db"):
            pass
    disk.make_room()
    async with open_store(disk.path / "a.db") as store:
        assert store.healthy()


async def test_acks_are_recorded_on_a_disk_without_a_byte_if_the_file_has_pages_for_them(disk: SmallDisk) -> None:
    """What stands in the log is brought into the file, and the log begins anew where it is."""
    old, new = [message(at, text="x" * 2000) for at in range(1, 101)], [message(at) for at in range(1001, 1031)]
    async with open_store(disk.path / "a.db") as store:
        await store.add(old)
        await store.record([Step(one[0].order, ACKED, ACKED) for one in old])
        while await store.purge(1000, 50):
            pass
    async with open_store(disk.path / "a.db") as store:
        for one in new:
            await store.add([one])
        disk.fill()
        with pytest.raises(StoreUnavailable, match="full"):
            for _ in range(2):
                for one in new:
                    await store.ack([acked(one[0], own=True)])
        for one in new:
            await store.ack([acked(one[0], own=True)])
        assert (await store.totals()).delivered == 100 + len(new)


async def test_below_the_reserve_nothing_is_accepted_but_acks_still_are(path: Path) -> None:
    async with open_store(path) as store:
        await store.add([message(1), message(2)])
    async with open_store(path, disk_reserve=1 << 62) as store:
        assert store.healthy()
        await store.check()
        assert not store.healthy()
        with pytest.raises(StoreUnavailable, match="nearly full"):
            await store.add([message(3)])
        assert not store.healthy()
        await store.ack([acked(message(1)[0], own=True)])
        await store.record([Step(message(2)[0].order, ACKED)])
        assert not store.healthy()
        assert await store.totals() == Totals(delivered=2, untold=2)


# -- kill -9 -----------------------------------------------------------------------------------------------------------
WRITER = """
    import sys
    from pathlib import Path
    import trio
    from tests.contracts.examples import BOB, CID, message
    from yanchat.backends.sqlite.store import open_store

    async def main():
        async with open_store(Path(sys.argv[1])) as store:
            for at in range(1, 100_000):
                await store.add([message(at, BOB, CID, request=f"r{at}")])
                print(at, flush=True)

    trio.run(main)
"""


@pytest.mark.parametrize("reports", [1, 7, 60])
def test_kill_minus_nine_loses_nothing_that_was_committed(path: Path, reports: int) -> None:
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(WRITER), str(path)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        for _ in range(reports):
            writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
        last = reports + len(writer.stdout.read().splitlines())
    orders = trio.run(_orders, path)
    assert orders[: 2 * last] == [
        order for at in range(1, last + 1) for order in (message(at)[0].order, message(at)[0].order + 1)
    ]
    assert len(orders) in (2 * last, 2 * last + 2)  # the one that was under way: both of its rows, or none


async def _orders(path: Path) -> list[int]:
    async with open_store(path) as store:
        return [row.envelope.order for row in await store.search(RowFilter(limit=1_000_000))]


POINTS = """
    import os, sys
    from pathlib import Path
    import trio
    from tests.contracts.examples import BOB, CID, THERE, acked, message
    from yanchat import failpoint
    from yanchat.backends.sqlite.store import open_store

    async def main():
        async with open_store(Path(sys.argv[1])) as store:
            failpoint.arm(sys.argv[2])
            await store.add([message(1, BOB, CID)])
            await store.ack([acked(message(1)[0], THERE, own=True)])

    trio.run(main)
"""


@pytest.mark.parametrize(
    ("point", "pending", "known"),
    [
        ("before-commit", 0, False),
        ("after-commit", 2, False),
        ("before-ack-commit", 2, False),
        ("after-ack-commit", 1, True),
    ],
)
async def test_a_crash_at_a_fail_point_leaves_all_of_a_call_or_nothing(
    path: Path, point: str, pending: int, known: bool
) -> None:
    died = await trio.run_process([sys.executable, "-c", textwrap.dedent(POINTS), str(path), point], check=False)
    assert died.returncode == -signal.SIGKILL
    async with open_store(path) as store:
        assert (await store.totals()).pending == pending
        assert await store.known([message(1)[0].key]) == [known]
        assert len(await store.unsent(0, 9)) == known


# -- cost --------------------------------------------------------------------------------------------------------------
async def test_no_question_but_a_persons_reads_the_table_from_end_to_end(path: Path) -> None:
    seen: dict[str, object] = {}

    def listen(_: object, sql: str, values: object) -> bool:
        seen.setdefault(sql, values)
        return True

    by_order, by_request = message(1), message(2, request="r")
    keys = [by_order[0].key, by_request[0].key]
    async with open_store(path) as store:
        await store._lane.run(lambda db: setattr(db.connection, "exec_trace", listen))
        await store.add([by_order, by_request])
        await store.add([by_order, by_request])
        await store.record([Step(by_order[0].order, ACKED)])
        await store.settle(keys, rank=1, told=1, at=1)
        await store.find(keys)
        await store.known(keys)
        await store.ack([acked(by_order[0], THERE, own=True)])
        for tray in ("messages", "notices"):
            await store.open_rows(BOB, tray, 9, 9999)
        await store.users_with_open_rows("", 9)
        await store.waiting()
        await store.expired(9, 9, 9)
        await store.movable(0, 9)
        await store.moved(keys[:1], 9)
        await store.adopt([Row(by_order[0]), Row(by_request[0]), Row(message(2)[0])], 9)
        await store.totals()
        await store.purge(1, 9)
        await store.last_order()
        for message_id, _ in keys:
            await store.recipients(message_id)
            await store.search(RowFilter(message_id=message_id))
        await store.search(RowFilter(states=("pending", "expired", "untold")))
        await store.unsent(0, 9)

        def plans(db: Database) -> list[str]:
            db.connection.exec_trace = None
            asked = [sql for sql in seen if sql.split()[0] in ("SELECT", "UPDATE", "DELETE")]
            return [row[3] for sql in asked for row in db.execute(f"EXPLAIN QUERY PLAN {sql}", seen[sql])]  # type: ignore[arg-type]

        found = await store._lane.run(plans)
    assert len(found) > 20
    assert {line for line in found if line.startswith("SCAN") and "INDEX" not in line} <= {
        "SCAN CONSTANT ROW",
        "SCAN inbox",  # by purge, as far as its limit
        "SCAN (subquery-1)",
    }


async def test_a_long_search_lets_others_have_their_turn(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yanchat.backends.sqlite.search.SCANNED", 10)
    async with open_store(path) as store:
        await store.add([message(at, CID if at % 50 else BOB) for at in range(1, 501)])
        found: list[int] = []
        turns = 0

        async def search() -> None:
            rows = await store.search(RowFilter(recipient=BOB, limit=9))
            found.extend(row.envelope.accepted_at for row in rows)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(search)
            while not found:
                await store.last_order()
                turns += 1
    assert found == list(range(50, 451, 50))
    assert turns > 20
