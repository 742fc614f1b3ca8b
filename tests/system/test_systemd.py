"""What a service manager relies on: sd_notify over a real datagram socket, the watchdog, sockets that are handed over.

No systemd runs here as process 1; its tools do the rest: `systemd-analyze` reads the units, `systemd-socket-activate`
hands sockets over.
"""

from __future__ import annotations

import re
import shutil
import socket
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import trio

from tests.running import DEADLINE, RunningNode, call, command, environment, wait_until
from tests.services import free_port
from tests.system.activated import activated, needs_tools
from yanchat.client import Disconnected, connect
from yanchat.protocol.client_frames import Message, Receipt
from yanchat.systemd import ServiceManager

States = dict[str, str]


class Manager:
    """The other end of NOTIFY_SOCKET."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self.told: list[States] = []

    def next(self, within: float = DEADLINE) -> States | None:
        """The next datagram; None when none comes in time."""
        self._socket.settimeout(within)
        try:
            states = dict(line.split("=", 1) for line in self._socket.recv(4096).decode().splitlines())
        except TimeoutError:
            return None
        self.told.append(states)
        return states

    def wait_for(self, name: str, value: str | None = None) -> States:
        """The next datagram that says this; AssertionError when it does not come in time."""
        end = time.monotonic() + DEADLINE
        while time.monotonic() < end:
            states = self.next(max(0.01, end - time.monotonic()))
            if states and name in states and value in {None, states[name]}:
                return states
        raise AssertionError(f"{name}={value} was not told, only {self.told}")

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with closing(Manager(tmp_path / "notify")) as manager:
        yield manager


def notified(tmp_path: Path, *options: str, **env: str) -> RunningNode:
    return RunningNode(tmp_path / "state", *options, env={"NOTIFY_SOCKET": str(tmp_path / "notify"), **env})


# -- states ------------------------------------------------------------------------------------------------------------
def test_the_life_of_a_node_is_told(tmp_path: Path, manager: Manager) -> None:
    """Starting, ready, numbers, reloading and ready again, stopping: each once it is so."""
    with notified(tmp_path) as node:
        assert "Starting" in manager.wait_for("STATUS")["STATUS"]
        manager.wait_for("READY", "1")
        assert "0 connections" in manager.wait_for("STATUS")["STATUS"]
        node.hang_up()
        reloading = manager.wait_for("RELOADING", "1")
        assert int(reloading["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
        manager.wait_for("READY", "1")
        assert node.terminate() == 0
        stopping = manager.wait_for("STOPPING", "1")
        assert int(stopping["EXTEND_TIMEOUT_USEC"]) > 10_000_000


async def test_the_status_has_live_numbers(tmp_path: Path, manager: Manager) -> None:
    """Whoever types `systemctl status` sees how many are there and what waits."""
    with notified(tmp_path, WATCHDOG_USEC="3000000") as node:
        async with connect(node.url, "ann") as ann:
            await ann.send(("nobody",), "hello")

            def wait() -> None:
                while "1 connections, 1 sessions" not in (status := manager.wait_for("STATUS")["STATUS"]):
                    assert "Starting" in status or "0 sessions" in status
                assert "1 pending" in status

            await trio.to_thread.run_sync(wait)


def test_an_abstract_socket_serves_as_well() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0yanchat-test")
        ServiceManager({"NOTIFY_SOCKET": "@yanchat-test"}).tell(READY=1, STATUS="well")
        assert listener.recv(100) == b"READY=1\nSTATUS=well"


def test_a_manager_that_has_gone_harms_nobody(tmp_path: Path) -> None:
    """Nobody listens at NOTIFY_SOCKET: the node serves."""
    with notified(tmp_path) as node:
        assert node.terminate() == 0
    assert "systemd.notify_fails" in node.log.read_text()


# -- the watchdog ------------------------------------------------------------------------------------------------------
def feeds(manager: Manager, within: float) -> int:
    """How often the watchdog is fed in that time."""
    end, fed = time.monotonic() + within, 0
    while (left := end - time.monotonic()) > 0:
        states = manager.next(left)
        fed += states is not None and states.get("WATCHDOG") == "1"
    return fed


def test_the_watchdog_is_fed_while_the_node_lives_and_not_while_its_loop_stands_still(
    tmp_path: Path, manager: Manager
) -> None:
    with notified(tmp_path, WATCHDOG_USEC="600000") as node:
        manager.wait_for("READY", "1")
        assert feeds(manager, 1.5) >= 2
        node.pause()
        feeds(manager, 0.3)  # what was under way
        assert feeds(manager, 1.0) == 0
        node.resume()
        manager.wait_for("WATCHDOG", "1")


@pytest.mark.parametrize(("file", "lane"), [("nodes/*/node.db", "store"), ("cluster.db", "cluster")])
async def test_a_thread_that_is_stuck_stops_the_feeding(file: str, lane: str, tmp_path: Path, manager: Manager) -> None:
    """The loop itself goes on all the while. When the thread is free again, so is the watchdog."""
    with notified(tmp_path, WATCHDOG_USEC="600000") as node:
        await trio.to_thread.run_sync(manager.wait_for, "READY")
        (path,) = node.state.glob(file)
        async with connect(node.url, "ann") as ann:
            with closing(sqlite3.connect(path, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")  # whoever writes waits, up to 10 s
                await ann.send(("bob",), "hello")
                says = f"The thread {lane} is stuck"
                await trio.to_thread.run_sync(manager.wait_for, "STATUS", says)
                assert await trio.to_thread.run_sync(feeds, manager, 1.0) == 0
                await ann.send_raw('{"type": 11}')
                while '"type":12' not in (await ann.receive_raw()).replace(" ", ""):
                    pass
                other.execute("ROLLBACK")
            await trio.to_thread.run_sync(manager.wait_for, "WATCHDOG")
    assert f'"lane": "{lane}"' in node.log.read_text()


def test_a_watchdog_of_another_process_is_not_ours() -> None:
    """WATCHDOG_PID names who is meant: what a parent was given does not count for its child."""
    environment = {"WATCHDOG_USEC": "5000000", "WATCHDOG_PID": "17"}
    assert ServiceManager(environment, pid=18).watchdog == 0
    assert ServiceManager(environment, pid=17).watchdog == 5
    assert ServiceManager({"WATCHDOG_USEC": "x"}).watchdog == 0


def test_the_watchdogs_bite_shows_where_each_thread_was(tmp_path: Path) -> None:
    """SIGABRT is how it bites; the log says what the threads were doing, and no values."""
    with notified(tmp_path) as node:
        node.abort()
        assert node.wait() == -6
    log = node.log.read_text()
    assert "Fatal Python error: Aborted" in log
    assert 'lane.py", line' in log


# -- sockets that are handed over --------------------------------------------------------------------------------------
@needs_tools
async def test_a_restart_on_a_socket_that_is_handed_over_refuses_nobody(tmp_path: Path) -> None:
    """Who connects while no node runs waits in the socket's queue, and is served by the next one.

    Whom the first one took just before it stopped is sent away like all its clients, and comes back.
    """
    with activated(tmp_path / "state", tmp_path / "log") as site:
        came: list[str] = []

        async def come(number: int) -> None:
            while True:
                try:
                    async with connect(site.url, f"user{number}") as client:
                        came.append(client.hello.node)
                        return
                except Disconnected as ended:
                    assert ended.code == 1012

        async with connect(site.url, "ann") as ann:  # which starts the first node
            assert await trio.to_thread.run_sync(site.ready) == site.url
            await ann.send(("bob",), "kept over the restart")
            assert isinstance(await ann.receive(), Receipt)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, site.ready)
                site.terminate_node()
                for number in range(50):
                    nursery.start_soon(come, number)
                    await trio.sleep(0.03)
            with pytest.raises(Disconnected) as ended:
                while True:
                    await ann.receive()
            assert ended.value.code == 1012
        assert len(came) == 50
        async with connect(site.url, "bob") as bob:
            message = await bob.receive()
            assert isinstance(message, Message)
            assert message.text == "kept over the restart"


@needs_tools
def test_strangers_are_kept_off_a_socket_that_is_handed_over(tmp_path: Path) -> None:
    """Where it listens is what counts, not what the settings say."""
    port = free_port()
    tool = ["systemd-socket-activate", "-l", f"0.0.0.0:{port}"]
    serve = command("serve", state=tmp_path / "state")
    log = tmp_path / "log"
    with log.open("w") as errors, subprocess.Popen([*tool, *serve], env=environment(), stderr=errors) as process:
        wait_until(lambda: "Listening on" in log.read_text(), "it listens")
        socket.create_connection(("127.0.0.1", port)).close()
        assert process.wait(DEADLINE) == 78
    assert f"anybody who reaches 0.0.0.0:{port} may be anybody" in log.read_text()


@needs_tools
def test_a_socket_that_is_none_of_tcps_is_refused(tmp_path: Path) -> None:
    tool = ["systemd-socket-activate", "-l", str(tmp_path / "socket"), "--fdname=wrong"]
    serve, log = command("serve", state=tmp_path / "state"), tmp_path / "log"
    with log.open("w") as errors, subprocess.Popen([*tool, *serve], env=environment(), stderr=errors) as process:
        wait_until(lambda: "Listening on" in log.read_text(), "it listens")
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "socket"))
            assert process.wait(DEADLINE) == 78
    assert "The socket 'wrong' does not listen for TCP" in log.read_text()


def test_sockets_for_another_process_are_left_alone() -> None:
    """LISTEN_PID names who is meant."""
    assert ServiceManager({"LISTEN_PID": "17", "LISTEN_FDS": "1"}, pid=18).sockets() == []


# -- the units ---------------------------------------------------------------------------------------------------------
ROOT = Path(__file__).resolve().parents[2]
MOST_EXPOSED = 1.5


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """A root directory with the units where they belong, and what they start."""
    root = tmp_path / "root"
    own = Path("/usr/lib/systemd/system")
    if not own.exists():
        pytest.skip("systemd's own units are missing: apt-get install systemd")
    for program in (root / "opt/yanchat/current/bin/yanchat", root / "bin/kill"):
        program.parent.mkdir(parents=True)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    shutil.copytree(ROOT / "systemd", root / "etc/systemd/system")
    shutil.copytree(own, root / "usr/lib/systemd/system", symlinks=True)
    return root


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is missing: apt-get install systemd")
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("unit", ["yanchat@8084.service", "yanchat@8084.socket", "yanchat.target"])
def test_the_units_are_well_formed(unit: str, units: Path) -> None:
    """`systemd-analyze verify` has nothing to say."""
    done = analyze("verify", f"--root={units}", "--man=no", unit)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if "yanchat" in line] == []


@pytest.mark.parametrize(("unit", "by"), [("service", "multi-user.target"), ("socket", "sockets.target")])
def test_what_is_enabled_starts_with_the_machine(unit: str, by: str, units: Path) -> None:
    """Nothing else has to be enabled: after a reboot every node is there again."""
    if shutil.which("systemctl") is None:
        pytest.skip("systemctl is missing: apt-get install systemd")
    call = ["systemctl", f"--root={units}", "enable", f"yanchat@8084.{unit}"]
    done = subprocess.run(call, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert (units / f"etc/systemd/system/{by}.wants/yanchat@8084.{unit}").is_symlink()


def test_the_service_is_hardly_exposed(units: Path) -> None:
    done = analyze(
        "security", "--offline=true", "--no-pager", "--json=off", str(units / "etc/systemd/system/yanchat@.service")
    )
    found = re.search(r"Overall exposure level for yanchat@.*: ([\d.]+)", done.stdout)
    assert found, done.stdout + done.stderr
    assert float(found[1]) <= MOST_EXPOSED


def test_a_wrong_setting_is_not_tried_again_and_again() -> None:
    """The exit codes that no restart mends are those that the unit names."""
    unit = (ROOT / "systemd/yanchat@.service").read_text()
    assert "RestartPreventExitStatus=2 78\n" in unit
    assert call("serve", "--nonsense").returncode == 2
    assert call("serve", env={"YANCHAT_NODE_LISTEN": "nonsense"}).returncode == 78
