"""Opening `cluster.db`, which all nodes that share a state directory have in common: registry and bus."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from importlib.resources import files
from pathlib import Path
from typing import Final

from yanchat.backends.lane import Lane
from yanchat.backends.sqlite.database import Database, Reader, Schema
from yanchat.backends.sqlite.registry import SqliteRegistry
from yanchat.errors import ConfigError

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def boot_clock() -> int:
    """Milliseconds since this machine booted, its sleep included: one clock for all processes, which never steps."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


@asynccontextmanager
async def open_cluster(
    state: Path, lease: float, now: Callable[[], int] = boot_clock
) -> AsyncIterator[tuple[Lane[Database], SqliteRegistry]]:
    """The lane of the file, and the registry on it. Not fsynced: what it says is leases, and records sent again.

    `lease` is in seconds, `now` in milliseconds.
    """
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigError(f"{state} cannot be used: {error.strerror}; choose another --state-dir.") from None
    schema = Schema((files("yanchat.backends.sqlite") / "cluster.sql").read_text())
    lane = Lane("cluster", lambda: Database(state / "cluster.db", schema, full=False))
    await lane.open()
    try:
        with closing(Reader(state / "cluster.db")) as reader:
            yield lane, SqliteRegistry(lane, reader, _BOOT_ID.read_text().strip(), now, lease)
    finally:
        await lane.close()
