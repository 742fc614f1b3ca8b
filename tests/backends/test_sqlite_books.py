"""The books of an SQLite table that nobody serves, that an earlier version wrote, or that was tampered with."""

from __future__ import annotations

import os
from pathlib import Path

import apsw
import pytest
import trio

from tests.contracts.examples import BOB, THERE, acked, message, order_at
from yanchat.backends.sqlite.books import FileBooks
from yanchat.backends.sqlite.store import open_store
from yanchat.errors import NotFound, StoreUnavailable
from yanchat.model import ACKED, GIVEN_UP, Envelope, Step
from yanchat.protocol.books import ByState, imbalances


@pytest.fixture
async def file(tmp_path: Path) -> Path:
    """A table with four messages: two pending, one delivered, one given up; closed."""
    path = tmp_path / "node.db"
    async with open_store(path) as store:
        await store.add([message(1), message(2), message(3, request="r"), message(4)])
        await store.record([Step(order_at(2), ACKED, ACKED, settled_at=9, told_at=9)])
        await store.record([Step(order_at(3), GIVEN_UP, GIVEN_UP, settled_at=9, told_at=9)])
    return path


def tamper(path: Path, sql: str) -> None:
    connection = apsw.Connection(str(path))
    connection.execute(sql)
    connection.close()


def content(path: Path) -> dict[str, bytes]:
    """What is in the directory; not the index of the log, which is anybody's, nor an empty log."""
    files = {one.name: one.read_bytes() for one in path.parent.iterdir() if not one.name.endswith("-shm")}
    return {name: data for name, data in files.items() if data}


