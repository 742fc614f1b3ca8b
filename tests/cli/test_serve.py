"""`yanchat serve`: its ready line, its log, and every reason for which it does not start."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
from functools import partial
from pathlib import Path

import pytest

from tests.running import RunningNode, call, finish, read_line, running, wait_until


def test_it_prints_one_line_with_the_url_and_ends_with_0_on_sigterm(tmp_path: Path) -> None:
    """What a service manager relies on."""
    with running("serve", "--listen", "127.0.0.1:0", state=tmp_path) as process:
        line = read_line(process)
        code, rest, log = finish(process)
    assert line.startswith("Serving at ws://127.0.0.1:")
    assert line.endswith("/ws\n")
    assert rest == ""
    assert code == 0
    assert json.loads(log.splitlines()[0])["event"] == "node.ready"


def test_ctrl_c_drains_and_ends_with_0(tmp_path: Path) -> None:
    """SIGINT is a way to stop a node as good as SIGTERM."""
    with running("serve", "--listen", "127.0.0.1:0", state=tmp_path) as process:
        read_line(process)
        code, _, log = finish(process, signal.SIGINT)
    assert code == 0
    assert "Traceback" not in log
    assert "node.stopped" in log


def test_a_killed_node_starts_again_at_once_on_its_address(tmp_path: Path) -> None:
    """A restart waits for no lease."""
    with RunningNode(tmp_path / "state") as node:
        before = node.url
        node.restart()
        assert node.url == before
        assert node.terminate() == 0


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--listen", "nonsense"], 2, "HOST:PORT"),
        (["--listen", "127.0.0.1:99999"], 2, "HOST:PORT"),
        (["--listen", "0.0.0.0:0"], 78, "--insecure"),
        (["--listen", "0.0.0.0:0", "--insecure"], 78, "node.advertise"),
        (["--listen", "127.0.0.1:0", "--advertise", "nonsense"], 2, "node.advertise"),
        (["--listen", "127.0.0.1:0", "--advertise", "мой:8084"], 78, "cannot name a node"),
        (["--listen", "127.0.0.1:0", "--advertise", f"{'n' * 250}:8084"], 78, "cannot name a node"),
        (["--listen", "no.such.host.invalid:1"], 78, "cannot be resolved"),
        (["--log-format", "xml"], 2, "--log-format"),
        (["--log-level", "loud"], 2, "--log-level"),
        (["--nonsense"], 2, "--nonsense"),
        (["surplus"], 2, "surplus"),
    ],
)
def test_a_wrong_call_is_one_sentence(arguments: list[str], code: int, says: str, tmp_path: Path) -> None:
    """The sentence names what is wrong; the code says whose fault it is."""
    done = call("serve", *arguments, state=tmp_path)
    assert done.returncode == code
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def test_an_address_in_use_ends_with_4(tmp_path: Path) -> None:
    """Whoever holds the port, the sentence says what to do."""
    with socket.create_server(("127.0.0.1", 0)) as holder:
        done = call("serve", "--listen", f"127.0.0.1:{holder.getsockname()[1]}", state=tmp_path)
    assert done.returncode == 4
    assert "--listen" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_second_node_on_a_taken_address_ends_with_4(tmp_path: Path) -> None:
    """Also when only the advertised address is the same: the directory is held."""
    with RunningNode(tmp_path / "state") as node:
        done = call("serve", "--listen", "127.0.0.1:0", "--advertise", node.node, state=node.state)
        assert done.returncode == 4
        assert node.node in done.stderr
        assert "Traceback" not in done.stderr


def test_an_unknown_key_is_refused_by_file_and_line(tmp_path: Path) -> None:
    """A typing error in the file must not be ignored."""
    file = tmp_path / "yanchat.toml"
    file.write_text('[node]\n# a comment\nlisten = "127.0.0.1:0"\nlistn = "x"\n')
    done = call("serve", "--config", file, state=tmp_path)
    assert done.returncode == 78
    assert f"{file}:4" in done.stderr
    assert "'listen'" in done.stderr


def test_a_file_that_is_not_there_or_no_toml_is_refused(tmp_path: Path) -> None:
    """--config that cannot be read never falls back to defaults."""
    missing = call("serve", "--config", tmp_path / "none.toml", state=tmp_path)
    (tmp_path / "bad.toml").write_text("[node\n")
    broken = call("serve", state=tmp_path, env={"YANCHAT_CONFIG": str(tmp_path / "bad.toml")})
    assert (missing.returncode, broken.returncode) == (78, 78)
    assert "none.toml cannot be read: No such file or directory; give another --config." in missing.stderr
    assert "bad.toml" in broken.stderr


def test_settings_come_from_the_environment_and_options_win(tmp_path: Path) -> None:
    """Defaults < file < environment < options."""
    file = tmp_path / "yanchat.toml"
    file.write_text('[node]\nlisten = "127.0.0.1:99999"\n[log]\nlevel = "loud"\n')
    bad_level = call("serve", "--listen", "127.0.0.1:0", "--config", file, state=tmp_path)
    assert f"{file}:4" in bad_level.stderr
    file.write_text('[node]\nlisten = "127.0.0.1:99999"\n')
    with running(
        "serve", "--listen", "127.0.0.1:0", "--config", file, state=tmp_path, env={"YANCHAT_NODE_LISTEN": "nonsense"}
    ) as process:
        assert "Serving at" in read_line(process)


def test_an_unknown_variable_is_warned_of(tmp_path: Path) -> None:
    """A setting that is misspelled in a unit file shows."""
    with running("serve", "--listen", "127.0.0.1:0", state=tmp_path, env={"YANCHAT_NODE_LISTN": "x"}) as process:
        read_line(process)
        _, _, log = finish(process)
    assert "YANCHAT_NODE_LISTN" in log.splitlines()[0]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"STATE_DIRECTORY": "{tmp}/systemd:{tmp}/other", "XDG_STATE_HOME": "{tmp}/xdg"}, "systemd"),
        ({"XDG_STATE_HOME": "{tmp}/xdg"}, "xdg/yanchat"),
        ({"HOME": "{tmp}"}, ".local/state/yanchat"),
        ({"YANCHAT_NODE_STATE_DIR": "{tmp}/set", "STATE_DIRECTORY": "{tmp}/systemd"}, "set"),
    ],
    ids=["systemd", "xdg", "home", "settings"],
)
def test_state_is(variables: dict[str, str], expected: str, tmp_path: Path) -> None:
    """The settings, else systemd's directory, else XDG's, else under the home directory."""
    env = {name: value.format(tmp=tmp_path) for name, value in variables.items()}
    with running("serve", "--listen", "127.0.0.1:0", "--json", env=env) as process:
        ready = json.loads(read_line(process))
    assert ready["state_dir"] == str(tmp_path / expected)
    assert (tmp_path / expected / "cluster.db").exists()


def test_a_state_directory_that_cannot_be_is_refused(tmp_path: Path) -> None:
    """A file stands where the directory should be."""
    (tmp_path / "file").write_text("")
    done = call("serve", "--listen", "127.0.0.1:0", state=tmp_path / "file")
    assert done.returncode == 78
    assert "--state-dir" in done.stderr


def test_a_path_that_is_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    """A Unix socket's path ends at 107 bytes: better said at the start than met later."""
    done = call("serve", "--listen", "127.0.0.1:0", state=tmp_path / ("x" * 120))
    assert done.returncode == 78
    assert "too long" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    """Whoever presses Ctrl-C twice means it; clients that do not close hold nothing up."""
    with RunningNode(tmp_path / "state") as node:
        with socket.create_connection(("127.0.0.1", node.port)) as silent:
            silent.sendall(
                b"GET /ws?openid=ann HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            )
            assert silent.recv(10)
            os.kill(node.pid, signal.SIGTERM)
            wait_until(lambda: "node.draining" in node.log.read_text(), "it drains")
            os.kill(node.pid, signal.SIGTERM)
            assert node.wait() == 0
        assert "Traceback" not in node.log.read_text()


@pytest.mark.parametrize("nobody", [False, True])
def test_a_log_that_cannot_be_written_holds_up_nothing(tmp_path: Path, nobody: bool) -> None:
    """A full disk, or whoever read the log is gone: messages pass, and the node ends as it should."""
    reader, writer = os.pipe()
    os.close(reader)
    log = os.fdopen(writer, "wb") if nobody else Path("/dev/full").open("wb")  # noqa: SIM115
    with log, running("serve", "--listen", "127.0.0.1:0", "--json", state=tmp_path, stderr=log) as process:
        url = json.loads(read_line(process))["url"]
        sent = call("send", "bob", "hello", "--as", "ann", "--wait", "accepted", "--url", url, state=tmp_path)
        assert sent.returncode == 0, sent.stderr
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_the_log_is_json_by_default_and_for_people_on_request(tmp_path: Path) -> None:
    """Without a terminal, programs read the log."""
    with running("serve", "--listen", "127.0.0.1:0", "--log-format", "console", state=tmp_path) as process:
        read_line(process)
        _, _, log = finish(process)
    assert "node.ready" in log
    assert not log.startswith("{")
    assert "\x1b" not in log


def test_nobody_else_reads_what_a_node_keeps(tmp_path: Path) -> None:
    """Messages lie in these files, whatever the umask of who starts the node."""
    with RunningNode(tmp_path / "state") as node:
        kept = [node.state, *node.state.rglob("*")]
        assert {"cluster.db", "node.db", "lock", "admin.sock"} <= {path.name for path in kept}
        assert [path for path in kept if path.stat().st_mode & 0o077] == []


def test_a_start_without_room_is_warned_of(tmp_path: Path) -> None:
    """Its clients get 503; whoever starts it sees why."""
    env = {"YANCHAT_LIMITS_DISK_RESERVE": "1000000GiB"}
    with running("serve", "--listen", "127.0.0.1:0", "--json", state=tmp_path, env=env) as process:
        read_line(process)
        _, _, log = finish(process)
    (line,) = [line for line in log.splitlines() if "disk.nearly_full" in line]
    assert json.loads(line)["level"] == "warning"
    assert "make room" in json.loads(line)["fix"]


def test_a_node_that_never_was_leaves_no_directory(tmp_path: Path) -> None:
    """What its registry refuses is no node of this machine, and commands do not ask for it; one that was one stays."""
    state = tmp_path / "state"
    wrong = ("--profile", "cluster", "--redis", "redis+sentinel://127.0.0.1:1")
    assert call("serve", "--listen", "127.0.0.1:0", *wrong, state=state).returncode == 78
    assert list((state / "nodes").iterdir()) == []
    with RunningNode(state) as node:
        node.kill()
        assert call("serve", "--listen", node.node, *wrong, state=state).returncode == 78
        assert (node.directory / "node.db").exists()


def test_a_start_with_too_few_descriptors_says_so(tmp_path: Path) -> None:
    """Whatever it is that meets the end of them first."""
    for most in range(14, 64, 2):
        few = partial(resource.setrlimit, resource.RLIMIT_NOFILE, (most, most))
        with running("serve", "--listen", "127.0.0.1:0", state=tmp_path, preexec_fn=few) as process:
            assert process.stdout is not None
            if process.stdout.readline():
                break
            _, log = process.communicate(timeout=20)
        assert process.returncode in {1, 4, 5, 78}, log
        assert "should not happen" not in log
