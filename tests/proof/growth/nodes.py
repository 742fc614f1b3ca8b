"""`nodes`: nodes of one machine, joined by a real Redis and a real Kafka; each pair is on two of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tests.proof.growth.plot import Panel
from tests.proof.growth.site import Point, Site, brokers

STEPS = (1, 2, 4)


def measure(site: Site) -> Iterator[Point]:
    with site.scratch() as directory, brokers(directory) as options:
        for nodes in STEPS[:2] if site.quick else STEPS:
            yield {"nodes": nodes, **site.bench_nodes(nodes, *options)}


def panels(points: Sequence[Point]) -> list[Panel]:
    xs = [point["nodes"] for point in points]

    def curve(key: str) -> tuple[list[float], list[float]]:
        return xs, [point[key] for point in points]

    return [
        Panel("closed loops/s", "nodes", {"": curve("loops_per_s")}),
        Panel("latency, ms", "nodes", {"p50": curve("p50_ms"), "p99": curve("p99_ms")}),
        Panel("processor µs a loop, all nodes", "nodes", {"": curve("processor_us_per_loop")}),
    ]
