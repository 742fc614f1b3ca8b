"""Calls of `yanchat` inside this process: as quick as it gets, for tests of what is asked and answered.

What belongs to a process of its own (signals, pipes, a terminal, what is loaded) is tested with one: tests/running.py.
"""

from __future__ import annotations

import io
import os
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from subprocess import CompletedProcess
from unittest.mock import patch

import structlog

from tests.running import command, environment
from yanchat.cli.app import run


def quick(*arguments: str | Path, state: Path | None = None) -> CompletedProcess[str]:
    """Run a call to its end, like `tests.running.call`."""
    args = command(*arguments, state=state)
    out, errors = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    log = structlog.get_config()
    with redirect_stdout(out), redirect_stderr(errors), patch.dict(os.environ, environment(), clear=True):
        code = run(args[3:])
    structlog.configure(**log)  # a call may hush it, which is not to outlast it here
    return CompletedProcess(args, code, *(stream.buffer.getvalue().decode() for stream in (out, errors)))
