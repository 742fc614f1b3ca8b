"""What a service manager and a service say to each other: sockets handed over, states told, the watchdog fed.

Protocols: sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3). Without a service manager all of it does nothing.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import Final

import structlog
import trio

from yanchat.errors import ConfigError
from yanchat.telemetry import Episode

FIRST_FD: Final = 3
STATUS_SECONDS: Final = 5.0
BEATS_A_PERIOD: Final = 3
"""How often the watchdog is fed in the time after which it bites."""


class ServiceManager:
    """Who started this process, as its environment tells."""

    def __init__(self, environment: Mapping[str, str], pid: int | None = None) -> None:
        self._pid = str(os.getpid() if pid is None else pid)
        self._environment = environment
        self._telling = Episode("systemd.notify")
        path = environment.get("NOTIFY_SOCKET", "")
        self._address = f"\0{path[1:]}" if path.startswith("@") else path

    @property
    def watchdog(self) -> float:
        """Seconds within which the watchdog wants to hear of us; 0 when there is none."""
        if self._environment.get("WATCHDOG_PID", self._pid) != self._pid:
            return 0.0
        period = self._environment.get("WATCHDOG_USEC", "")
        return int(period) / 1e6 if period.isdigit() else 0.0

    def tell(self, **states: str | int) -> None:
        """Send states, as READY=1; never blocks. That it fails is logged, and nothing else."""
        if not self._address:
            return
        message = "\n".join(f"{name}={value}" for name, value in states.items()).encode()
        try:
            with socket.socket(
                socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            ) as sender:
                sender.sendto(message, self._address)
            self._telling.worked()
        except OSError as error:
            self._telling.failed(error)

    def reloading(self) -> None:
        """Say that the settings are being read again; READY=1 follows."""
        self.tell(RELOADING=1, MONOTONIC_USEC=time.monotonic_ns() // 1000)

    def sockets(self) -> list[socket.socket]:
        """The listening sockets that were handed over, none when there are none. To be called once.

        ConfigError: one of them is no listening TCP socket.
        """
        if self._environment.get("LISTEN_PID") != self._pid:
            return []
        count = self._environment.get("LISTEN_FDS", "")
        names = self._environment.get("LISTEN_FDNAMES", "").split(":")
        found: list[socket.socket] = []
        for number in range(int(count) if count.isdigit() else 0):
            name = names[number] if number < len(names) else "unknown"
            found.append(_handed_over(FIRST_FD + number, name))
        return found


def _handed_over(fd: int, name: str) -> socket.socket:
    try:
        os.set_inheritable(fd, False)
        given = socket.socket(fileno=fd)
        listens = given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise ConfigError(f"The socket {name!r} was not handed over: {error.strerror}; see the socket unit.") from None
    if given.family not in (socket.AF_INET, socket.AF_INET6) or given.type != socket.SOCK_STREAM or not listens:
        raise ConfigError(f"The socket {name!r} does not listen for TCP; give the socket unit ListenStream=HOST:PORT.")
    return given


async def keep_watch(
    manager: ServiceManager, lanes: Callable[[], Mapping[str, float]], status: Callable[[], str]
) -> None:
    """Feed the watchdog, and say how it goes, as long as the node lives.

    The watchdog is fed from this loop, and only while none of the `lanes` (name to seconds of silence) has been silent
    for as long as it waits itself: so it bites when the loop is stuck, and when a thread is.
    """
    period, said, stuck = manager.watchdog, 0.0, ""
    while True:
        lane, silent = max(lanes().items(), key=lambda item: item[1], default=("", 0.0))
        wedged = lane if period and silent >= period else ""
        if wedged and wedged != stuck:
            structlog.get_logger().error("node.lane_stuck", lane=wedged, watchdog_s=period)
        stuck = wedged
        states: dict[str, str | int] = {"WATCHDOG": 1} if period and not stuck else {}
        if trio.current_time() >= said:
            said = trio.current_time() + STATUS_SECONDS
            states["STATUS"] = f"The thread {stuck} is stuck" if stuck else status()
        if states:
            manager.tell(**states)
        await trio.sleep(min(period / BEATS_A_PERIOD, STATUS_SECONDS) if period else STATUS_SECONDS)
