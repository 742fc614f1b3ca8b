"""A node's directory, and the lock on it: whoever holds it is that node, or acts for it while it is dead."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from yanchat.errors import AddressTaken, ConfigError, StoreUnavailable
from yanchat.names import slug

DISK: Final = (errno.EROFS, errno.EIO, errno.ENOSPC, errno.EDQUOT)
"""What a disk does that is broken or full: a setting is not to blame."""


def node_directory(state: Path, node: str) -> Path:
    return state / "nodes" / slug(node)


class Held:
    """A directory that this process holds."""

    def __init__(self, made: bool) -> None:
        self.keep = not made
        """Whether it stays when the process ends with an error: from when something may stand in it that counts."""


@contextmanager
def locked(directory: Path, otherwise: str) -> Iterator[Held]:
    """Hold the directory for this process alone; the kernel lets go of it when the process ends, however.

    It is made when it is not there, and removed again when the body fails before it has set `keep`. Another process
    holds it: AddressTaken, with the sentence `otherwise`. StoreUnavailable, ConfigError: it cannot be used.
    """
    try:
        there = directory.exists()
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno in DISK and (error.errno != errno.EROFS or directory.exists()):  # else there is nothing in it
            fix = "mend the disk, or make room on it: what was accepted is still there"
            raise StoreUnavailable(f"{directory} cannot be used: {error.strerror}; {fix}.") from None
        raise ConfigError(f"{directory} cannot be used: {error.strerror}; choose another --state-dir.") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AddressTaken(otherwise) from None
        if not _is_open_here(lock, directory / "lock"):  # who held it before us has just removed it
            raise AddressTaken(otherwise)
        held = Held(made=not there and os.listdir(directory) == ["lock"])  # nobody else has been here meanwhile
        try:
            yield held
        except Exception:
            if not held.keep:
                shutil.rmtree(directory, ignore_errors=True)
            raise
    finally:
        os.close(lock)


def _is_open_here(fd: int, path: Path) -> bool:
    """Whether the file that is open is the one that stands there."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False
