"""The fixtures of the suites: each runs over every backend. One more backend is one more entry in `backends.py`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

import pytest

from tests.contracts.backends import BUSES, CLUSTERS, TABLES, Buses, Cluster, Store, Table
from tests.contracts.services import KafkaBuses, redis_cluster
from yanchat.ports import Registry


@pytest.fixture(params=TABLES)
def table(request: pytest.FixtureRequest, tmp_path: Path) -> Table:
    return TABLES[request.param](tmp_path)


@pytest.fixture
async def store(table: Table) -> AsyncIterator[Store]:
    async with table.open() as opened:
        yield opened


@pytest.fixture(params=[*CLUSTERS, "redis"])
def make_cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], AbstractAsyncContextManager[Cluster]]:
    if request.param == "redis":
        return partial(redis_cluster, request.getfixturevalue("redis_url"), request.getfixturevalue("prefix"))
    return partial(CLUSTERS[request.param], tmp_path)


@pytest.fixture
async def cluster(make_cluster: Callable[[], AbstractAsyncContextManager[Cluster]]) -> AsyncIterator[Cluster]:
    async with make_cluster() as opened:
        yield opened


@pytest.fixture
def registry(cluster: Cluster) -> Registry:
    return cluster.first


@pytest.fixture(params=[*BUSES, "kafka"])
def buses(request: pytest.FixtureRequest, tmp_path: Path) -> Buses:
    if request.param == "kafka":
        return KafkaBuses(request.getfixturevalue("kafka_brokers"), request.getfixturevalue("prefix"))
    return BUSES[request.param](tmp_path)
