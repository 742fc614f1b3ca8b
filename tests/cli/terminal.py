"""`yanchat` on a terminal of its own, as a person sees it."""

from __future__ import annotations

import os
import pty
import subprocess
from pathlib import Path

from tests.running import DEADLINE, command, environment


def on_terminal(
    *arguments: str | Path, state: Path | None = None, typed: str = "", after: str = "", **env: str
) -> tuple[int, str]:
    """Run it to its end; its exit code, and all that the terminal showed. `typed` is typed when `after` is shown."""
    here, there = pty.openpty()
    shown = b""
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
            while data := os.read(here, 65536):
                shown += data
                if typed and after.encode() in shown:
                    os.write(here, typed.encode())
                    typed = ""
        except OSError:
            pass  # the terminal's other side is closed
        finally:
            os.close(here)  # which ends whatever is still there: a test that is timed out does not wait for it
        return process.wait(DEADLINE), shown.decode().replace("\r\n", "\n")
