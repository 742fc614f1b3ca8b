"""Fixtures: a Redis server and a Kafka broker for the whole session, given from outside or started here.

A service that is missing skips the test and says what to install; with `CI` set it fails it.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest

from tests.services import KafkaBroker, Missing, RedisServer, Server

S = TypeVar("S", bound=Server)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A private one, for tests that kill and pause it; they leave it running and answering."""
    yield from _started("Redis", lambda: RedisServer(tmp_path_factory.mktemp("redis")))


@pytest.fixture(scope="session")
def kafka_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaBroker]:
    """A private one, for tests that kill and pause it; they leave it running and answering."""
    yield from _started("Kafka", lambda: KafkaBroker(tmp_path_factory.mktemp("kafka")))


@pytest.fixture(scope="session")
def redis_url(request: pytest.FixtureRequest) -> str:
    """Where a Redis is: `YANCHAT_TEST_REDIS`, else the private one."""
    given = os.environ.get("YANCHAT_TEST_REDIS")
    return given or str(request.getfixturevalue("redis_server").url)


@pytest.fixture(scope="session")
def kafka_brokers(request: pytest.FixtureRequest) -> str:
    """Where a Kafka is: `YANCHAT_TEST_KAFKA`, else the private one."""
    given = os.environ.get("YANCHAT_TEST_KAFKA")
    return given or str(request.getfixturevalue("kafka_broker").brokers)


@pytest.fixture
def prefix() -> str:
    """What the names of this test's keys and topics begin with, so that tests cannot see each other."""
    return f"t{secrets.token_hex(4)}-"


def _started(name: str, make: Callable[[], S]) -> Iterator[S]:
    try:
        server = make()
    except Missing as missing:
        if os.environ.get("CI"):
            pytest.fail(f"{name} is missing; {missing}", pytrace=False)
        pytest.skip(f"{name} is missing; {missing}")
    server.start()
    yield server
    server.stop()
