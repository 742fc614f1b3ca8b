"""Named points at which a test may kill the process as if by kill -9. Unarmed, `hit` costs one comparison.

Armed by the environment variable YANCHAT_FAILPOINT (`NAME` or `NAME:N` for the N-th pass), read once by the daemon.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping

from yanchat.errors import ConfigError

NAMES = (
    "before-commit",
    "after-commit",
    "push",
    "before-ack-commit",
    "after-ack-commit",
    "bus-publish",
    "offset-commit",
)
"""Passed by a node in its daily work."""
ADOPTION_NAMES = ("adopted", "adopt-sent", "adopt-answered", "adopt-moved")
"""Passed by a node that adopts rows (stored, not answered), and by the run that moves them."""

_left: dict[str, int] = {}


def arm_from(environment: Mapping[str, str]) -> None:
    """Arm what the environment says. ConfigError when there is no such point."""
    spec = environment.get("YANCHAT_FAILPOINT")
    if spec:
        try:
            arm(spec)
        except ValueError as error:
            raise ConfigError(f"YANCHAT_FAILPOINT: {error}.") from None


def arm(spec: str) -> None:
    """Arm one point. Raises ValueError with the known names when there is no such point."""
    name, _, count = spec.partition(":")
    if name not in NAMES + ADOPTION_NAMES or (count and not count.isdigit()):
        known = ", ".join(NAMES + ADOPTION_NAMES)
        raise ValueError(f"no fail point {spec!r}; there are {known}, each with an optional :N")
    _left[name] = int(count or 1)


def hit(name: str) -> None:
    """Pass the point; kill this process when it is armed and its count has run down."""
    if not _left or name not in _left:
        return
    _left[name] -= 1
    if _left[name] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
