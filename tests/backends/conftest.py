"""What the tests of several backends share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from tests.services import RedisServer


@pytest.fixture
def server(redis_server: RedisServer) -> Iterator[redis.Redis]:
    """The private server, as redis-cli sees it; empty before and after."""
    with redis.Redis(port=redis_server.port, decode_responses=True) as client:
        client.flushall()
        yield client
        client.flushall()
