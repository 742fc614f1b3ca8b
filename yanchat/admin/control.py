"""What the admin HTTP of a node asks and orders of the process around it; the daemon builds it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from yanchat.config import LimitSettings


class Control(NamedTuple):
    """None of these blocks or raises."""

    drain: Callable[[], None]
    """Stop gently, as SIGTERM does; repeated calls do nothing."""
    reload: Callable[[], None]
    """Read the settings again, as SIGHUP does."""
    lanes: Callable[[], Mapping[str, float]]
    """Seconds for which each thread of a driver has not come back from its library, by name."""
    connections: Callable[[], int]
    """Open sockets of clients."""
    limits: Callable[[], LimitSettings]
    """Those that hold now; a reload may change them."""
