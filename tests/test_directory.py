"""A node's directory: one process holds it; a start that came to nothing removes it, if nothing is in it."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from tests.running import call
from tests.small_disk import small_disk
from yanchat.directory import DISK, locked
from yanchat.errors import AddressTaken, StoreUnavailable


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


# -- a directory that cannot be used -----------------------------------------------------------------------------------
@pytest.mark.parametrize("number", DISK, ids=os.strerror)
def test_a_broken_or_full_disk_is_no_wrong_setting(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 1, with which a service manager starts it again; and nobody is sent to another directory."""

    def refuse(path: Path, *_: int) -> int:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StoreUnavailable, match="mend the disk") as refused, locked(tmp_path, "taken"):
        pytest.fail("it was held")
    assert (refused.value.exit_code, "--state-dir" in str(refused.value)) == (1, False)


def test_a_node_on_a_read_only_disk(tmp_path: Path) -> None:
    """A real one, as after an error of the file system. Where no node has ever been, the setting is wrong."""
    with small_disk(tmp_path / "disk", megabytes=1) as disk:
        (disk.path / "nodes" / "127-0-0-1-0").mkdir(parents=True)
        subprocess.run(["mount", "-o", "remount,ro", disk.path], check=True)
        done = call("serve", "--listen", "127.0.0.1:0", "--advertise", "127.0.0.1:0", state=disk.path)
        assert done.returncode == 1
        assert "cannot be used: Read-only file system; mend the disk" in done.stderr
        done = call("serve", "--listen", "127.0.0.1:0", state=disk.path / "never")
        assert done.returncode == 78
        assert "choose another --state-dir" in done.stderr


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
