"""Readiness: a load balancer asks it, and a person at night."""

from __future__ import annotations

from pathlib import Path

import apsw
import httpx
from msgspec.structs import replace

from tests.node.cluster import open_cluster
from tests.running import RunningNode, wait_until
from yanchat.admin.app import build_app
from yanchat.admin.control import Control
from yanchat.client import connect
from yanchat.config import LimitSettings
from yanchat.model import Node
from yanchat.protocol.client_frames import Receipt


def ask(node: RunningNode) -> httpx.Response:
    transport = httpx.HTTPTransport(uds=str(node.directory / "admin.sock"))
    with httpx.Client(transport=transport, base_url="http://node", timeout=20) as http:
        return http.get("/readyz")


def test_a_node_that_serves_is_ready(tmp_path: Path) -> None:
    """200, and no reasons against it."""
    with RunningNode(tmp_path / "s") as node:
        wait_until(lambda: ask(node).status_code == 200, "it is ready")
        assert ask(node).json() == {"node": node.node, "ready": True, "reasons": []}


def test_a_node_whose_registry_is_away_is_not_ready_until_it_is_back(tmp_path: Path) -> None:
    """503 with the reason while the registry's file is locked; 200 by itself when it answers again."""
    with RunningNode(tmp_path / "s") as node:
        wait_until(lambda: ask(node).status_code == 200, "it is ready")
        lock = apsw.Connection(str(node.state / "cluster.db"))
        lock.execute("BEGIN IMMEDIATE")
        wait_until(lambda: ask(node).status_code == 503, "it is not ready")
        assert ask(node).json()["reasons"]
        lock.execute("ROLLBACK")
        lock.close()
        wait_until(lambda: ask(node).status_code == 200, "it is ready again")


async def test_a_node_that_cannot_store_is_not_ready(tmp_path: Path) -> None:
    """Below its disk reserve a node refuses sends with 503, and says so."""
    with RunningNode(tmp_path / "s", env={"YANCHAT_LIMITS_DISK_RESERVE": "1000000GiB"}) as node:
        async with connect(node.url, "ann") as ann:
            await ann.send(("bob",), "hello")
            receipt = await ann.receive()
            assert isinstance(receipt, Receipt)
            assert receipt.status == 503
        answer = ask(node)
        assert answer.status_code == 503
        assert "disk" in answer.json()["reasons"][0]


async def test_a_node_with_a_thread_that_does_not_come_back_is_not_healthy() -> None:
    """503 that names the thread: whoever watches it starts the node again."""
    lanes = {"store": 0.0, "bus": 29.0}
    async with open_cluster("n1") as cluster:
        node = cluster.nodes["n1"]
        control = Control(lambda: None, lambda: None, lambda: lanes, lambda: 7, LimitSettings)
        app = build_app(node.work, node.store, node.store, control)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://node") as http:
            well = await http.get("/healthz")
            lanes["bus"] = 31.0
            ill = await http.get("/healthz")
    assert (well.status_code, well.json()["healthy"], well.json()["connections"]) == (200, True, 7)
    assert (ill.status_code, ill.json()["healthy"]) == (503, False)
    assert "bus" in ill.json()["reasons"][0]


async def test_what_is_not_known_of_a_dead_node_is_not_made_up() -> None:
    """`/servers` has null for when it was started, not the year 1970."""
    async with open_cluster("n1") as cluster:
        node = cluster.nodes["n1"]
        (record,) = await node.work.registry.nodes()
        await node.work.registry.join(replace(record, node=Node("n0"), store="other", started_at=0))
        app = build_app(node.work, node.store, node.store, Control(*[lambda: None] * 2, dict, lambda: 0, LimitSettings))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://node") as http:
            dead, alive = (await http.get("/servers")).json()["servers"]
    assert (dead["node"], dead["started_at"]) == ("n0", None)
    assert alive["started_at"] == record.started_at
