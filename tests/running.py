"""Real processes for tests: a node that can be killed and started again, and `yanchat` as a person calls it."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from yanchat.names import slug

YANCHAT = (sys.executable, "-m", "yanchat")
DEADLINE = 20.0
"""Seconds after which a test gives up; never a measure of speed."""


def environment(**more: str) -> dict[str, str]:
    """This process's environment without anything that yanchat would read, so that only the test's own words count."""
    foreign = ("YANCHAT_", "XDG_STATE_HOME", "STATE_DIRECTORY", "NO_COLOR", "FORCE_COLOR", "COLUMNS")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return {**kept, "PYTHONUNBUFFERED": "1", **more}


def call(
    *arguments: str | Path,
    state: Path | None = None,
    stdin: str = "",
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run `yanchat` with these arguments to its end; with `state`, in that state directory."""
    return subprocess.run(
        command(*arguments, state=state),
        input=stdin,
        env=environment(**(env or {})),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@contextmanager
def running(
    *arguments: str | Path, state: Path | None = None, env: Mapping[str, str] | None = None, **more: Any
) -> Iterator[subprocess.Popen[str]]:
    """Start `yanchat` with pipes; it is killed behind if it still runs."""
    with _start(*arguments, state=state, env=env, **more) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def finish(process: subprocess.Popen[str], number: signal.Signals = signal.SIGTERM) -> tuple[int, str, str]:
    """Send a signal and wait for the end: exit code, and what else it wrote to stdout and stderr."""
    process.send_signal(number)
    out, log = process.communicate(timeout=DEADLINE)
    return process.returncode, out, log


def _start(
    *arguments: str | Path, state: Path | None = None, env: Mapping[str, str] | None = None, **more: Any
) -> subprocess.Popen[str]:
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
    return subprocess.Popen(command(*arguments, state=state), env=environment(**(env or {})), text=True, **pipes)


def command(*arguments: str | Path, state: Path | None = None) -> list[str]:
    """The whole command line."""
    shared = () if state is None else ("--state-dir", str(state))
    return [*YANCHAT, *map(str, arguments[:1]), *shared, *map(str, arguments[1:])]


def read_line(process: subprocess.Popen[str], within: float = DEADLINE, *, of_stderr: bool = False) -> str:
    """The next line of its stdout. AssertionError when none comes in time, or the process has ended."""
    stream = process.stderr if of_stderr else process.stdout
    assert stream is not None
    line, end = b"", time.monotonic() + within
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([stream], [], [], max(0.0, end - time.monotonic()))
        assert ready, f"no line within {within:.0f} s, only {line!r}"
        byte = os.read(stream.fileno(), 1)
        assert byte, f"it ended (exit code {process.wait(5)}) after {line!r}"
        line += byte
    return line.decode()


def wait_until(condition: Callable[[], object], what: str, within: float = DEADLINE) -> None:
    """Wait for a condition; AssertionError when it does not come true in time."""
    end = time.monotonic() + within
    while not condition():
        assert time.monotonic() < end, f"not within {within:.0f} s: {what}"
        time.sleep(0.02)


class RunningNode:
    """A node in a process of its own. Used as a context manager, it is running inside and gone behind."""

    def __init__(self, state: Path, *options: str, port: int = 0, env: Mapping[str, str] | None = None) -> None:
        self.state, self.options, self.port, self.env = state, options, port, dict(env or {})
        self.log = state.parent / f"{state.name}-{id(self):x}.log"
        self.process: subprocess.Popen[str] | None = None
        self.url = ""

    @property
    def node(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def directory(self) -> Path:
        return self.state / "nodes" / slug(self.node)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self, **env: str) -> RunningNode:
        """Start it, the second time on the port of the first; returns when clients can come."""
        self.launch(**env)
        self.wait_ready()
        return self

    def launch(self, **env: str) -> None:
        """Start it without waiting; `env` counts for this process only, as a fail point does."""
        with self.log.open("ab") as log:
            self.process = _start(
                "serve",
                "--listen",
                self.node,
                "--json",
                *self.options,
                state=self.state,
                env={**self.env, **env},
                stderr=log,
            )

    def wait_ready(self) -> None:
        """Wait for the line that says where it serves."""
        assert self.process is not None
        try:
            line = read_line(self.process)
        except AssertionError as error:
            self.kill()
            raise AssertionError(f"the node did not start: {error}\n{self.log.read_text()}") from None
        self.url = json.loads(line)["url"]
        self.port = int(self.url.rpartition(":")[2].partition("/")[0])

    def kill(self) -> None:
        """kill -9, and wait until it has gone. Nothing happens when it has ended already."""
        self._signal(signal.SIGKILL)
        self.wait()

    def terminate(self) -> int:
        """SIGTERM; its exit code."""
        self._signal(signal.SIGTERM)
        return self.wait()

    def pause(self) -> None:
        """SIGSTOP: it lives, and does nothing."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def hang_up(self) -> None:
        """SIGHUP: read the settings again."""
        self._signal(signal.SIGHUP)

    def abort(self) -> None:
        """SIGABRT, as a watchdog ends it."""
        self._signal(signal.SIGABRT)

    def wait(self) -> int:
        """Wait for its end; its exit code, minus the signal that killed it."""
        assert self.process is not None
        code = self.process.wait(DEADLINE)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code

    def restart(self, **env: str) -> RunningNode:
        """kill -9, and start again on the same port."""
        self.kill()
        return self.start(**env)

    def _signal(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def __enter__(self) -> RunningNode:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.kill()
