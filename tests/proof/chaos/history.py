"""The history of a chaos run: one JSON object a line, in the order in which things happened. All that is judged."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class History:
    """Written by one process, so that a line stands behind all that had happened before."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("w")
        self._began = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since it was begun."""
        return time.monotonic() - self._began

    def note(self, what: str, **more: Any) -> None:
        """Something has happened now."""
        line = {"t": round(self.elapsed, 4), "what": what, **more}
        self._file.write(json.dumps(line, separators=(",", ":")) + "\n")

    def close(self) -> None:
        self._file.close()


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The events of a history."""
    with path.open() as lines:
        for line in lines:
            yield json.loads(line)
