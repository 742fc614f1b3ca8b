"""Opening an SQLite file and running transactions on it; foreign exceptions end here."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from errno import EDQUOT, ENOSPC
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import apsw

from yanchat.backends.sqlite.openfiles import OpenFiles
from yanchat.errors import StoreUnavailable

R = TypeVar("R")
BUSY_SECONDS: Final = 10.0
CHECKPOINT_PAGES: Final = 4000
LOG_BYTES: Final = 64 * 1024 * 1024
"""From this size on the log is cut back, waiting for those who read."""


class Schema(NamedTuple):
    """What a file holds. An older file is brought up to it when it is opened, step by step, and keeps all that it has.

    A file's version is its `user_version`, 1 at first. A file of a later version is refused.
    """

    sql: str
    """Makes all of it in a new file, and in any file what is not there."""
    steps: tuple[str, ...] = ()
    """SQL that leads from version 1 to 2, from 2 to 3, and so on."""

    @property
    def version(self) -> int:
        return 1 + len(self.steps)


class Database:
    """One connection, used by one lane only. `full` makes every commit reach the disk before it returns.

    StoreUnavailable when the file cannot be opened or was written by a later version.
    """

    def __init__(self, path: Path, schema: Schema, *, full: bool) -> None:
        self.path = path
        self._log_pages = 0
        self._full = False
        """The disk was, and has little room yet."""
        try:
            self.connection = apsw.Connection(str(path))
        except apsw.Error as error:
            raise self._cannot_open(error) from error
        try:
            self._set_up(schema, full)
            self._files = OpenFiles(path, path.with_name(f"{path.name}-wal"))
        except (apsw.Error, OSError) as error:
            self.connection.close()
            raise self._cannot_open(error) from error
        except StoreUnavailable:
            self.connection.close()
            raise
        self.execute = self.connection.execute
        self.executemany = self.connection.executemany

    def _set_up(self, schema: Schema, full: bool) -> None:
        self.connection.set_busy_handler(_Patience().wait)
        self._log_mode()
        self._pragma("synchronous", 2 if full else 1)
        self.connection.pragma("temp_store", "memory")
        self.connection.pragma("journal_size_limit", LOG_BYTES)
        self.connection.set_wal_hook(self._committed)
        self.connection.execute("BEGIN IMMEDIATE")  # two nodes may make the file at the same time
        version = self.connection.pragma("user_version")
        if version > schema.version:
            raise StoreUnavailable(f"{self.path} was written by a later yanchat; run that one.")
        for step in schema.steps[version - 1 :] if version else ():
            self.connection.execute(step)
        self.connection.execute(schema.sql)
        self.connection.pragma("user_version", schema.version)
        self.connection.execute("COMMIT")
        self._checkpoint()  # so that the log can be written from its start when the disk is full

    def _log_mode(self) -> None:
        """SQLite does not wait when two make the file at the same time: try again."""
        until = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                self._pragma("journal_mode", "wal")
                return
            except apsw.BusyError:
                if time.monotonic() > until:
                    raise
            time.sleep(0.005)

    def _pragma(self, name: str, value: str | int) -> None:
        self.connection.pragma(name, value)
        now = self.connection.pragma(name)
        if now != value:
            raise StoreUnavailable(f"SQLite keeps {name} at {now!r}, not {value!r}; put the state on a local disk.")

    def _cannot_open(self, error: Exception) -> StoreUnavailable:
        if self._says_full(error):
            return StoreUnavailable(f"{self.path} cannot be opened: the disk is full; make room, nothing is lost.")
        return StoreUnavailable(f"{self.path} cannot be opened: {error}. Check the disk and the file's owner.")

    # -- what a lane asks ----------------------------------------------------------------------------------------------
    def begin(self, writes: bool) -> None:
        """With `writes` the lock is taken at once: an upgrade on the way would fail whatever the timeout."""
        if writes:
            self._assert_in_place()
            if self._full:
                self._begin_log_anew()
        self.execute("BEGIN IMMEDIATE" if writes else "BEGIN")

    def apart(self, work: Callable[[Database], R]) -> R:
        self._assert_transaction()
        self.execute("SAVEPOINT job")
        try:
            result = work(self)
        except BaseException:
            if self.connection.in_transaction:
                self.execute("ROLLBACK TO job; RELEASE job")
            raise
        self.execute("RELEASE job")
        return result

    def commit(self) -> None:
        self._assert_transaction()
        self.execute("COMMIT")
        if self._log_pages >= CHECKPOINT_PAGES:
            self._checkpoint()

    def _assert_in_place(self) -> None:
        """What is committed to a file that somebody has removed or replaced is gone when it is closed."""
        path = self._files.displaced()
        if path is not None:
            raise StoreUnavailable(f"{path} was removed or replaced while it was in use; start the node again.")

    def _assert_transaction(self) -> None:
        """A full disk makes SQLite roll back by itself; what is run after that would be on its own."""
        if not self.connection.in_transaction:
            raise StoreUnavailable("SQLite rolled the transaction back; make room on the disk.")

    def rollback(self) -> None:
        if self.connection.in_transaction:
            self.execute("ROLLBACK")

    def close(self) -> None:
        try:
            self.connection.pragma("wal_checkpoint(TRUNCATE)")
        except apsw.Error:
            pass  # somebody else reads: the log stays, and is read at the next opening
        self.connection.close()
        self._files.close()

    def map_error(self, error: Exception) -> Exception:
        if self._says_full(error):
            self._full = True
            return StoreUnavailable("The disk is full; make room, nothing that was accepted is lost.")
        if isinstance(error, OSError):
            return StoreUnavailable(
                f"The directory of {self.path.name} cannot be used: {error.strerror}; see the disk."
            )
        if isinstance(error, apsw.Error):
            return StoreUnavailable(f"{self.path.name} cannot be used: {error}; check the disk and who else uses it.")
        return error

    def _says_full(self, error: Exception) -> bool:
        if isinstance(error, apsw.IOError):  # so it says when it cannot enlarge what it maps into memory
            return self._free_bytes() == 0
        return isinstance(error, apsw.FullError) or (isinstance(error, OSError) and error.errno in {ENOSPC, EDQUOT})

    def _free_bytes(self) -> int:
        disk = os.statvfs(self.path.parent)
        return disk.f_bavail * disk.f_frsize

    # -- the log -------------------------------------------------------------------------------------------------------
    def _committed(self, connection: apsw.Connection, name: str, pages: int) -> int:
        self._log_pages = pages
        return apsw.SQLITE_OK

    def _begin_log_anew(self) -> None:
        """Where the disk was full, the log cannot grow; acks may fit into it, and into the free pages of the file."""
        self._checkpoint()
        self._full = self._free_bytes() < LOG_BYTES

    def _checkpoint(self) -> None:
        """Bring the log into the file, in passing; when readers have kept it from starting over, wait for them."""
        large = self._log_pages * 4096 >= LOG_BYTES
        mode = apsw.SQLITE_CHECKPOINT_TRUNCATE if large else apsw.SQLITE_CHECKPOINT_PASSIVE
        try:
            self.connection.wal_checkpoint(mode=mode)
        except apsw.Error:
            pass  # the commit stands; the next one tries again


class _Patience:
    """How long to wait for a lock: transactions here take a fraction of a millisecond, SQLite's own steps are long."""

    def __init__(self) -> None:
        self._since = 0.0

    def wait(self, tries: int) -> bool:
        if tries == 0:
            self._since = time.monotonic()
        time.sleep(min(0.0002 * (tries + 1), 0.005))
        return time.monotonic() - self._since < BUSY_SECONDS


class Reader:
    """A second connection to a file that is there, which only reads and never waits: StoreUnavailable instead."""

    def __init__(self, path: Path) -> None:
        try:
            self._connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        except apsw.Error as error:
            raise StoreUnavailable(f"{path} cannot be opened: {error}. Check its owner and `ulimit -n`.") from None

    def execute(self, sql: str, bindings: Sequence[Any] = ()) -> list[Any]:
        try:
            return self._connection.execute(sql, bindings).fetchall()
        except apsw.Error as error:
            raise StoreUnavailable(f"The file cannot be read at this moment: {error}.") from None

    def version(self) -> int:
        """Another number when any connection but this one has committed since (PRAGMA data_version)."""
        ((version,),) = self.execute("PRAGMA data_version")
        return int(version)

    def close(self) -> None:
        self._connection.close()
