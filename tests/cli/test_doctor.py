"""`yanchat doctor`: each finding is made on purpose, on this machine and at its nodes."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from tests.admin.asking import token_file, with_tcp
from tests.cli.calls import quick
from tests.cli.terminal import on_terminal
from tests.gateway.credentials import Authority
from tests.running import RunningNode, call
from tests.services import Missing, wrong_clock
from yanchat.cli import repair
from yanchat.cli.checks import machine
from yanchat.gateway import admission

FEW_CLIENTS = {"YANCHAT_LIMITS_CONNECTIONS": "100"}
"""As many as any machine lets a process have, so that nothing is found that a test does not make."""
OLD_APSW = "3.46.1.0"


def examine(
    state: Path, *arguments: str | Path, code: int = 0, env: dict[str, str] | None = None
) -> dict[str, dict[str, str]]:
    """What is found, the worst of each check."""
    done = call("doctor", "--json", *arguments, state=state, env={**FEW_CLIENTS, **(env or {})})
    assert done.returncode == code, done.stdout + done.stderr
    rank = {"ok": 0, "warn": 1, "fail": 2}
    found: dict[str, dict[str, str]] = {}
    for one in json.loads(done.stdout):
        assert list(one) == ["check", "status", "detail", "fix"]
        assert bool(one["fix"]) == (one["status"] != "ok")
        if one["check"] not in found or rank[one["status"]] > rank[found[one["check"]]["status"]]:
            found[one["check"]] = one
    return found


@pytest.fixture
def node(tmp_path: Path) -> Iterator[RunningNode]:
    """A running node with a state directory of its own."""
    with RunningNode(tmp_path / "state", env=FEW_CLIENTS) as running_node:
        yield running_node


def test_a_node_that_is_well(node: RunningNode) -> None:
    """Everything is looked at, nothing is wrong, and nothing has to be done."""
    found = examine(node.state)
    assert {one["status"] for one in found.values()} == {"ok"}, found
    assert list(found) == [
        "disk.space",
        "sqlite",
        "program",
        "permissions.state",
        "nodes.reachable",
        "clock.nodes",
        "nodes.ready",
        "descriptors",
        "registry",
    ]
    done = call("doctor", state=node.state, env=FEW_CLIENTS)
    assert done.stderr == "All is well.\n"
    assert done.stdout.splitlines()[0].startswith("ok   disk.space ")


def test_a_person_sees_what_is_wrong_in_colour_with_what_to_do(tmp_path: Path) -> None:
    code, shown = on_terminal("doctor", state=tmp_path, YANCHAT_LIMITS_DISK_RESERVE="1000000GiB")
    assert code == 10
    assert "\x1b[31mfail disk.space" in shown
    assert "make room" in shown
    assert "1 failure, 2 warnings." in shown or "1 failure, 1 warning." in shown


def test_where_nothing_is_it_says_how_to_begin_and_makes_nothing(tmp_path: Path) -> None:
    found = examine(tmp_path / "none")
    assert "yanchat serve" in found["nodes"]["fix"]
    assert not (tmp_path / "none").exists()


# -- this machine ------------------------------------------------------------------------------------------------------
def test_a_disk_that_is_nearly_full(tmp_path: Path) -> None:
    """Below limits.disk_reserve nodes accept nothing; twice that is the last moment to see it coming."""
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    full = examine(tmp_path, code=10, env={"YANCHAT_LIMITS_DISK_RESERVE": str(free * 2)})["disk.space"]
    assert "limits.disk_reserve" in full["detail"]
    soon = examine(tmp_path, env={"YANCHAT_LIMITS_DISK_RESERVE": str(free // 3 * 2)})["disk.space"]
    assert soon["status"] == "warn"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small tmpfs, which needs root")
def test_a_small_disk_that_is_full(tmp_path: Path) -> None:
    """A real one."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", small], check=False)
    if mounted.returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        (small / "fill").write_bytes(b"x" * (3 << 20))
        env = {"YANCHAT_LIMITS_DISK_RESERVE": "2MiB"}
        assert "1.0 MiB of 4.0 MiB" not in examine(tmp_path, env=env)["disk.space"]["detail"]
        assert "MiB" in examine(small / "state", code=10, env=env)["disk.space"]["detail"]
        (small / "fill").unlink()
        assert examine(small / "state", env={"YANCHAT_LIMITS_DISK_RESERVE": "1MiB"})["disk.space"]["status"] == "ok"
    finally:
        subprocess.run(["umount", small], check=True)


def test_an_sqlite_that_is_too_old(tmp_path: Path) -> None:
    """A real one, out of an older package."""
    packages = _old_sqlite()
    found = examine(tmp_path, code=10, env={"PYTHONPATH": f"{packages}:{os.getcwd()}"})["sqlite"]
    assert "3.46.1 may corrupt" in found["detail"]
    assert "apsw>=3.51.3" in found["fix"]


