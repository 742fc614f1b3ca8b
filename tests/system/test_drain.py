"""The end of a node: its clients are sent away in waves, what was taken is kept, and whoever asks is told."""

from __future__ import annotations

import signal
import socket
import time
from pathlib import Path

import pytest
import trio

from tests.running import RunningNode, call, wait_until
from tests.system.swarm import Swarm
from tests.system.test_kill import state_of
from yanchat.admin.client import ask_node
from yanchat.client import Client, Disconnected, connect
from yanchat.errors import StoreUnavailable, Unreachable
from yanchat.protocol.client_frames import Receipt

HEARTBEAT = '{"type": 11}'
HALF_OPEN = b"GET /ws?openid=slow HTTP/1.1\r\nHost: x\r\n"


async def closed(client: Client) -> int:
    """The code with which the node ends it."""
    with pytest.raises(Disconnected) as ended:
        while True:
            await client.receive()
    return ended.value.code


async def test_under_load_nothing_is_lost_and_everybody_is_back_on_the_other_node(tmp_path: Path) -> None:
    """Of two nodes one drains while users talk, and ends with 0; what it still had to tell comes when it is back."""
    with RunningNode(tmp_path / "state") as stays, RunningNode(tmp_path / "state") as goes:
        urls = [stays.url, goes.url]
        swarm = Swarm(lambda: urls, [f"user{n}" for n in range(16)], seed=1)
        async with trio.open_nursery() as nursery:
            for user in swarm.users.values():
                nursery.start_soon(user.live)
            await swarm.connected()
            nursery.start_soon(swarm.talk, 400, 0.005)
            await trio.sleep(0.5)
            urls.remove(goes.url)
            assert await trio.to_thread.run_sync(goes.terminate) == 0
            await swarm.connected()
            await trio.to_thread.run_sync(goes.start)
            await swarm.settled()
            nursery.cancel_scope.cancel()
        swarm.check()
        assert sum(user.reconnects for user in swarm.users.values()) > 0


async def test_clients_go_in_waves_and_are_served_until_then(tmp_path: Path) -> None:
    """Who is still there when the first have gone sends, and gets his receipt; the rest of the world is told."""
    with RunningNode(tmp_path / "state", env={"YANCHAT_NODE_DRAIN": "8s"}) as node, RunningNode(node.state):
        await ask_node(node.directory / "admin.sock", "GET", "/readyz")  # the first answer takes longer than the waves
        ends: list[float] = []
        receipts: list[float] = []

        async def stay(number: int, ready: trio.Event, drains: trio.Event) -> None:
            async with connect(node.url, f"user{number}") as client:
                ready.set()
                await drains.wait()
                try:
                    while True:
                        await client.send((f"user{number}",), "still there")
                        while not isinstance(await client.receive(), Receipt):
                            pass
                        if ends:
                            receipts.append(time.monotonic())
                        await trio.sleep(0.2)
                except Disconnected as ended:
                    assert ended.code == 1012
                    ends.append(time.monotonic())

        drains = trio.Event()
        async with trio.open_nursery() as nursery:
            for number in range(100):
                ready = trio.Event()
                nursery.start_soon(stay, number, ready, drains)
                await ready.wait()
            drains.set()
            ended = trio.Event()

            async def terminate() -> None:
                assert await trio.to_thread.run_sync(node.terminate) == 0
                ended.set()

            nursery.start_soon(terminate)
            with trio.fail_after(20):
                while not ends:
                    await trio.sleep(0.01)
            assert len(ends) < 100
            assert state_of(node) == "draining"
            with pytest.raises(StoreUnavailable):
                await ask_node(node.directory / "admin.sock", "GET", "/readyz")
            with pytest.raises(Unreachable):
                async with connect(node.url, "late"):
                    pass
            await ended.wait()
        assert len(ends) == 100
        assert receipts
        assert ends[-1] - ends[0] > 0.3, "ten waves with pauses between them"