async def in_doubt(path: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """The sentences about numbers, and the ids."""
    account = await FileBooks(path).account()
    return list(imbalances(account)), [(doubt.message_id, doubt.to) for doubt in account.doubts]


async def test_books_in_order_show_nothing(file: Path) -> None:
    assert await in_doubt(file) == ([], [])


async def test_reading_changes_nothing_also_after_a_kill(file: Path) -> None:
    """Closed, and as a killed node leaves it: the last commits in the log alone."""
    before = content(file)
    assert (await FileBooks(file).account()).counted == ByState(2, 1, 1)
    assert content(file) == before
    async with open_store(file) as store:
        await store.add([message(5)])
        killed = file.parent / "killed"
        killed.mkdir()
        for name in ("node.db", "node.db-wal"):
            (killed / name).write_bytes((file.parent / name).read_bytes())
    before = content(killed / "node.db")
    assert "node.db-wal" in before
    assert (await FileBooks(killed / "node.db").account()).counted == ByState(3, 1, 1)
    assert content(killed / "node.db") == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
async def test_a_directory_that_cannot_be_written_is_read(file: Path) -> None:
    file.parent.chmod(0o500)
    try:
        assert (await FileBooks(file).account()).counted == ByState(2, 1, 1)
    finally:
        file.parent.chmod(0o700)


async def test_the_books_are_of_one_instant_while_the_node_goes_on(tmp_path: Path) -> None:
    """Whatever is written meanwhile, what was counted is what is there."""
    path = tmp_path / "node.db"
    async with open_store(path) as store, trio.open_nursery() as nursery:

        async def write() -> None:
            for at in range(1, 10_000):
                await store.add([message(at)])
                await store.record([Step(order_at(at), ACKED, ACKED, settled_at=9)])

        nursery.start_soon(write)
        seen = set()
        while len(seen) < 20:
            account = await store.books.account()
            assert list(imbalances(account)) == []
            seen.add(account.accepted)
        nursery.cancel_scope.cancel()


async def test_no_file_and_no_table_are_said(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        await FileBooks(tmp_path / "node.db").account()
    (tmp_path / "node.db").write_bytes(b"nonsense" * 1000)
    with pytest.raises(StoreUnavailable):
        await FileBooks(tmp_path / "node.db").account()


# -- an earlier version ------------------------------------------------------------------------------------------------
async def test_in_a_file_without_counters_the_books_begin_with_what_is_there(file: Path) -> None:
    """It had counted the accepted and the purged; unopened it is read, and nothing is said to be proven."""
    async with open_store(file) as store:
        assert await store.purge(3, 9) == 1  # the delivered one
        await store.moved([message(4)[0].key], 9)
    tamper(file, "DELETE FROM counters WHERE name IN ('delivered', 'given_up', 'delivered_purged', 'moved_purged')")
    account = await FileBooks(file).account()
    assert account.counted is None
    assert account.held == ByState(1, 0, 1, 1)
    for _ in range(2):
        async with open_store(file) as store:
            account = await store.books.account()
            assert account.counted == ByState(1, 1, 1, 1)
            assert account.purged == ByState(delivered=1)
            assert list(imbalances(account)) == []
            assert (await store.totals()).delivered == 1


# -- tampered with -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("sql", "says"),
    [
        (f"DELETE FROM outbox WHERE ord = {order_at(1)}", ["2 pending were counted, but 1 are there: 1 missing"]),
        (f"DELETE FROM outbox WHERE ord = {order_at(2)}", ["1 delivered were counted, but 0 are there: 1 missing"]),
        (f"UPDATE outbox SET rank = 2 WHERE ord = {order_at(1)}", ["1 missing", "1 too many"]),
        (f"UPDATE outbox SET moved_at = 5 WHERE ord = {order_at(1)}", ["1 missing", "1 too many"]),
        ("UPDATE counters SET value = value + 1 WHERE name = 'added'", ["3 pending were counted"]),
        ("UPDATE counters SET value = value - 1 WHERE name = 'delivered'", ["3 pending", "0 delivered"]),
        ("UPDATE counters SET value = value + 1 WHERE name = 'delivered_purged'", ["1 were purged: 1 too many"]),
        ("DELETE FROM counters WHERE name = 'given_up'", ["3 pending", "0 expired"]),
    ],
)
async def test_whatever_is_changed_behind_the_nodes_back_is_found(file: Path, sql: str, says: list[str]) -> None:
    tamper(file, sql)
    sentences, _ = await in_doubt(file)
    assert len(sentences) == len(says)
    assert all(part in sentence for part, sentence in zip(says, sentences, strict=True))


async def test_a_row_that_was_not_accepted_is_found(file: Path) -> None:
    """A copy of another one, under an id of its own."""
    tamper(
        file,
        f"CREATE TEMP TABLE copy AS SELECT * FROM outbox WHERE ord = {order_at(1)};"
        "UPDATE copy SET ord = ord + 7, message_id = randomblob(16); INSERT INTO outbox SELECT * FROM copy",
    )
    assert (await in_doubt(file))[0] == ["2 pending were counted, but 3 are there: 1 too many"]


@pytest.mark.parametrize(
    ("sql", "which"),
    [
        (f"UPDATE outbox SET rank = 0 WHERE ord = {order_at(2)}", message(2)[0]),
        (f"UPDATE outbox SET rank = 1 WHERE ord = {order_at(2)}", message(2)[0]),
        (f"UPDATE outbox SET rank = 0 WHERE ord = {order_at(3)}", message(3, request="r")[0]),
        (f"DELETE FROM outbox WHERE ord = {order_at(3)}", message(3, request="r")[0]),
    ],
)
async def test_a_row_that_contradicts_itself_is_named(file: Path, sql: str, which: Envelope) -> None:
    """A lowered rank, and a request's row that has gone: the id is told."""
    tamper(file, sql)
    sentences, ids = await in_doubt(file)
    assert sentences
    assert ids == [which.key]


async def test_acks_are_read_of_a_dead_node_too(file: Path) -> None:
    async with open_store(file) as store:
        await store.ack([acked(message(7)[0], THERE, at=8)])
    (ack,) = await FileBooks(file).held_acks(0, 0, 9)
    assert (ack.to, ack.origins, ack.at, ack.left) == (BOB, (THERE,), 8, False)
