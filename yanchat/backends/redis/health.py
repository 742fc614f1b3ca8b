"""How the servers of Redis are: facts for `yanchat doctor`, which judges them."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import redis

from yanchat import names
from yanchat.backends.redis.connection import Connection
from yanchat.backends.redis.servers import Client, connector
from yanchat.config import RedisSettings
from yanchat.errors import YanchatError


class RedisHealth(NamedTuple):
    """One server that holds data of ours."""

    server: str
    """`host:port`; empty when there is only one."""
    version: str
    policy: str
    """maxmemory-policy."""
    used: int
    most: int
    """Bytes; 0: no limit."""
    saved: bool
    """Whether what it writes to its disk, if anything, went well the last time."""
    ahead: float
    """Seconds by which its clock is ahead of ours; how exactly that is known: `within`."""
    within: float


def look_at_redis(settings: RedisSettings) -> tuple[list[RedisHealth], YanchatError | None]:
    """All servers that hold data, and why nothing can be written, if nothing can.

    Blocks for some seconds at most. Raises RegistryUnavailable, ConfigError.
    """
    connection = Connection(connector(settings))
    try:
        client = connection.client
        found = [_health(client, server, info) for server, info in _infos(client).items()]
        try:
            client.set(names.probe_key(settings.key_prefix), "1", px=100)
        except redis.RedisError as error:
            return found, connection.map_error(error)  # type: ignore[return-value]  # a driver's error is mapped to ours
        return found, None
    except Exception as error:
        raise connection.map_error(error) from None
    finally:
        connection.close()


def _infos(client: Client) -> dict[str, dict[str, Any]]:
    if isinstance(client, redis.RedisCluster):
        found: dict[str, Any] = client.info("all", target_nodes=redis.RedisCluster.PRIMARIES)
        return {"": found} if "redis_version" in found else found
    return {"": dict(client.info("all"))}


def _health(client: Client, server: str, info: dict[str, Any]) -> RedisHealth:
    ahead, within = _clock(client, server)
    return RedisHealth(
        server=server,
        version=str(info.get("redis_version", "")),
        policy=str(info.get("maxmemory_policy", "")),
        used=int(info.get("used_memory", 0)),
        most=int(info.get("maxmemory", 0)),
        saved=all(info.get(f"{kind}_status", "ok") == "ok" for kind in ("rdb_last_bgsave", "aof_last_write")),
        ahead=ahead,
        within=within,
    )


def _clock(client: Client, server: str) -> tuple[float, float]:
    before = time.time()
    if isinstance(client, redis.RedisCluster):
        host, _, port = server.rpartition(":")
        at: Any = client.get_node(host, int(port)) if server else redis.RedisCluster.RANDOM  # type: ignore[no-untyped-call]
        seconds, micros = client.time(target_nodes=at)
    else:
        seconds, micros = client.time()
    after = time.time()
    return seconds + micros / 1e6 - (before + after) / 2, (after - before) / 2
