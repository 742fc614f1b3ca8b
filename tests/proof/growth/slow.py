"""`slow`: clients that read next to nothing and never ack, while others push to them and other pairs go on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

from tests.proof.growth.plain import Kind, Pusher, SlowOnes
from tests.proof.growth.plot import Panel
from tests.proof.growth.site import Node, Point, Site, beside_the_load, mib

STEPS: tuple[tuple[Kind, int, int], ...] = (
    ("drip", 0, 1000),
    ("drip", 250, 1000),
    ("drip", 500, 1000),
    ("drip", 1000, 1000),
    ("deaf", 250, 4000),
)
"""What they are, how many, and the bytes of each text. What is under way to a session fills the kernel's buffers with
the longer ones alone: only then a node can tell that nothing is read."""
EACH = 320
"""Messages to each of them before the others are measured: more than a node has in memory."""
WATCHED_EVERY = 0.5
PACE = 0.5
"""Seconds between pushes of 100 messages while the others are measured."""


def measure(site: Site) -> Iterator[Point]:
    for kind, number, size in (("drip", 0, 1000), ("drip", 5, 1000), ("deaf", 5, 4000)) if site.quick else STEPS:
        with ExitStack() as stack:
            stack.enter_context(beside_the_load())
            node = stack.enter_context(site.node())
            slow = stack.enter_context(SlowOnes(node.port, number, kind))
            pusher = Pusher(node.port, slow.names or [f"away-{n}" for n in range(100)], size)
            stack.callback(pusher.close)
            yield {"kind": kind, "slow": number, "size": size, **_measure(site, node, slow, pusher)}


def _measure(site: Site, node: Node, slow: SlowOnes, pusher: Pusher) -> Point:
    number, before = len(slow.names), mib(node.memory)
    series: list[tuple[float, float, float]] = []
    failures: list[Exception] = []
    over = threading.Event()

    def guarded(work: Callable[[], None]) -> threading.Thread:
        def run() -> None:
            try:
                work()
            except Exception as error:
                failures.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    def watch() -> None:
        began = time.monotonic()
        while not over.wait(WATCHED_EVERY):
            seconds, each = time.monotonic() - began, pusher.sent / number if number else 0
            series.append((round(seconds, 1), mib(node.memory), round(each, 1)))

    def go_on() -> None:
        while not over.is_set():
            pusher.push(PACE)

    threads = [guarded(watch)]
    try:
        for _ in range((10 if site.quick else EACH) if number else 0):
            pusher.push()
        threads.append(guarded(go_on))
        point = site.bench(node)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]
    numbers, after = node.metrics(), mib(node.memory)
    most = max([after, *(memory for _, memory, _ in series)])
    return {
        **point,
        "memory_mib": after,
        "most_memory_mib": most,
        "most_kib_per_slow": round((most - before) * 1024 / number) if number else None,
        "pending_each": round(numbers["outbox_pending_messages"] / number) if number else None,
        "rows_in_memory": int(numbers["mailbox_rows"]),
        "still_there": int(numbers["sessions"]) - 1,
        "seconds": [seconds for seconds, _, _ in series],
        "memory_mib_then": [memory for _, memory, _ in series],
        "sent_each_then": [each for _, _, each in series],
    }


_DO = {"drip": "read slowly", "deaf": "do not read"}


def panels(points: Sequence[Point]) -> list[Panel]:
    def over_time(key: str) -> dict[str, tuple[list[float], list[float]]]:
        return {
            f"{point['slow']} that {_DO[point['kind']]}, {point['size']} bytes a text": (point["seconds"], point[key])
            for point in points
            if point["slow"]
        }

    def curve(key: str) -> dict[str, tuple[list[float], list[float]]]:
        drips = [point for point in points if point["kind"] == "drip"]
        return {"": ([point["slow"] for point in drips], [point[key] for point in drips])}

    since = "seconds since the first message to them"
    return [
        Panel("memory of the node, MiB", since, over_time("memory_mib_then"), dots=False),
        Panel("messages sent to each of them", since, over_time("sent_each_then"), dots=False),
        Panel("loops/s of 50 other pairs", "clients that read slowly", curve("loops_per_s")),
        Panel("p99 of these, ms", "clients that read slowly", curve("p99_ms")),
    ]
