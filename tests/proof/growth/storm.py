"""`storm`: all clients lose their connections at one instant and come back at once."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

from tests.proof.growth.connections import allowed
from tests.proof.growth.crowd import Crowd
from tests.proof.growth.plot import Panel
from tests.proof.growth.site import Node, Point, Site, brokers
from tests.services import Missing
from yanchat.node.lease import LEASE

BACK_WITHIN = 300.0
SHOWN = 150
"""Points of a curve."""
LOST = ("registry.heartbeat_failed", "registry.joined_again")
"""What a node logs when its lease is in danger, and when it was lost."""


def measure(site: Site) -> Iterator[Point]:
    clients = 50 if site.quick else allowed(site)
    yield _storm(site, clients, "embedded", "the node is killed", _kill)
    yield _storm(site, clients, "embedded", "all connections break", _cut)
    if not site.quick:
        with ExitStack() as stack:
            try:
                options = stack.enter_context(brokers(stack.enter_context(site.scratch())))
            except Missing as missing:
                site.note(f"The profile cluster was left out: {missing}")
                return
            yield _storm(site, clients, "cluster", "the node is killed", _kill, *options)


def _kill(node: Node, crowd: Crowd) -> float | None:
    """After how many seconds the node was ready again."""
    node.kill()
    return round(node.start(), 1)


def _cut(node: Node, crowd: Crowd) -> float | None:
    crowd.cut()
    return None


def _storm(
    site: Site, clients: int, profile: str, what: str, strike: Callable[[Node, Crowd], float | None], *options: str
) -> Point:
    with site.node(*options) as node, Crowd() as crowd:
        crowd.add(node.url, clients)
        crowd.wait()
        node.quiet_after()
        silent = 0.0
        began = time.monotonic()
        ready = strike(node, crowd)
        end = began + BACK_WITHIN
        back = began
        while True:
            numbers = node.metrics()
            silent = max(silent, numbers.get("registry_heartbeat_age_seconds", 0.0))
            seen = crowd.seen(began)
            gone = next((n for n, (_, there) in enumerate(seen) if there < clients), None)
            if gone is not None and seen[-1][1] == clients:
                back = seen[-1][0]
                break
            if time.monotonic() > end:
                raise RuntimeError(f"Only {crowd.there} of {clients} clients were back after {BACK_WITHIN:.0f} s.")
            time.sleep(0.1)
        node.quiet_after()
        numbers = node.metrics()
        logged = [event for event in map(_event, node.log.read_text().splitlines()) if event in LOST]
        check, _ = node.ask("servers", "--check")
        fewest = min(range(len(seen)), key=lambda n: seen[n][1])
        half = next(at for at, there in seen[fewest:] if there >= clients / 2)
        return {
            "profile": profile,
            "what": what,
            "clients": clients,
            "ready_s": ready,
            "half_back_s": round(half, 1),
            "all_back_s": round(back, 1),
            "heartbeat_age_s": round(silent, 1),
            "lease_kept": silent < LEASE and "registry.joined_again" not in logged,
            "heartbeats_failed": logged.count("registry.heartbeat_failed"),
            "registry_consistent": check == 0,
            "sessions": int(numbers["sessions"]),
            "seconds": [round(at, 2) for at, _ in _thinned(seen, clients)],
            "there": [there for _, there in _thinned(seen, clients)],
        }


def _event(line: str) -> str:
    try:
        return str(json.loads(line).get("event", ""))
    except ValueError:
        return ""


def _thinned(seen: Sequence[tuple[float, int]], before: int) -> list[tuple[float, int]]:
    every = max(1, len(seen) // SHOWN)
    return [(0.0, before), *seen[:-1:every], seen[-1]]


def panels(points: Sequence[Point]) -> list[Panel]:
    curves = {f"{point['what']} ({point['profile']})": (point["seconds"], point["there"]) for point in points}
    return [Panel("clients that are logged in", "seconds since they were cut off", curves, dots=False)]
