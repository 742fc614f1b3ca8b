"""`size`: texts of a few bytes up to nearly the largest that a node takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tests.proof.growth.plot import Panel
from tests.proof.growth.site import Point, Site

STEPS = (10, 100, 1_000, 4_000, 16_000, 65_000)


def measure(site: Site) -> Iterator[Point]:
    for size in (10, 1_000) if site.quick else STEPS:
        with site.node() as node:
            point = site.bench(node, size=size)
            yield {"size": size, **point, "mb_per_s": round(point["loops_per_s"] * size / 1e6, 2)}


def panels(points: Sequence[Point]) -> list[Panel]:
    xs = [point["size"] for point in points]

    def curve(key: str) -> tuple[list[float], list[float]]:
        return xs, [point[key] for point in points]

    return [
        Panel("closed loops/s", "bytes of a text", {"": curve("loops_per_s")}, "log"),
        Panel("MB/s of text", "bytes of a text", {"": curve("mb_per_s")}, "log"),
        Panel("latency, ms", "bytes of a text", {"p50": curve("p50_ms"), "p99": curve("p99_ms")}, "log"),
    ]
