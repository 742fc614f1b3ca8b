"""The checks are proved: each one-line mutation of the program that loses messages is found by the simulation."""

from __future__ import annotations

import pytest

from tests.proof.mutations import ISSUE
from tests.proof.simulate import find

pytestmark = [pytest.mark.usefixtures("without_logs"), pytest.mark.plain]


@pytest.mark.parametrize("name", ISSUE)
def test_a_program_that_loses_messages_is_found_out(name: str) -> None:
    """Each one-line mutation, as `scripts/simulate --mutation` shows it."""
    assert find(name) is not None
