"""A node on a socket that it does not own: `systemd-socket-activate` opens it, and a line of shell is the manager."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.running import command, environment, read_line, wait_until
from tests.services import free_port

needs_tools = pytest.mark.skipif(
    shutil.which("systemd-socket-activate") is None,
    reason="systemd-socket-activate is missing: apt-get install systemd",
)
AGAIN_AND_AGAIN = 'while true; do (export LISTEN_PID=$BASHPID; exec "$@"); done'
"""A service manager in a line: it holds the socket, and starts the node anew when it has ended."""


class Activated:
    """Nodes one after the other on one socket; the first starts when the first client comes."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process, self.url = process, f"ws://127.0.0.1:{port}/ws"

    def ready(self) -> str:
        """Wait for the next ready line; its URL."""
        return str(json.loads(read_line(self.process))["url"])

    def terminate_node(self) -> None:
        """SIGTERM to the node that runs now."""
        pid = self.process.pid
        (node,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        os.kill(int(node), signal.SIGTERM)


@contextmanager
def activated(state: Path, log: Path, *options: str) -> Iterator[Activated]:
    port = free_port()
    tool = ["systemd-socket-activate", "-l", f"127.0.0.1:{port}", "--fdname=clients"]
    tool += [word for name in environment() for word in ("-E", name)]
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [*tool, "bash", "-c", AGAIN_AND_AGAIN, "manager", *command("serve", "--json", *options, state=state)],
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        ) as process,
    ):
        try:
            wait_until(lambda: "Listening on" in log.read_text(), "it listens")
            yield Activated(process, port)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
