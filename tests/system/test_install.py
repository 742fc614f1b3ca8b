"""A whole installation under a root directory of its own serves; a newer release comes beside the one that runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.running import DEADLINE, environment, finish, read_line
from tests.services import free_port

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 300.0
"""Seconds for what comes over the net."""


def install(root: Path, **more: str) -> Path:
    """Run the script, with these variables; the program that is current behind it."""
    call = [ROOT / "scripts" / "install", "--root", root, "--plain"]
    done = subprocess.run(
        call, capture_output=True, text=True, timeout=PATIENCE, check=False, env={**os.environ, **more}
    )
    assert done.returncode == 0, done.stderr
    return (root / "opt/yanchat/current/bin/yanchat").resolve(strict=True)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    install(root)
    return root


def ask(root: Path, *arguments: str, state: Path) -> str:
    """What the current release answers to a command; AssertionError when it fails."""
    program = root / "opt/yanchat/current/bin/yanchat"
    call = [program, *arguments, "--config", root / "etc/yanchat/yanchat.toml", "--state-dir", state]
    done = subprocess.run(call, capture_output=True, text=True, timeout=60, check=False, env=environment())
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def serving(root: Path, state: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    """A node as its unit starts it: with the unit's settings, by way of `current`."""
    unit = (root / "etc/systemd/system/yanchat@.service").read_text()
    assert "Environment=YANCHAT_NODE_LISTEN=127.0.0.1:%i\n" in unit
    assert "ExecStart=/opt/yanchat/current/bin/yanchat serve\n" in unit
    with subprocess.Popen(
        [root / "opt/yanchat/current/bin/yanchat", "serve", "--config", root / "etc/yanchat/yanchat.toml"],
        env=environment(YANCHAT_NODE_LISTEN=f"127.0.0.1:{port}", YANCHAT_NODE_STATE_DIR=str(state)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_node_outlives_an_upgrade_and_its_messages_too(root: Path, tmp_path: Path) -> None:
    """While the old release serves, the new one is put beside it; after the restart the message is still there."""
    state, port = tmp_path / "state", free_port()
    before = (root / "opt/yanchat/current").resolve()
    (root / "etc/yanchat/yanchat.toml").write_text("[node]\ntime_zone = 'Asia/Shanghai'\n")
    with serving(root, state, port) as old:
        read_line(old)
        ask(root, "send", "bob", "kept", "--as", "ann", "--wait", "accepted", state=state)
        install(root)
        after = (root / "opt/yanchat/current").resolve()
        assert after != before
        assert before.exists(), "there is a way back"
        assert "kept" not in ask(root, "outbox", "--json", state=state), "never the text"
        code, _, log = finish(old)
        assert code == 0, log
        assert f"{after}" not in log
    assert "Asia/Shanghai" in (root / "etc/yanchat/yanchat.toml").read_text(), "what a person has set is not touched"
    with serving(root, state, port) as new:
        read_line(new)
        assert Path(f"/proc/{new.pid}/cmdline").read_bytes().startswith(bytes(after))
        heard = ask(root, "listen", "--as", "bob", "--count", "1", "--ndjson", state=state)
        assert json.loads(heard)["text"] == "kept"


def test_what_a_release_needs_is_in_it(root: Path) -> None:
    """Documents, alarms and the units; nothing points into the checkout that it was made from."""
    current = root / "opt/yanchat/current"
    assert (current / "docs/operating.md").exists()
    assert (root / "etc/systemd/system/yanchat@.socket").exists()
    assert (root / "usr/lib/sysusers.d/yanchat.conf").read_text().count("u yanchat ") == 1
    assert not [
        link
        for link in (root / "opt/yanchat").glob("releases/*/lib/python*/site-packages/*")
        if "editable" in link.name
    ]


def test_a_python_in_a_home_is_not_taken(root: Path, tmp_path: Path) -> None:
    """As pyenv has it: the unit may not look into homes, and would not start. One of the system is taken."""
    if subprocess.run(["/usr/bin/python3", "-c", "import ensurepip"], capture_output=True, check=False).returncode:
        pytest.skip("the system has no Python that could be taken: apt-get install python3-venv")
    shim = tmp_path / "python3.11"
    shim.write_text(
        f'#!/bin/sh\ncase "$2" in *base_prefix*) echo /root/.pyenv ;; *) exec {sys.executable} "$@" ;; esac\n'
    )
    shim.chmod(0o755)
    install(root, PATH=f"{tmp_path}:{os.environ['PATH']}")
    home = (root / "opt/yanchat/current/pyvenv.cfg").read_text().splitlines()[0]
    assert home == "home = /usr/bin"


def test_an_installation_that_fails_leaves_no_release(tmp_path: Path) -> None:
    """It would look like one to go back to. The one that is current stays."""
    call = [ROOT / "scripts" / "install", "--root", tmp_path, "--plain", "--", "--no-such-option"]
    done = subprocess.run(call, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode != 0
    assert "no such option" in done.stderr
    assert list((tmp_path / "opt/yanchat/releases").iterdir()) == []
    assert not (tmp_path / "opt/yanchat/current").exists()


def test_a_wrong_call_is_answered_with_how_it_is_called() -> None:
    done = subprocess.run(
        [ROOT / "scripts" / "install", "--bogus"], capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert done.returncode == 2
    assert "scripts/install [--root DIR] [--plain]" in done.stderr
