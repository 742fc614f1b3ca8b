"""A full disk under two nodes at work: sends are answered 503, nothing is lost, and it is over when there is room."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.admin.asking import admin
from tests.running import DEADLINE, RunningNode, call
from tests.small_disk import SmallDisk, small_disk
from tests.system.swarm import Swarm

NAMES = [f"user{number}" for number in range(12)]
QUICK = {"YANCHAT_REDELIVERY_FIRST": "1s", "YANCHAT_REDELIVERY_LONGEST": "3s"}
RESERVE = 2 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", megabytes=128) as disk:
        yield disk


@asynccontextmanager
async def at_work(nodes: Sequence[RunningNode], seed: int) -> AsyncIterator[Swarm]:
    """A swarm that talks until the body is over; then everything settles, and nothing is lost or in doubt."""
    swarm = Swarm(lambda: [node.url for node in nodes], NAMES, seed)
    async with trio.open_nursery() as nursery:
        for user in swarm.users.values():
            nursery.start_soon(user.live)
        await swarm.connected()
        enough = trio.Event()
        nursery.start_soon(talk, swarm, enough)
        yield swarm
        enough.set()
        for user in swarm.users.values():
            user.hop()  # and repeat what was refused
        await swarm.settled()
        nursery.cancel_scope.cancel()
    swarm.check()
    audit = await trio.to_thread.run_sync(lambda: call("audit", "--json", state=nodes[0].state))
    assert audit.returncode == 0, audit.stdout + audit.stderr


async def talk(swarm: Swarm, enough: trio.Event) -> None:
    while not enough.is_set():
        await swarm.talk(5, pause=0.02)


async def until_ready(nodes: Sequence[RunningNode], ready: bool) -> None:
    """Wait until each says so, whatever is sent meanwhile."""
    with trio.fail_after(DEADLINE):
        for node in nodes:
            while await trio.to_thread.run_sync(is_ready, node) != ready:
                await trio.sleep(0.1)


def is_ready(node: RunningNode) -> bool:
    with admin(node) as http:
        return http.get("/readyz").status_code == 200


async def refused(swarm: Swarm) -> None:
    """Wait until somebody is refused for want of room, and see that he is told so and when to come again."""
    with trio.fail_after(DEADLINE):
        while not any(user.refused for user in swarm.users.values()):
            await trio.sleep(0.05)
    for user in swarm.users.values():
        assert {receipt.status for receipt in user.refused} <= {503}
        assert all(receipt.retry_after > 0 and "disk" in receipt.error for receipt in user.refused)


async def test_below_the_reserve_sends_are_refused_and_what_was_accepted_goes_on(disk: SmallDisk) -> None:
    """Readiness is off until there is room; meanwhile all that has a receipt is delivered and told."""
    env = {**QUICK, "YANCHAT_LIMITS_DISK_RESERVE": str(RESERVE)}
    with RunningNode(disk.path, env=env) as first, RunningNode(disk.path, env=env) as second:
        nodes = [first, second]
        async with at_work(nodes, seed=1) as swarm:
            await until_ready(nodes, True)
            await trio.sleep(1)
            disk.fill(leave=RESERVE // 2)
            await refused(swarm)
            await until_ready(nodes, False)
            promised = {message_id for user in swarm.users.values() for message_id in user.promised}
            await swarm.settled(only=promised)
            assert not is_ready(first)
            disk.make_room()
            await until_ready(nodes, True)


async def test_a_disk_without_a_byte_loses_nothing(disk: SmallDisk) -> None:
    """Neither messages nor acks can be written, nor where anybody is; all of it is, when there is room."""
    env = {**QUICK, "YANCHAT_LIMITS_DISK_RESERVE": "0"}
    with RunningNode(disk.path, env=env) as first, RunningNode(disk.path, env=env) as second:
        nodes = [first, second]
        async with at_work(nodes, seed=2) as swarm:
            await trio.sleep(1)
            disk.fill()
            await refused(swarm)
            await until_ready(nodes, False)
            await trio.sleep(2)
            assert disk.free == 0
            disk.make_room()
            await until_ready(nodes, True)


async def test_nodes_that_end_on_a_full_disk_serve_again_when_there_is_room(disk: SmallDisk) -> None:
    """One is stopped and leaves in good order, one is killed."""
    env = {**QUICK, "YANCHAT_LIMITS_DISK_RESERVE": "0"}
    with RunningNode(disk.path, env=env) as first, RunningNode(disk.path, env=env) as second:
        nodes = [first, second]
        async with at_work(nodes, seed=3) as swarm:
            await trio.sleep(1)
            disk.fill()
            await refused(swarm)
            assert await trio.to_thread.run_sync(first.terminate) == 0
            second.kill()
            disk.make_room()
            for node in nodes:
                await trio.to_thread.run_sync(node.start)
            await until_ready(nodes, True)
