"""Freed memory goes back to the system: what a flood leaves behind in pieces, glibc's allocator keeps otherwise."""

from __future__ import annotations

import ctypes
import os
from typing import Final

import trio

SHORTEST_REST, LONGEST_REST = 60.0, 600.0
"""Seconds between two tries. Each walks through the heap, up to 50 ms where that is large and in pieces."""
WORTH_IT: Final = 16 << 20


async def give_back_memory() -> None:
    """Give it back, as long as the node lives; the seldomer the less there is. Without glibc nothing is done."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    rest = SHORTEST_REST
    while trim is not None:
        await trio.sleep(rest)
        before = resident()
        await trio.to_thread.run_sync(trim, 0)
        rest = SHORTEST_REST if before - resident() >= WORTH_IT else min(2 * rest, LONGEST_REST)


def resident() -> int:
    """Bytes of memory that this process has."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
