"""What a process of this machine has used, and what machine it is: read from /proc."""

from __future__ import annotations

import os
import platform
import socket
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

_TICK: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_CREDENTIALS: Final = struct.Struct("3i")


class Used(NamedTuple):
    """Processor seconds since the process began, and resident bytes now."""

    processor: float
    memory: int


def used(pid: int) -> Used | None:
    """What a process has used; None when it is not there."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return Used((int(fields[11]) + int(fields[12])) / _TICK, int(fields[21]) * _PAGE)


def behind(admin_socket: Path) -> int | None:
    """The process that serves this Unix socket (SO_PEERCRED, unix(7)); None when nobody does, or it is another's."""
    with suppress(OSError), socket.socket(socket.AF_UNIX) as asking:
        asking.connect(str(admin_socket))
        pid, _, _ = _CREDENTIALS.unpack(asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        return int(pid)
    return None


def machine() -> dict[str, Any]:
    """What figures depend on."""
    model = ""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return {
        "processor": model or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * _PAGE,
        "load_average": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }
