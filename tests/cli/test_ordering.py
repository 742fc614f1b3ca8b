"""`kick` and `drain`: the orders of an operator, to nodes of this machine and of others."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import trio

from tests.admin.asking import token_file, with_tcp
from tests.running import RunningNode, call, wait_until
from yanchat.client import Client, Disconnected, connect

TOKEN = "0123456789abcdef-0123456789"


async def close_code(client: Client) -> int:
    """With which code the node closes this session."""
    with trio.fail_after(20):
        try:
            while True:
                await client.receive()
        except Disconnected as ended:
            return ended.code


@contextmanager
def two_machines(directory: Path) -> Iterator[tuple[RunningNode, RunningNode, Path, Path]]:
    """Two nodes of one cluster, of which the second is known through the registry alone; a token's file; a state
    directory with the registry and no node."""
    file = token_file(directory, TOKEN)
    with ExitStack() as stack:
        one, two = (stack.enter_context(RunningNode(directory / "s", env=with_tcp(file))) for _ in range(2))
        elsewhere = directory / "e"
        elsewhere.mkdir()
        for name in ("cluster.db", "cluster.db-wal", "cluster.db-shm"):
            (elsewhere / name).symlink_to(directory / "s" / name)
        yield one, two, file, elsewhere


async def test_kick_closes_all_sessions_of_a_user_on_whatever_node(tmp_path: Path) -> None:
    """With close code 4002; nobody else's."""
    with RunningNode(tmp_path / "s") as one, RunningNode(tmp_path / "s") as two:
        async with connect(one.url, "bob") as here, connect(two.url, "bob") as there, connect(one.url, "ann") as ann:
            done = await trio.to_thread.run_sync(lambda: call("kick", "--openid", "bob", "--json", state=one.state))
            assert done.returncode == 0, done.stderr
            kicked = json.loads(done.stdout)["kicked"]
            assert sorted((k["openid"], k["node"]) for k in kicked) == sorted([("bob", one.node), ("bob", two.node)])
            assert {k["session_id"] for k in kicked} == {here.hello.session_id, there.hello.session_id}
            assert await close_code(here) == 4002
            assert await close_code(there) == 4002
            await ann.send(("ann",), "still here")
            await ann.receive()
        listed = call("clients", "--json", state=one.state)
        assert "bob" not in listed.stdout


async def test_kick_closes_one_session(tmp_path: Path) -> None:
    with RunningNode(tmp_path / "s") as node:
        async with connect(node.url, "bob") as first, connect(node.url, "bob") as second:
            chosen = first.hello.session_id
            done = await trio.to_thread.run_sync(lambda: call("kick", "--session-id", chosen, state=node.state))
            assert done.returncode == 0, done.stderr
            assert done.stdout == f"{chosen} on {node.node} is told to go.\n"
            assert await close_code(first) == 4002
            await second.send(("bob",), "still here")
            await second.receive()


def test_kick_of_nobody_finds_nothing(tmp_path: Path) -> None:
    """Exit code 3; 2 for what is no user and no session."""
    with RunningNode(tmp_path / "s") as node:
        done = call("kick", "--openid", "bob", state=node.state)
        assert (done.returncode, done.stderr) == (3, "yanchat: bob has no session.\n")
        gone = f"{node.node}_bob_20240102102737"
        done = call("kick", "--session-id", gone, state=node.state)
        assert (done.returncode, done.stderr) == (3, f"yanchat: There is no session {gone}.\n")
        assert call("kick", "--openid", "a b", state=node.state).returncode == 2
        assert call("kick", "--session-id", "xyz", state=node.state).returncode == 2


async def test_kick_asks_another_node_when_the_first_is_dead(tmp_path: Path) -> None:
    with RunningNode(tmp_path / "s") as one, RunningNode(tmp_path / "s") as two:
        dead, alive = sorted((one, two), key=lambda node: node.node)
        async with connect(alive.url, "bob") as bob:
            dead.kill()
            done = await trio.to_thread.run_sync(lambda: call("kick", "--openid", "bob", state=alive.state))
            assert done.returncode == 0, done.stderr
            assert await close_code(bob) == 4002


