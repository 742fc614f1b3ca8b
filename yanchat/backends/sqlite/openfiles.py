"""Whether open files still stand where their paths say: asked before every commit, so it must cost next to nothing."""

from __future__ import annotations

import os
from pathlib import Path


class OpenFiles:
    """Where the open files of one directory stand in the file system.

    They are not asked by `stat`: after that the next write must give a file another time of change, which the next
    fdatasync has to write, too (a third of its time). The directory is: nothing is written to that.
    """

    def __init__(self, *paths: Path) -> None:
        self._directory = paths[0].parent
        self._identity = self._identify()
        self._open: dict[Path, tuple[int, str]] = {}
        for path in paths:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)  # closing another kind would end SQLite's locks
            self._open[path] = fd, _path_of(fd)

    def _identify(self) -> tuple[int, int]:
        directory = os.stat(self._directory)
        return directory.st_dev, directory.st_ino

    def displaced(self) -> Path | None:
        """A path that does not lead to its file any more: removed, replaced, or hidden by what is mounted over it."""
        try:
            everywhere = self._identify() != self._identity
        except FileNotFoundError:
            everywhere = True
        for path, (fd, name) in self._open.items():
            if everywhere or _path_of(fd) != name:
                return path
        return None

    def close(self) -> None:
        """Repeated, it does nothing."""
        for fd, _ in self._open.values():
            os.close(fd)
        self._open = {}


def _path_of(fd: int) -> str:
    """As the kernel has it (proc(5), /proc/pid/fd); a removed file's has another end."""
    return os.readlink(f"/proc/self/fd/{fd}")
