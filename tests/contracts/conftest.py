"""The fixtures of the suites: each runs over every backend. One more backend is one more entry in `backends.py`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.contracts.backends import BUSES, CLUSTERS, TABLES, Buses, Cluster, Store, Table
from yanchat.ports import Registry


@pytest.fixture(params=TABLES)
def table(request: pytest.FixtureRequest, tmp_path: Path) -> Table:
    return TABLES[request.param](tmp_path)


@pytest.fixture
async def store(table: Table) -> AsyncIterator[Store]:
    async with table.open() as opened:
        yield opened


@pytest.fixture(params=CLUSTERS)
async def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Cluster]:
    async with CLUSTERS[request.param](tmp_path) as opened:
        yield opened


@pytest.fixture
def registry(cluster: Cluster) -> Registry:
    return cluster.first


@pytest.fixture(params=BUSES)
def buses(request: pytest.FixtureRequest, tmp_path: Path) -> Buses:
    return BUSES[request.param](tmp_path)
