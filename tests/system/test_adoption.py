"""Real nodes of which one dies for good: its messages move to another, whatever is killed on the way."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import trio

from tests.dying import die
from tests.running import RunningNode, call, finish, running, wait_until
from tests.system.swarm import Swarm
from yanchat import adoption
from yanchat.backends.sqlite.store import open_store
from yanchat.client import Client, connect
from yanchat.model import Totals
from yanchat.protocol.client_frames import Message, Receipt, Settled

QUICK = {"YANCHAT_REDELIVERY_FIRST": "1s", "YANCHAT_REDELIVERY_LONGEST": "3s"}
TEXTS = [f"{number:04}" for number in range(1100)]
"""Three batches."""


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[RunningNode]]:
    """Three nodes that share a directory."""
    with ExitStack() as stack:
        yield [stack.enter_context(RunningNode(tmp_path / "state", env=QUICK)) for _ in range(3)]


async def leave_behind(node: RunningNode, kill: Callable[[RunningNode], None] = die) -> None:
    """Ann sends all of it to Bob, who is not there, and goes; then the node dies."""
    async with connect(node.url, "ann") as ann:
        for text in TEXTS:
            await ann.send(("bob",), text, request_id=text)
        receipts = 0
        with trio.fail_after(30):
            while receipts < len(TEXTS):
                receipts += isinstance(await ann.receive(), Receipt)
    await trio.to_thread.run_sync(kill, node)


async def get_all(bob: Client) -> list[Message]:
    """What comes to Bob until he has everything; he acks it."""
    got: dict[str, Message] = {}
    with trio.fail_after(60):
        while len(got) < len(TEXTS):
            frame = await bob.receive()
            if isinstance(frame, Message):
                got.setdefault(frame.message_id, frame)
                await bob.ack(frame)
    return list(got.values())


async def hear_all(ann: Client) -> None:
    """Wait until Ann has been told of everything."""
    told: set[str] = set()
    with trio.fail_after(60):
        while len(told) < len(TEXTS):
            frame = await ann.receive()
            if isinstance(frame, Settled):
                assert frame.status == 200
                told.add(frame.message_id)


async def everything_arrives(nodes: list[RunningNode]) -> None:
    """Bob and Ann log in on the nodes that live: it comes in order, and Ann is told of each."""
    async with connect(nodes[2].url, "bob") as bob:
        assert [message.text for message in await get_all(bob)] == TEXTS
        async with connect(nodes[1].url, "ann") as ann:
            await hear_all(ann)


async def totals(node: RunningNode) -> Totals:
    """What stands in the store of a node that does not run."""
    async with open_store(node.directory / "node.db") as store:
        return await store.totals()


def adopt(node: RunningNode, into: RunningNode | None = None) -> int:
    """Run it to its end; how many rows moved."""
    to = () if into is None else ("--into", into.node)
    done = call("redeliver", "--adopt", node.node, *to, "--json", *node.options, state=node.state)
    assert done.returncode == 0, done.stderr
    return int(json.loads(done.stdout)["adopted"])


async def test_the_messages_of_a_dead_node_arrive_from_another(nodes: list[RunningNode]) -> None:
    """And when it comes back, it sends nothing."""
    await leave_behind(nodes[0])
    assert await trio.to_thread.run_sync(adopt, nodes[0]) == len(TEXTS)
    assert await totals(nodes[0]) == Totals(moved=len(TEXTS))
    await trio.to_thread.run_sync(nodes[0].start)
    await everything_arrives(nodes)
    async with connect(nodes[0].url, "bob") as bob:
        with trio.move_on_after(1):
            while True:
                assert not isinstance(await bob.receive(), Message)


@pytest.mark.parametrize(
    ("point", "lives_between"), [("adopt-sent:2", False), ("adopt-answered:2", True), ("adopt-moved:2", False)]
)
async def test_a_run_that_is_killed_is_repeated(nodes: list[RunningNode], point: str, lives_between: bool) -> None:
    """In the middle of its second batch, at each of its steps; nothing comes twice, and all of it comes."""
    dead = nodes[0]
    await leave_behind(dead)
    died = await trio.to_thread.run_sync(
        lambda: call("redeliver", "--adopt", dead.node, state=dead.state, env={"YANCHAT_FAILPOINT": point})
    )
    assert died.returncode == -signal.SIGKILL
    assert 0 < (await totals(dead)).moved < len(TEXTS)
    if lives_between:
        await trio.to_thread.run_sync(dead.start)
        await trio.sleep(0.5)
        await trio.to_thread.run_sync(die, dead)
    assert await trio.to_thread.run_sync(adopt, dead) > 0
    assert await totals(dead) == Totals(moved=len(TEXTS))
    await trio.to_thread.run_sync(dead.start)
    await everything_arrives(nodes)
    left = [row for node in nodes for row in outbox(node)]
    assert not left, f"{len(left)} are open, the first: {left[:3]}"


@contextmanager
def adopting(dead: RunningNode, adopter: RunningNode) -> Iterator[subprocess.Popen[str]]:
    """A run that is under way, with the directory of the dead node in its hands."""
    doorbell = dead.directory / "doorbell"
    doorbell.unlink()
    with running("redeliver", "--adopt", dead.node, "--into", adopter.node, state=dead.state) as run:
        wait_until(doorbell.exists, "it runs")
        yield run


def outbox(node: RunningNode) -> list[object]:
    return list(json.loads(call("outbox", "--node", node.node, "--json", state=node.state).stdout))


async def test_an_adopter_that_is_killed_adopts_when_it_is_back(nodes: list[RunningNode]) -> None:
    """It dies between its commit and its answer: the run waits for it."""
    dead, adopter = nodes[:2]
    adopter.restart(YANCHAT_FAILPOINT="adopted:2")
    await leave_behind(dead)
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def run() -> None:
            done = await trio.to_thread.run_sync(
                lambda: call("redeliver", "--adopt", dead.node, "--into", adopter.node, state=dead.state)
            )
            assert done.returncode == 0, done.stderr

        assert await trio.to_thread.run_sync(adopter.wait) == -signal.SIGKILL
        await trio.to_thread.run_sync(adopter.start)
    assert await totals(dead) == Totals(moved=len(TEXTS))
    await everything_arrives(nodes)


async def test_a_node_that_comes_back_in_the_middle_is_refused(nodes: list[RunningNode]) -> None:
    """Exit code 4 while the run holds its directory; afterwards it starts, and has nothing left to send."""
    dead, adopter = nodes[:2]
    await leave_behind(dead)
    adopter.pause()
    with adopting(dead, adopter) as run:
        back = await trio.to_thread.run_sync(lambda: call("serve", "--listen", dead.node, state=dead.state))
        assert back.returncode == 4
        assert dead.node in back.stderr
        assert run.poll() is None
        adopter.resume()
        assert await trio.to_thread.run_sync(run.wait, 60) == 0
    await trio.to_thread.run_sync(dead.start)
    assert outbox(dead) == []
    await everything_arrives(nodes)


async def test_ctrl_c_leaves_everything_where_it_is(nodes: list[RunningNode]) -> None:
    """Nobody answers; the operator gives up; the dead node comes back and delivers by itself."""
    dead, adopter = nodes[:2]
    await leave_behind(dead)
    adopter.pause()
    with adopting(dead, adopter) as run:
        code, _, errors = await trio.to_thread.run_sync(finish, run, signal.SIGINT)
    assert code == 130
    assert "Traceback" not in errors
    adopter.resume()
    await trio.to_thread.run_sync(dead.start)
    await everything_arrives(nodes)


async def test_users_who_talk_on_lose_nothing_when_a_node_dies_for_good(nodes: list[RunningNode]) -> None:
    """Under load one of three is killed and never comes back; its messages move while the others go on."""
    urls = [node.url for node in nodes]
    swarm = Swarm(lambda: urls, [f"user{number}" for number in range(12)], seed=5)
    async with trio.open_nursery() as nursery:
        for user in swarm.users.values():
            nursery.start_soon(user.live)
        await swarm.connected()
        nursery.start_soon(swarm.talk, 1000)
        await trio.sleep(0.7)
        dead = nodes[0]
        urls.remove(dead.url)
        await trio.to_thread.run_sync(die, dead)
        await trio.sleep(0.5)
        moved = await trio.to_thread.run_sync(adopt, dead)
        await swarm.settled()
        nursery.cancel_scope.cancel()
    swarm.check()
    assert moved > 0
    assert (await totals(dead)).pending == 0


def test_batches_are_small_enough_for_what_is_tested() -> None:
    """The texts above make three batches: a run can be killed in its second."""
    assert len(TEXTS) // adoption.ROWS_AT_ONCE >= 2
