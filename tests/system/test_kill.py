"""kill -9 of real nodes under load: every receipted message ends delivered, and its sender knows."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio

from tests.running import RunningNode, call, wait_until
from tests.system.swarm import Swarm
from yanchat import failpoint
from yanchat.client import Disconnected, connect
from yanchat.names import slug
from yanchat.protocol.client_frames import Message, Receipt

QUICK = {"YANCHAT_REDELIVERY_FIRST": "1s", "YANCHAT_REDELIVERY_LONGEST": "3s"}
"""Retries within the patience of a test."""
NAMES = [f"user{number}" for number in range(12)]


@pytest.fixture
def retries() -> dict[str, str]:
    return QUICK


@pytest.fixture
def nodes(tmp_path: Path, retries: dict[str, str]) -> Iterator[list[RunningNode]]:
    """Three nodes that share a directory."""
    with ExitStack() as stack:
        state = tmp_path / "state"
        yield [stack.enter_context(RunningNode(state, env=retries)) for _ in range(3)]


@pytest.mark.parametrize("retries", [{"YANCHAT_REDELIVERY_FIRST": "600s", "YANCHAT_REDELIVERY_LONGEST": "600s"}])
async def test_without_faults_nothing_is_repeated_or_out_of_order(nodes: list[RunningNode]) -> None:
    """A thousand messages between users on three nodes."""
    swarm = Swarm(lambda: [node.url for node in nodes], NAMES, seed=1)
    async with trio.open_nursery() as nursery:
        for user in swarm.users.values():
            nursery.start_soon(user.live)
        await swarm.connected()
        await swarm.talk(1000)
        await swarm.settled()
        nursery.cancel_scope.cancel()
    swarm.check(calm=True)


@pytest.mark.parametrize("seed", [1, 2])
async def test_nodes_killed_at_random_instants_lose_nothing(nodes: list[RunningNode], seed: int) -> None:
    """Each node is killed several times under load, as the sender's and as the recipient's, and restarted."""
    swarm = Swarm(lambda: [node.url for node in nodes], NAMES, seed)
    async with trio.open_nursery() as nursery:
        for user in swarm.users.values():
            nursery.start_soon(user.live)
        await swarm.connected()
        nursery.start_soon(swarm.talk, 1500)
        for _ in range(6):
            await trio.sleep(0.3 + 0.5 * swarm.rng.random())
            node = swarm.rng.choice(nodes)
            await trio.to_thread.run_sync(node.restart)
        await swarm.settled()
        nursery.cancel_scope.cancel()
    swarm.check()
    assert sum(user.reconnects for user in swarm.users.values()) > 0


@pytest.mark.parametrize("point", failpoint.NAMES)
async def test_a_crash_at_each_named_point_loses_nothing(nodes: list[RunningNode], point: str) -> None:
    """The node kills itself there, as kill -9 does, in the middle of traffic; then it comes back."""
    broken = nodes[0]
    broken.restart(YANCHAT_FAILPOINT=f"{point}:20")
    swarm = Swarm(lambda: [node.url for node in nodes], NAMES, seed=3)
    async with trio.open_nursery() as nursery:
        for user in swarm.users.values():
            nursery.start_soon(user.live)
        await swarm.connected()
        nursery.start_soon(swarm.talk, 600)
        assert await trio.to_thread.run_sync(broken.wait) == -9
        await trio.to_thread.run_sync(broken.start)
        await swarm.settled()
        nursery.cancel_scope.cancel()
    swarm.check()


async def test_absent_users_messages_survive_and_come_in_order(tmp_path: Path) -> None:
    """Three messages wait, the node is killed and started: all three arrive at the login, in order, once."""
    with RunningNode(tmp_path / "state") as node:
        swarm = Swarm(lambda: [node.url], ["ann", "bob"], seed=1)
        ann, bob = swarm.users["ann"], swarm.users["bob"]
        bob.away = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ann.live)
            nursery.start_soon(bob.live)
            for _ in range(3):
                await ann.send("bob")
            with trio.fail_after(10):
                while len(ann.promised) < 3:
                    await trio.sleep(0.01)
            await trio.to_thread.run_sync(node.restart)
            bob.away = False
            await swarm.settled()
            nursery.cancel_scope.cancel()
        assert [message.text for message in bob.got] == ["000001", "000002", "000003"]


def test_a_killed_node_serves_again_without_waiting_for_its_lease(tmp_path: Path) -> None:
    """The same directory and address: the restart takes over at once, and leaves no ghosts."""
    with RunningNode(tmp_path / "state") as node:
        for _ in range(3):
            node.restart()


def test_a_node_that_was_stopped_past_its_lease_serves_on(tmp_path: Path) -> None:
    """SIGSTOP for longer than the lease: it joins again as a new incarnation and lives."""
    with RunningNode(tmp_path / "state") as node, RunningNode(tmp_path / "state"):
        node.pause()
        wait_until(lambda: state_of(node) == "dead", "its lease has lapsed")
        node.resume()
        wait_until(lambda: state_of(node) == "up", "it has joined again")
        assert node.terminate() == 0


def state_of(node: RunningNode) -> str:
    """What the registry says of a node."""
    servers = json.loads(call("servers", "--json", state=node.state).stdout)
    return next(str(server["state"]) for server in servers if server["node"] == node.node)


def test_a_second_node_on_a_taken_address_ends_with_a_clear_error(tmp_path: Path) -> None:
    """In the same directory, and with another directory of its own: exit 4, and the first serves on."""
    with RunningNode(tmp_path / "state") as node:
        for state in (node.state, tmp_path / "other"):
            second = call("serve", "--listen", node.node, state=state)
            assert second.returncode == 4
            assert node.node in second.stderr
            assert "Traceback" not in second.stderr
        assert state_of(node) == "up"


def test_an_advertised_address_that_a_live_node_holds_is_refused(tmp_path: Path) -> None:
    """Two stores, one name in one cluster: the second ends with exit 4, and the first serves on."""
    with RunningNode(tmp_path / "state") as node:
        held = tmp_path / "state" / "nodes" / slug(node.node)
        held.rename(held.with_name("moved"))  # as if the second had brought its own directory to this address
        second = call("serve", "--listen", "127.0.0.1:0", "--advertise", node.node, state=tmp_path / "state")
        assert second.returncode == 4
        assert "held by another live node" in second.stderr
        assert state_of(node) == "up"


async def test_sigterm_finishes_what_was_taken_and_says_1012(tmp_path: Path) -> None:
    """What was receipted before the end is there after the restart, and clients are told to come back."""
    with RunningNode(tmp_path / "state") as node:
        async with connect(node.url, "ann") as ann:
            for number in range(50):
                await ann.send(("bob",), str(number))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, node.terminate)
                receipts = 0
                with pytest.raises(Disconnected) as ended:
                    while True:
                        receipts += isinstance(await ann.receive(), Receipt)
            assert ended.value.code == 1012
        node.start()
        async with connect(node.url, "bob") as bob:
            got = [await bob.receive() for _ in range(receipts)]
            assert [frame.text for frame in got if isinstance(frame, Message)] == [str(n) for n in range(receipts)]


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    """It ends although a client does not answer the closing handshake; nothing is left behind."""
    with RunningNode(tmp_path / "state") as node:
        assert node.process is not None
        node.process.send_signal(signal.SIGINT)
        node.process.send_signal(signal.SIGINT)
        node.wait()
        node.start()
