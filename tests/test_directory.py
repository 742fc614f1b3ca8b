"""A node's directory: one process holds it; a start that came to nothing removes it, if nothing is in it."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from yanchat.directory import locked
from yanchat.errors import AddressTaken


def test_a_directory_that_was_made_for_a_start_that_failed_is_removed(tmp_path: Path) -> None:
    """A node that may not hold its address leaves nothing behind."""
    fail(tmp_path / "node")
    assert not (tmp_path / "node").exists()


def test_a_directory_that_was_there_stays(tmp_path: Path) -> None:
    """It is somebody's, whatever is in it."""
    (tmp_path / "node").mkdir()
    fail(tmp_path / "node")
    assert (tmp_path / "node").exists()


def test_a_directory_in_which_something_may_count_stays(tmp_path: Path) -> None:
    """Once the node works, an error removes nothing."""
    fail(tmp_path / "node", keep=True)
    assert (tmp_path / "node").exists()


def test_a_start_that_is_broken_off_removes_nothing(tmp_path: Path) -> None:
    """Cancelled, it has not heard that the address is another's."""

    async def start() -> None:
        with trio.move_on_after(0), locked(tmp_path / "node", "taken"):
            await trio.sleep_forever()

    trio.run(start)
    assert (tmp_path / "node").exists()


def test_what_another_process_stored_while_we_came_for_the_lock_is_not_ours_to_remove(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It made the directory, accepted messages and ended, all of it before we had the lock."""
    table = tmp_path / "node" / "node.db"
    before_the_lock(monkeypatch, lambda: table.write_text("accepted"))
    fail(tmp_path / "node")
    assert table.read_text() == "accepted"


def test_the_lock_of_a_directory_that_was_removed_meanwhile_holds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two would hold it: we the file that is gone, and the next one the file that he makes."""
    before_the_lock(monkeypatch, lambda: shutil.rmtree(tmp_path / "node"))
    with pytest.raises(AddressTaken, match="taken"), locked(tmp_path / "node", "taken"):
        pytest.fail("it was held")


def fail(directory: Path, *, keep: bool = False) -> None:
    with pytest.raises(AddressTaken, match="another node"), locked(directory, "taken") as held:
        held.keep |= keep
        raise AddressTaken("another node has the address")


def before_the_lock(monkeypatch: pytest.MonkeyPatch, do: Callable[[], object]) -> None:
    """Have something done between the opening of the file and the lock on it."""
    lock = fcntl.flock

    def late(fd: int, how: int) -> None:
        do()
        lock(fd, how)

    monkeypatch.setattr(fcntl, "flock", late)
