"""Readiness: a load balancer asks it, and a person at night."""

from __future__ import annotations

from pathlib import Path

import apsw
import httpx

from tests.running import RunningNode, wait_until
from yanchat.client import connect
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
