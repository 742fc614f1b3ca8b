"""`yanchat` as the chaos run starts it: with a wall clock that can be stepped, and perhaps without one of its rules.

CHAOS_CLOCK names a file of eight bytes, the nanoseconds by which the clock is ahead; CHAOS_MUTATION a mutation.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from contextlib import ExitStack
from pathlib import Path

_OFFSET = struct.Struct("<q")


class SteppedClock:
    """The offset of one node's wall clock, seen by all who map the file."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(_OFFSET.size))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _OFFSET.size)

    def step_to(self, seconds: float) -> None:
        """Be so far ahead of the true time."""
        _OFFSET.pack_into(self._map, 0, int(seconds * 1e9))

    @property
    def nanoseconds(self) -> int:
        return int(_OFFSET.unpack_from(self._map, 0)[0])


def main() -> None:
    clock, true_ns, true = SteppedClock(Path(os.environ["CHAOS_CLOCK"])), time.time_ns, time.time
    time.time_ns = lambda: true_ns() + clock.nanoseconds
    time.time = lambda: true() + clock.nanoseconds / 1e9
    with ExitStack() as stack:
        if name := os.environ.get("CHAOS_MUTATION"):
            from tests.node.mutation import left_out
            from tests.proof.mutations import MUTATIONS

            stack.enter_context(left_out(MUTATIONS[name]))
        from yanchat.__main__ import main as yanchat

        yanchat()


if __name__ == "__main__":
    main()