async def test_nothing_waits_for_clients_who_are_few_or_do_not_answer(tmp_path: Path) -> None:
    """`node.drain` is how long it may take, not how long it takes; one who is half open does not hold it up."""
    with RunningNode(tmp_path / "state", env={"YANCHAT_NODE_DRAIN": "1h"}) as node:
        with socket.create_connection(("127.0.0.1", node.port)) as half_open:
            half_open.sendall(HALF_OPEN)
            async with connect(node.url, "ann") as ann, trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, node.terminate)
                assert await closed(ann) == 1012
        assert node.process is not None
        assert node.process.returncode == 0


def test_the_message_table_is_left_whole(tmp_path: Path) -> None:
    """All of the log is in the file: a backup of `node.db` alone has everything."""
    with RunningNode(tmp_path / "state") as node:
        call("send", "bob", "kept", "--as", "ann", "--wait", "accepted", state=node.state)
        assert node.terminate() == 0
        assert (node.directory / "node.db").stat().st_size > 0
        assert not (node.directory / "node.db-wal").exists()


async def test_an_order_to_drain_is_as_good_as_sigterm_and_a_signal_then_is_the_first(tmp_path: Path) -> None:
    """POST /drain; SIGTERM behind it, as a service manager sends it, does not end the node at once."""
    with RunningNode(tmp_path / "state", env={"YANCHAT_NODE_DRAIN": "3s"}) as node:
        async with connect(node.url, "ann") as ann:
            await ask_node(node.directory / "admin.sock", "POST", "/drain", body={})
            assert node.process is not None
            node.process.send_signal(signal.SIGTERM)
            assert await closed(ann) == 1012
            assert await trio.to_thread.run_sync(node.wait) == 0
    log = node.log.read_text()
    assert "node.stopped" in log
    assert "stopped_at_once" not in log


# -- one port for several nodes ----------------------------------------------------------------------------------------
async def test_nodes_that_share_a_port_keep_their_names(tmp_path: Path) -> None:
    """The kernel spreads the clients over them; each is a node of its own, and stops without the other."""
    state = tmp_path / "state"
    with RunningNode(state, "--advertise", "127.0.0.1:1", env={"YANCHAT_NODE_REUSE_PORT": "true"}) as first:
        port = Path(first.url).parts[1].rpartition(":")[2]
        second = RunningNode(
            state, "--advertise", "127.0.0.1:2", port=int(port), env={"YANCHAT_NODE_REUSE_PORT": "true"}
        )
        with second:
            assert first.url == second.url == f"ws://127.0.0.1:{port}/ws"
            seen: set[str] = set()
            with trio.fail_after(20):
                while len(seen) < 2:
                    async with connect(first.url, "ann") as ann:
                        seen.add(ann.hello.node)
            assert seen == {"127.0.0.1:1", "127.0.0.1:2"}
            assert second.terminate() == 0
            for _ in range(10):
                async with connect(first.url, "ann") as ann:
                    assert ann.hello.node == "127.0.0.1:1"


def test_a_shared_port_needs_a_name_for_each(tmp_path: Path) -> None:
    refused = call("serve", "--listen", "127.0.0.1:0", state=tmp_path, env={"YANCHAT_NODE_REUSE_PORT": "true"})
    assert refused.returncode == 78
    assert "node.advertise: each of the nodes that share a port needs one of its own" in refused.stderr


def test_an_address_is_not_shared_unless_both_say_so(tmp_path: Path) -> None:
    with RunningNode(tmp_path / "state", "--advertise", "127.0.0.1:1", env={"YANCHAT_NODE_REUSE_PORT": "true"}) as node:
        port = Path(node.url).parts[1].rpartition(":")[2]
        taken = call("serve", "--listen", f"127.0.0.1:{port}", state=tmp_path / "other")
        assert taken.returncode == 4
        wait_until(lambda: node.process is not None and node.process.poll() is None, "the first serves on", 1)
