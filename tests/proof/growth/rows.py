"""`rows`: what a large message table costs: rows that are settled and only remembered, and rows that wait."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.proof.growth.fill import Table
from tests.proof.growth.plot import Panel
from tests.proof.growth.site import Node, Point, Site, mib, say

SETTLED = (0, 100_000, 1_000_000, 5_000_000)
PENDING = (100_000, 500_000)
AUDITED = 100_000
"""Up to so many rows the books are looked at: they show whether these are rows as a node makes them."""


def measure(site: Site) -> Iterator[Point]:
    for kind, steps in (
        ("settled", (0, 500) if site.quick else SETTLED),
        ("pending", (500,) if site.quick else PENDING),
    ):
        with site.scratch() as directory:
            table = Table(directory / "filled.db", steps[-1], settled=kind == "settled")
            for step in steps:
                if step:
                    say(f"  filling a table with {step:,} {kind} rows")
                    table.grow(step)
                yield {"kind": kind, "rows": step, **_with(site, directory, table.path if step else None, step)}


def _with(site: Site, directory: Path, table: Path | None, rows: int) -> Point:
    state = directory / f"state{rows}"
    state.mkdir()
    try:
        with site.node(state=state) as node:
            node.stop()  # it has its port and its directory now
            if table is not None:
                _replace(node.directory / "node.db", table)
            return _measure(site, node, rows)
    finally:
        shutil.rmtree(state)


def _replace(file: Path, by: Path) -> None:
    """The copy is the node's table from now on."""
    for name in (file.name, f"{file.name}-wal", f"{file.name}-shm"):
        file.with_name(name).unlink(missing_ok=True)
    shutil.copyfile(by, file)


def _measure(site: Site, node: Node, rows: int) -> Point:
    ready = [node.start()]
    for _ in range(site.rounds - 1):
        node.kill()
        ready.append(node.start())
    quiet = node.quiet_after()
    memory, size = node.memory, (node.directory / "node.db").stat().st_size
    if 0 < rows <= AUDITED:
        code, books = node.ask("audit")
        if code:
            raise RuntimeError(f"These are not rows as a node makes them: {books}")
    point = site.bench(node)
    return {
        **point,
        "ready_s": round(statistics.median(ready), 2),
        "quiet_s": round(quiet, 1),
        "memory_mib": mib(memory),
        "memory_after_mib": mib(node.memory),
        "file_mib": mib(size),
    }


def panels(points: Sequence[Point]) -> list[Panel]:
    nothing = [point for point in points if not point["rows"]]

    def curves(key: str) -> dict[str, tuple[list[float], list[float]]]:
        found = {}
        for kind in ("settled", "pending"):
            some = [*nothing, *(point for point in points if point["kind"] == kind and point["rows"])]
            found[kind] = [point["rows"] for point in some], [point[key] for point in some]
        return found

    what = {
        "loops_per_s": "closed loops/s",
        "p99_ms": "p99, ms",
        "processor_us_per_loop": "processor µs a loop",
        "ready_s": "start until ready, s",
        "memory_mib": "memory after the start, MiB",
    }
    return [Panel(title, "rows in the table", curves(key), "symlog") for key, title in what.items()]
