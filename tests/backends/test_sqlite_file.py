"""An SQLite file: opened safely or not at all, its locks waited for, its log bounded."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from tests.small_disk import small_disk
from yanchat.backends.sqlite import database
from yanchat.backends.sqlite.database import Database, Schema
from yanchat.errors import StoreUnavailable

SCHEMA = Schema("CREATE TABLE IF NOT EXISTS t (value)")
LATER = Schema("CREATE TABLE IF NOT EXISTS t (value, more)", ("ALTER TABLE t ADD COLUMN more DEFAULT '-'",))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.db"


@pytest.fixture
def db(path: Path) -> Iterator[Database]:
    opened = Database(path, SCHEMA, full=True)
    yield opened
    opened.close()


def insert(db: Database, value: object = 1) -> None:
    db.begin(True)
    db.execute("INSERT INTO t VALUES (?)", (value,))
    db.commit()


# -- opening -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("full", "level"), [(True, 2), (False, 1)])
def test_the_log_is_written_ahead_and_every_commit_of_messages_is_synced(path: Path, full: bool, level: int) -> None:
    db = Database(path, SCHEMA, full=full)
    assert db.connection.pragma("journal_mode") == "wal"
    assert db.connection.pragma("synchronous") == level
    db.close()


def test_a_file_system_without_a_shared_log_is_refused() -> None:
    with pytest.raises(StoreUnavailable, match="local disk"):
        Database(Path(":memory:"), SCHEMA, full=True)


@pytest.mark.parametrize("name", ["a.db", "a.db-wal"])
@pytest.mark.parametrize("replaced", [False, True])
def test_nothing_is_committed_to_a_file_that_is_not_there_any_more(
    db: Database, path: Path, name: str, replaced: bool
) -> None:
    """It would be gone with the process. What was there can still be read."""
    insert(db)
    file = path.with_name(name)
    kept = file.rename(path.with_name("kept"))
    if replaced:
        file.write_bytes(kept.read_bytes())
    with pytest.raises(StoreUnavailable, match="removed or replaced"):
        insert(db)
    assert db.execute("SELECT count(*) FROM t").fetchall() == [(1,)]
    kept.replace(file)
    insert(db)


def test_nothing_is_committed_to_a_file_that_was_deleted(db: Database, path: Path) -> None:
    """Not even when another link to it is left."""
    insert(db)
    path.with_name("link").hardlink_to(path)
    path.unlink()
    with pytest.raises(StoreUnavailable, match="removed or replaced"):
        insert(db)


def test_nothing_is_committed_to_a_file_that_another_file_system_hides(db: Database, path: Path) -> None:
    """A disk that is mounted late, over the directory in use: whoever starts the node again would find the other."""
    insert(db)
    with small_disk(path.parent, megabytes=1), pytest.raises(StoreUnavailable, match="removed or replaced"):
        insert(db)
    insert(db)


def test_a_file_that_is_no_database_is_refused_and_left_alone(path: Path) -> None:
    path.write_bytes(b"not a database" * 1000)
    with pytest.raises(StoreUnavailable, match=r"a\.db cannot be opened: .+ Check the disk"):
        Database(path, SCHEMA, full=True)
    assert path.read_bytes() == b"not a database" * 1000


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="nowhere"):
        Database(tmp_path / "nowhere" / "a.db", SCHEMA, full=True)


def test_a_file_of_a_later_version_is_refused(db: Database, path: Path) -> None:
    db.connection.pragma("user_version", SCHEMA.version + 1)
    with pytest.raises(StoreUnavailable, match="later yanchat"):
        Database(path, SCHEMA, full=True)


def test_a_file_of_an_earlier_version_is_brought_up_once_and_keeps_what_is_in_it(db: Database, path: Path) -> None:
    insert(db, "kept")
    db.close()
    for _ in range(2):
        later = Database(path, LATER, full=True)
        assert later.execute("SELECT * FROM t").fetchall() == [("kept", "-")]
        assert later.connection.pragma("user_version") == 2
        later.close()


def test_a_new_file_has_the_latest_version_at_once(path: Path) -> None:
    later = Database(path, LATER, full=True)
    later.execute("INSERT INTO t VALUES (1, 2)")
    assert later.connection.pragma("user_version") == 2
    later.close()


def test_a_file_that_cannot_be_brought_up_stays_as_it_is(db: Database, path: Path) -> None:
    insert(db, "kept")
    broken = Schema("", ("ALTER TABLE t ADD COLUMN more; ALTER TABLE nowhere ADD COLUMN more",))
    with pytest.raises(StoreUnavailable, match=r"a\.db cannot be opened"):
        Database(path, broken, full=True)
    assert db.execute("SELECT * FROM t").fetchall() == [("kept",)]
    assert db.connection.pragma("user_version") == 1


def test_several_may_make_the_file_at_the_same_time(tmp_path: Path) -> None:
    for attempt in range(20):
        errors: list[Exception] = []
        barrier = threading.Barrier(4)

        def make(path: Path, barrier: threading.Barrier = barrier, errors: list[Exception] = errors) -> None:
            barrier.wait()
            try:
                db = Database(path, SCHEMA, full=False)
                insert(db)
                db.close()
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=make, args=(tmp_path / f"{attempt}.db",)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors


# -- locks -------------------------------------------------------------------------------------------------------------
def test_a_lock_is_waited_for(db: Database, path: Path) -> None:
    other = Database(path, SCHEMA, full=True)
    other.begin(True)
    done = threading.Thread(target=insert, args=(db,))
    done.start()
    done.join(0.1)
    assert done.is_alive()
    other.commit()
    done.join(10)
    assert not done.is_alive()
    other.close()


@pytest.mark.plain
def test_a_lock_is_not_waited_for_for_ever(db: Database, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    other = Database(path, SCHEMA, full=True)
    other.begin(True)
    with pytest.raises(apsw.BusyError) as caught:
        insert(db)
    assert isinstance(db.map_error(caught.value), StoreUnavailable)
    db.rollback()
    other.rollback()
    insert(db)
    other.close()


def test_reading_needs_no_lock(db: Database, path: Path) -> None:
    other = Database(path, SCHEMA, full=True)
    other.begin(True)
    db.begin(False)
    assert db.execute("SELECT count(*) FROM t").fetchone() == (0,)
    db.commit()
    other.commit()
    other.close()


# -- size --------------------------------------------------------------------------------------------------------------
@pytest.mark.plain
def test_the_log_starts_over(db: Database, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "CHECKPOINT_PAGES", 50)
    for _ in range(500):
        insert(db, "x" * 2000)
    assert path.with_name("a.db-wal").stat().st_size < 200 * 4096


@pytest.mark.plain
def test_a_log_that_a_reader_held_is_cut_back_when_he_is_gone(
    db: Database, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "CHECKPOINT_PAGES", 50)
    monkeypatch.setattr(database, "LOG_BYTES", 100 * 4096)
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.001)
    log = path.with_name("a.db-wal")
    reader = Database(path, SCHEMA, full=True)
    reader.begin(False)
    reader.execute("SELECT * FROM t").fetchall()
    for _ in range(300):
        insert(db, "x" * 2000)
    assert log.stat().st_size > 150 * 4096
    reader.commit()
    insert(db)
    assert log.stat().st_size <= 100 * 4096
    reader.close()


def test_closing_leaves_one_file(path: Path) -> None:
    db = Database(path, SCHEMA, full=True)
    insert(db)
    db.close()
    assert [found.name for found in path.parent.iterdir()] == ["a.db"]