def _old_sqlite() -> Path:
    """A folder with it, fetched by pip the first time."""
    packages = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "yanchat" / f"apsw-{OLD_APSW}"
    if not (packages / "apsw").exists():
        fetch = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", packages, f"apsw=={OLD_APSW}"]
        if subprocess.run(fetch, check=False).returncode:
            if os.environ.get("CI"):
                pytest.fail("an old apsw cannot be fetched by pip", pytrace=False)
            pytest.skip("an old apsw cannot be fetched by pip")
    return packages


def test_too_few_descriptors(node: RunningNode, tmp_path: Path) -> None:
    """Of a running node it is its own limit that counts; else that of whoever would start one here."""
    resource.prlimit(node.pid, resource.RLIMIT_NOFILE, (2000, 2000))
    found = examine(node.state, env={"YANCHAT_LIMITS_CONNECTIONS": "5000"})["descriptors"]
    assert found["status"] == "warn"
    assert "not 5000 (limits.connections)" in found["detail"]

    resource.prlimit(node.pid, resource.RLIMIT_NOFILE, (512, 512))
    found = examine(node.state, code=10)["descriptors"]
    assert f"{node.node} may open 512 files" in found["detail"]
    assert "LimitNOFILE" in found["fix"]

    shell = f"ulimit -n 512; exec {sys.executable} -m yanchat doctor --json --state-dir {tmp_path / 'none'}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False)
    assert done.returncode == 10
    assert "may open 512 files" in done.stdout


def test_as_many_descriptors_are_kept_as_a_node_keeps() -> None:
    assert machine.KEPT == admission.DESCRIPTORS_KEPT


# -- files -------------------------------------------------------------------------------------------------------------
def test_messages_that_others_may_read(node: RunningNode) -> None:
    """The whole directory, or one file that somebody has copied back."""
    node.directory.chmod(0o755)
    found = examine(node.state, code=10)["permissions.state"]
    assert str(node.directory) in found["detail"]
    subprocess.run(["sh", "-c", found["fix"]], check=True)
    assert examine(node.state)["permissions.state"]["status"] == "ok"
    (node.directory / "node.db").chmod(0o640)
    assert "node.db" in examine(node.state, code=10)["permissions.state"]["detail"]


@pytest.mark.parametrize("which", [".", "nodes"])
def test_directories_in_which_others_may_replace_what_nodes_keep(which: str, node: RunningNode) -> None:
    """That they may read the names in there does no harm."""
    (node.state / which).chmod(0o755)
    assert examine(node.state)["permissions.state"]["status"] == "ok"
    (node.state / which).chmod(0o777)
    found = examine(node.state, code=10)["permissions.state"]
    assert str(node.state / which) in found["detail"]
    subprocess.run(["sh", "-c", found["fix"]], check=True)
    assert examine(node.state)["permissions.state"]["status"] == "ok"


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file to another user, which needs root")
def test_files_of_two_users(node: RunningNode) -> None:
    """A node that was once started by hand as root."""
    os.chown(node.directory / "lock", 65534, 65534)
    found = examine(node.state, code=10)["permissions.state"]
    assert "belong to" in found["detail"]
    assert "chown" in found["fix"]


def test_secrets_that_others_may_read_or_nobody(tmp_path: Path) -> None:
    """Keys, tokens and passwords; a public key is none."""
    (tmp_path / "token").write_text("0123456789abcdef0123456789abcdef")
    (tmp_path / "token").chmod(0o644)
    (tmp_path / "public").write_text("-----BEGIN PUBLIC KEY-----")
    env = {
        "YANCHAT_ADMIN_TOKEN_FILE": str(tmp_path / "token"),
        "YANCHAT_AUTH_KEY_FILE": str(tmp_path / "public"),
    }
    found = examine(tmp_path / "none", code=10, env=env)["permissions.secrets"]
    assert found["detail"] == f"admin.token_file: {tmp_path / 'token'} may be used by everybody on this machine"
    subprocess.run(["sh", "-c", found["fix"]], check=True)
    assert examine(tmp_path / "none", env=env)["permissions.secrets"]["status"] == "ok"
    gone = examine(tmp_path / "none", code=10, env={"YANCHAT_REDIS_PASSWORD_FILE": str(tmp_path / "gone")})
    assert "redis.password_file" in gone["permissions.secrets"]["detail"]


@pytest.mark.parametrize(("days", "status"), [(-1, "fail"), (3, "warn"), (30, "ok")])
def test_a_certificate_that_has_expired_or_will_soon(tmp_path: Path, days: int, status: str) -> None:
    """In the file of the settings, and where a node still serves it."""
    cert_file, key_file = Authority(tmp_path).issue(days=days)
    env = {"YANCHAT_TLS_CERT_FILE": str(cert_file), "YANCHAT_TLS_KEY_FILE": str(key_file)}
    with RunningNode(tmp_path / "state", env={**FEW_CLIENTS, **env}) as node:
        found = examine(node.state, code=10 if status == "fail" else 0, env=env)
        assert found["certificate.tls"]["status"] == status
        assert found["certificate.served"]["status"] == status
        assert found["nodes.reachable"]["status"] == "ok"  # that it is well is another question


