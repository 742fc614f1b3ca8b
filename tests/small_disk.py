"""A disk of a few megabytes that a test may fill; only root can mount one."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class SmallDisk:
    """`with small_disk(...)` mounts it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"

    @property
    def free(self) -> int:
        """Bytes."""
        disk = os.statvfs(self.path)
        return disk.f_bavail * disk.f_frsize

    def fill(self, leave: int = 0) -> None:
        """Leave so many bytes, about; 0: not one, as long as nothing is removed."""
        size = 65536
        with open(self._filler, "ab", buffering=0) as filler:
            while size:
                step = min(size, self.free - leave)
                if step <= 0:
                    break
                try:
                    filler.write(b"x" * step)
                except OSError:
                    size //= 2

    def make_room(self) -> None:
        """As much as `fill` has taken."""
        self._filler.unlink()


@contextmanager
def small_disk(path: Path, megabytes: int) -> Iterator[SmallDisk]:
    """Mount it at `path`, which is made, or hidden by it. Without the right to do so the test is skipped."""
    path.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(path)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk; tests/contracts fills a store in another way")
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)
