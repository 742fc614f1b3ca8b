"""The README is for a newcomer: every command in it is run here, as it stands there."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.running import environment, finish, read_line, wait_until
from yanchat.names import slug

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = re.findall(r"^\$ (.+)$", (ROOT / "README.md").read_text(), re.MULTILINE)
STORY = [command for command in COMMANDS if command.startswith("yanchat")]
DEADLINE = 120.0


def test_the_links_lead_somewhere() -> None:
    """Every file that the README names is there."""
    links = re.findall(r"\]\(([^)]+)\)", (ROOT / "README.md").read_text())
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_first_two_commands_are_scripts() -> None:
    """`scripts/demo` closes a loop; `scripts/test` is what runs this."""
    for name in ("demo", "test"):
        assert os.access(ROOT / "scripts" / name, os.X_OK)
        assert f"    scripts/{name} " in (ROOT / "README.md").read_text()
    shown = subprocess.run([ROOT / "scripts" / "demo"], capture_output=True, text=True, timeout=300, check=True).stdout
    assert "Closed in" in shown


@pytest.fixture
def home() -> Iterator[Path]:
    """A short one: the path of a Unix socket ends at 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="yan") as path:
        yield Path(path)


def test_the_story_of_the_readme(home: Path) -> None:
    """Install, serve, listen, send; three that wait; kill -9; all three arrive, in order, once. And the rest of it."""
    with socket.create_server(("127.0.0.1", 0)) as probe:  # 8084 may be taken here
        listen_at = f"127.0.0.1:{probe.getsockname()[1]}"
    url = f"ws://{listen_at}/ws"
    env = environment(YANCHAT_NODE_LISTEN=listen_at, HOME=str(home), PATH=f"{home}/env/bin:{os.environ['PATH']}")
    source = home / "yanchat"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(source)], check=True, timeout=DEADLINE)

    def run(command: str) -> str:
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=home,
            env=env,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.returncode} {done.stderr}"
        return done.stdout

    @contextmanager
    def start(command: str) -> Iterator[subprocess.Popen[str]]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(command.split(), cwd=ROOT, env=env, text=True, **pipes) as process:  # type: ignore[call-overload]
            try:
                yield process
            finally:
                process.kill()

    assert COMMANDS[:3] == [
        "python3 -m venv env",
        "env/bin/pip install .",
        'export PATH="$PWD/env/bin:$PATH"',
    ]
    run(COMMANDS[0])
    run(f"env/bin/pip install --quiet {source}")
    serve, listen, hello, one, two, three, outbox, four, trace, audit, *rest = STORY
    second, servers, clients, redeliver, configured, doctor, top = rest
    (push,) = (command.replace("127-0-0-1-8084", slug(listen_at)) for command in COMMANDS if "curl" in command)
    with start(serve) as node:
        assert url in read_line(node)
        with start(listen) as bob:
            wait_until(lambda: "bob" in run(f"{clients} --json"), "Bob has logged in")
            assert "delivered to bob" in run(hello)
            assert "hello" in read_line(bob)
            finish(bob)
        for command in (one, two, three):
            run(command)
        assert run(f"{outbox} --json").count('"pending"') == 3
        run(four)
        assert json.loads(run(f"{trace} --json"))[0]["event"] == "accepted"
        assert json.loads(run(f"{audit} --json"))["balanced"] is True
        first, again = (json.loads(run(push)) for _ in range(2))
        assert first["absent"] == ["bob"]
        assert [one["repeated"] for one in first["messages"] + again["messages"]] == [False, True]
        node.kill()
    with start(serve) as node:
        read_line(node)
        with start(second) as other:
            assert "8085" in read_line(other)
            assert "8085" in run(servers)
            run(clients)
            run(redeliver)
            with start(listen) as bob:
                for text in ("one", "two", "three", "four", "your parcel is here"):
                    assert text in read_line(bob)
                finish(bob)
            finish(other)
        finish(node)
    with start(configured) as node:
        assert url in read_line(node)
        assert json.loads(run(f"{doctor} --json"))
        with start(f"{top} --ndjson") as watching:
            assert listen_at in read_line(watching)
            finish(watching)
        finish(node)