def test_a_certificate_with_another_key(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    (cert_file, _), (_, key_file) = authority.issue("one"), authority.issue("two")
    env = {"YANCHAT_TLS_CERT_FILE": str(cert_file), "YANCHAT_TLS_KEY_FILE": str(key_file)}
    assert "is not the key" in examine(tmp_path / "none", code=10, env=env)["certificate.tls"]["detail"]


# -- nodes -------------------------------------------------------------------------------------------------------------
def test_a_clock_that_is_wrong(tmp_path: Path) -> None:
    """Of a node, seen from another machine's clock, whichever way it is off."""
    try:
        clocks = [wrong_clock(90), wrong_clock(-3000)]
    except Missing as missing:
        if os.environ.get("CI"):
            pytest.fail(str(missing), pytrace=False)
        pytest.skip(str(missing))
    for clock, says in zip(clocks, ("ahead of", "behind"), strict=True):
        with RunningNode(tmp_path / says[:5], env=clock) as node:
            found = examine(node.state, code=10)["clock.nodes"]
            assert node.node in found["detail"]
            assert f"{says} this machine's" in found["detail"]
            assert "NTP" in found["fix"]


def test_a_peer_that_cannot_be_reached(tmp_path: Path) -> None:
    """One that is advertised where nobody listens, and one that hangs."""
    with RunningNode(tmp_path / "state", "--advertise", "127.0.0.1:9") as node:
        found = examine(node.state, code=10)["nodes.reachable"]
        assert "ws://127.0.0.1:9/ws cannot be reached" in found["detail"]
        assert "node.advertise" in found["fix"]
    with RunningNode(tmp_path / "other") as node:
        node.pause()
        found = examine(node.state, code=10)
        assert "no answer in time" in found["nodes.reachable"]["detail"]
        assert found["nodes.ready"]["status"] == "fail"
        node.resume()


def test_a_node_that_cannot_be_asked(node: RunningNode, tmp_path: Path) -> None:
    """It is warned of: nobody knows how it is. Its directory may have been removed from under it, on this machine."""
    node.directory.rename(tmp_path / "moved")
    found = examine(node.state)["nodes.ready"]
    assert found["status"] == "warn"
    assert found["detail"].startswith(f"{node.node} was not asked: it has no admin address, and its state is not in")
    for order in (("audit",), ("drain", "--node", node.node)):
        done = quick(*order, state=node.state)
        assert done.returncode == 4
        assert f"{node.node} has no admin address, and its" in done.stderr
        assert "elsewhere" not in done.stderr
    token = token_file(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with RunningNode(tmp_path / "other", env={**FEW_CLIENTS, **with_tcp(token)}) as other:
        for file in other.state.glob("cluster.db*"):
            (elsewhere / file.name).symlink_to(file)
        unasked = examine(elsewhere, code=10)["nodes.ready"]  # 10, for links are everybody's
        assert "only to who has the token" in unasked["detail"]
        assert examine(elsewhere, "--admin-token-file", token, code=10)["nodes.ready"]["status"] == "ok"


def test_a_node_that_has_died_with_something_in_it(node: RunningNode) -> None:
    """What waits there is named, and what to do with it: as much as --adopt then moves, and then it may go."""
    for text in ("one", "two"):
        assert quick("send", "bob", text, "--as", "ann", "--wait", "accepted", state=node.state).returncode == 0
    listening = quick("listen", "--as", "bob", "--count", "1", state=node.state)
    assert listening.returncode == 0, listening.stderr
    with RunningNode(node.state, env=FEW_CLIENTS) as other:
        assert node.terminate() == 0
        found = examine(node.state)["nodes.ready"]
        assert f"{node.node} does not run, and" in found["detail"]
        waits = sum(int(number) for number in re.findall(r"(\d+) (?:message|notice)s?\b", found["detail"]))
        assert "notice" in found["detail"]
        assert f"yanchat redeliver --adopt {node.node}" in found["fix"]
        moved = quick("redeliver", "--adopt", node.node, "--yes", "--json", state=node.state)
        assert json.loads(moved.stdout)["adopted"] == waits == 2
        done = call("doctor", "--json", state=node.state, env=FEW_CLIENTS)
        (one,) = [one for one in json.loads(done.stdout) if one["detail"].startswith(node.node)]
        assert one["status"] == "ok"
        assert f"nothing is left in it: {node.directory} may be removed" in one["detail"]
        assert other.terminate() == 0


def test_a_registry_that_contradicts_itself(node: RunningNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair, "AGAIN_AFTER", 0.01)
    with closing(apsw.Connection(str(node.state / "cluster.db"))) as file:
        file.set_busy_timeout(5000)
        file.execute("INSERT INTO sessions VALUES ('eve', '10.0.0.9:1_eve_1', '10.0.0.9:1', 'x', 'eve', 0, '', 0)")
    done = quick("doctor", "--json", state=node.state)
    assert done.returncode == 10
    (found,) = [one for one in json.loads(done.stdout) if one["check"] == "registry"]
    assert "eve" in found["detail"]
    assert "--repair" in found["fix"]