async def test_kick_asks_a_node_of_another_machine(tmp_path: Path) -> None:
    """At its admin address, with the token; without it, it says what is missing."""
    with two_machines(tmp_path) as (one, _, file, elsewhere):
        async with connect(one.url, "bob") as bob:
            order = ("kick", "--openid", "bob")
            assert call(*order, state=elsewhere).returncode == 4
            done = await trio.to_thread.run_sync(lambda: call(*order, "--admin-token-file", file, state=elsewhere))
            assert done.returncode == 0, done.stderr
            assert await close_code(bob) == 4002


async def test_drain_stops_a_node_and_waits_for_it(tmp_path: Path) -> None:
    """Its clients are told to come again (1012), and it ends with exit code 0."""
    with RunningNode(tmp_path / "s", env={"YANCHAT_NODE_DRAIN": "1s"}) as node:
        async with connect(node.url, "bob") as bob, trio.open_nursery() as nursery:
            codes: list[int] = []

            async def end() -> None:
                codes.append(await close_code(bob))

            nursery.start_soon(end)
            done = await trio.to_thread.run_sync(lambda: call("drain", "--json", state=node.state))
        assert json.loads(done.stdout) == {"node": node.node, "state": "stopped"}, done.stderr
        assert codes == [1012]
        assert node.wait() == 0


def test_drain_need_not_wait(tmp_path: Path) -> None:
    with RunningNode(tmp_path / "s") as node:
        done = call("drain", "--no-wait", "--node", node.node, state=node.state)
        assert (done.returncode, done.stdout) == (0, f"{node.node} is draining.\n")
        assert node.wait() == 0


def test_drain_that_takes_too_long_is_not_waited_for(tmp_path: Path) -> None:
    """Exit code 4, and it says how many are left; the node goes on draining."""
    with RunningNode(tmp_path / "s") as node, socket.create_connection(("127.0.0.1", node.port)):
        # who has connected and says nothing is waited for
        done = call("drain", "--timeout", "0", state=node.state)
        assert done.returncode == 4
        assert "still drains after 0 s, with 1 clients left" in done.stderr
        assert node.wait() == 0


def test_drain_wants_to_know_which(tmp_path: Path) -> None:
    """Exit code 2 when several run, and nothing is done; one that was killed does not count."""
    with RunningNode(tmp_path / "s") as one, RunningNode(tmp_path / "s") as two:
        done = call("drain", state=one.state)
        assert done.returncode == 2
        assert one.node in done.stderr
        assert two.node in done.stderr
        assert call("drain", "--node", "127.0.0.1:1", state=one.state).returncode == 3
        two.kill()
        assert call("drain", "--node", two.node, state=one.state).returncode == 4
        wait_until(lambda: '"dead"' in call("servers", "--json", state=one.state).stdout, "it is dead")
        assert call("drain", state=one.state).returncode == 0
        assert one.wait() == 0


def test_drain_stops_a_node_of_another_machine(tmp_path: Path) -> None:
    with two_machines(tmp_path) as (one, two, file, elsewhere):
        order = ("drain", "--node", two.node)
        refused = call(*order, state=elsewhere)
        assert refused.returncode == 4
        assert "--admin-token-file" in refused.stderr
        assert call(*order, "--admin-token-file", file, state=elsewhere).returncode == 0
        assert two.wait() == 0
        assert one.process is not None
        assert one.process.poll() is None


@pytest.mark.parametrize("order", [("drain",), ("kick", "--openid", "bob")])
def test_another_token_is_refused(tmp_path: Path, order: tuple[str, ...]) -> None:
    """Exit code 5."""
    with two_machines(tmp_path) as (one, _, __, elsewhere):
        other = token_file(tmp_path, "another-token-0123456789")
        more = ("--node", one.node) if order[0] == "drain" else ()
        done = call(*order, *more, "--admin-token-file", other, state=elsewhere)
        assert done.returncode == 5
        assert "admin.token_file" in done.stderr
