"""`yanchat` on a terminal of its own, as a person sees it."""

from __future__ import annotations

import os
import pty
import select
import subprocess
from pathlib import Path

from tests.running import DEADLINE, command, environment

CTRL_C = "\x03"
AGAIN_AFTER = 5.0
"""Seconds. A signal that comes just before a process waits for input is seen when that ends: people press once more."""


def on_terminal(
    *arguments: str | Path, state: Path | None = None, typed: str = "", after: str = "", **env: str
) -> tuple[int, str]:
    """Run it to its end; its exit code, and all that the terminal showed. `typed` is typed when `after` is shown."""
    here, there = pty.openpty()
    shown, pressed = b"", False
    with subprocess.Popen(
        # a session with this as its controlling terminal, so that Ctrl-C is a signal
        ["setsid", "--ctty", "--wait", *command(*arguments, state=state)],
        env=environment(TERM="xterm-256color", COLUMNS="200", **env),
        stdin=there,
        stdout=there,
        stderr=there,
    ) as process:
        os.close(there)
        try:
            while True:
                if pressed and not select.select([here], [], [], AGAIN_AFTER)[0]:
                    os.write(here, CTRL_C.encode())
                    continue
                if not (data := os.read(here, 65536)):
                    break
                shown += data
                if typed and after.encode() in shown:
                    os.write(here, typed.encode())
                    typed, pressed = "", typed == CTRL_C
        except OSError:
            pass  # the terminal's other side is closed
        finally:
            os.close(here)  # which ends whatever is still there: a test that is timed out does not wait for it
        return process.wait(DEADLINE), shown.decode().replace("\r\n", "\n")
