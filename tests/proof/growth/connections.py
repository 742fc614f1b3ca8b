"""`connections`: what idle connections cost: closed loops beside them, memory, and how fast they log in."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from tests.proof.growth.crowd import Crowd
from tests.proof.growth.plot import Panel
from tests.proof.growth.site import Point, Site, mib

STEPS = (0, 1_000, 5_000, 10_000, 19_000, 50_000, 100_000)
OTHER_DESCRIPTORS = 500
"""Of a node: files, and the pairs of the load."""


def allowed(site: Site) -> int:
    """So many idle connections one node of this machine can have, at most as many as were asked for."""
    most = site.descriptors - OTHER_DESCRIPTORS
    if site.connections > most:
        site.note(f"A process here may have {site.descriptors} descriptors: no more than {most} connections are tried.")
    return min(site.connections, most)


def measure(site: Site) -> Iterator[Point]:
    steps = (0, 50) if site.quick else sorted({min(step, allowed(site)) for step in STEPS if step <= site.connections})
    with site.node() as node, Crowd() as crowd:
        memory_before = 0
        for step in steps:
            began, more = time.monotonic(), step - crowd.size
            crowd.add(node.url, more)
            crowd.wait()
            seen = [at for at, _ in crowd.seen(began)]  # the first is when a process of clients began
            node.quiet_after()
            point = site.bench(node)
            memory = node.memory
            memory_before = memory_before or memory
            assert crowd.there == step, f"{step - crowd.there} idle clients have gone"
            yield {
                "connections": step,
                **point,
                "logins_per_s": round(more / (seen[-1] - seen[0])) if more else None,
                "memory_mib": mib(memory),
                "memory_kib_per_connection": round((memory - memory_before) / 1024 / step, 1) if step else None,
            }


def panels(points: Sequence[Point]) -> list[Panel]:
    xs = [point["connections"] for point in points]

    def curve(key: str) -> tuple[list[float], list[float]]:
        there = [point for point in points if point[key] is not None]
        return [point["connections"] for point in there], [point[key] for point in there]

    return [
        Panel("closed loops/s", "idle connections", {"": curve("loops_per_s")}),
        Panel("latency, ms", "idle connections", {"p50": curve("p50_ms"), "p99": (xs, [p["p99_ms"] for p in points])}),
        Panel("memory of the node, MiB", "idle connections", {"": curve("memory_mib")}),
        Panel("logins/s", "idle connections", {"": curve("logins_per_s")}),
    ]
