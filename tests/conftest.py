"""What holds for all tests: async ones run in trio (pytest-trio), and with `autojump_clock` in virtual time."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from yanchat import build

pytest_plugins = ["tests.services_plugin"]

settings.register_profile("yanchat", deadline=None)  # a busy machine is no failure
settings.load_profile("yanchat")

# A shell that starts the suite in the background has it ignore Ctrl-C, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> str:
    return f"yanchat: {build()}"


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A directory for one test, with a short name: the path of a Unix socket ends at 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="yan", ignore_cleanup_errors=True) as path:
        yield Path(path)
