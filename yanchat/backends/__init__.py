"""The drivers: one technology, one file or folder. Foreign exceptions are mapped here, at their border.

Which of them a node uses follows from its profile, here alone; a driver is imported only when it is used.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from yanchat.backends.kafka.leftovers import Leftovers
    from yanchat.config import Settings
    from yanchat.model import Node
    from yanchat.ports import Bus, Registry
    from yanchat.telemetry import Counters


@asynccontextmanager
async def open_backends(
    settings: Settings, state: Path, node: Node, lease: float, counters: Counters
) -> AsyncIterator[tuple[Registry, Bus]]:
    """The registry and the bus of one node. ConfigError: a setting of theirs is wrong, or they refuse this node."""
    match settings.node.profile:
        case "embedded":
            from yanchat.backends.sqlite.bus import open_bus as open_sqlite_bus
            from yanchat.backends.sqlite.cluster import open_cluster

            async with open_cluster(state, lease) as (lane, file), open_sqlite_bus(lane, state, node, counters) as rows:
                yield file, rows
        case "cluster":
            from yanchat.backends.kafka.bus import open_bus as open_kafka_bus
            from yanchat.backends.redis.registry import open_registry as open_redis_registry

            async with (
                open_redis_registry(settings.redis, lease) as redis,
                open_kafka_bus(settings.kafka, node, settings.limits.message_size, counters) as kafka,
            ):
                yield redis, kafka


@asynccontextmanager
async def open_registry(settings: Settings, state: Path, lease: float) -> AsyncIterator[Registry]:
    """The registry alone, for those who only ask. ConfigError as above."""
    match settings.node.profile:
        case "embedded":
            from yanchat.backends.sqlite.cluster import open_cluster

            async with open_cluster(state, lease) as (_, file):
                yield file
        case "cluster":
            from yanchat.backends.redis.registry import open_registry as open_redis_registry

            async with open_redis_registry(settings.redis, lease) as redis:
                yield redis


def leftovers_of(settings: Settings) -> Leftovers | None:
    """What nodes that are gone have left on the bus; None where the bus forgets it by itself."""
    match settings.node.profile:
        case "embedded":
            return None
        case "cluster":
            from yanchat.backends.kafka.leftovers import Leftovers

            return Leftovers(settings.kafka)
