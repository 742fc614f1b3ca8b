"""Fixtures of the proofs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog

from tests.proof.simulate import quiet


@pytest.fixture
def without_logs() -> Iterator[None]:
    """Thousands of faults need not be logged."""
    quiet()
    yield
    structlog.reset_defaults()
