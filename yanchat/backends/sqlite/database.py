"""Opening an SQLite file and running transactions on it; foreign exceptions end here."""

from __future__ import annotations

import os
from pathlib import Path

import apsw

from yanchat.errors import StoreUnavailable


class Database:
    """One connection, used by one lane only. `full` makes every commit reach the disk before it returns."""

    def __init__(self, path: Path, schema: str, *, full: bool, checkpoint_pages: int = 4000) -> None:
        try:
            self.connection = apsw.Connection(str(path))
            self.connection.set_busy_timeout(10_000)
            self._pragma("journal_mode", "wal")
            self._pragma("synchronous", 2 if full else 1)
            self.connection.pragma("wal_autocheckpoint", checkpoint_pages)
            self.connection.pragma("temp_store", "memory")
            with self.connection:
                self.connection.execute(schema)
        except apsw.Error as error:
            raise StoreUnavailable(f"{path} cannot be opened: {error}. Check the disk and the file's owner.") from error
        self.path = path
        self.execute = self.connection.execute
        self.executemany = self.connection.executemany

    def _pragma(self, name: str, value: str | int) -> None:
        self.connection.pragma(name, value)
        now = self.connection.pragma(name)
        if now != value:
            raise StoreUnavailable(f"SQLite keeps {name} at {now!r}, not {value!r}; put the state on a local disk.")

    def begin(self) -> None:
        self.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        if not self.connection.in_transaction:  # SQLite has rolled back by itself: a full disk does that
            raise StoreUnavailable("SQLite rolled the transaction back; make room on the disk.")
        self.execute("COMMIT")

    def rollback(self) -> None:
        if self.connection.in_transaction:
            self.execute("ROLLBACK")

    def close(self) -> None:
        try:
            self.connection.pragma("wal_checkpoint(TRUNCATE)")
        except apsw.Error:
            pass  # somebody else reads: the log stays, and is read at the next opening
        self.connection.close()

    def map_error(self, error: Exception) -> Exception:
        if isinstance(error, apsw.FullError | OSError):
            return StoreUnavailable("The disk is full; make room, nothing that was accepted is lost.")
        if isinstance(error, apsw.Error):
            return StoreUnavailable(f"The message table cannot be used: {error}.")
        return error

    def free_bytes(self) -> int:
        """Free space for us on the file's disk."""
        disk = os.statvfs(self.path.parent)
        return disk.f_bavail * disk.f_frsize
