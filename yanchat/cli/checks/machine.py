"""This machine: the disk under the state directory, SQLite, and how many files a process may open."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import TYPE_CHECKING, Final

from yanchat import __version__, build
from yanchat.cli.checks import Finding, failure, ok, warning

if TYPE_CHECKING:
    from yanchat.config import Settings

OLDEST_SQLITE: Final = "3.51.3"
"""Before it a checkpoint that meets a writer may corrupt the file (the WAL-reset bug)."""
LITTLE: Final = 0.05
"""Of a disk, or of its inodes."""
FEWEST: Final = 1024
"""Descriptors with which a node is of any use."""
KEPT: Final = 128
"""Of them for the node's own files, as in gateway/admission.py; a test compares them."""


def look_at_machine(settings: Settings, state: Path) -> list[Finding]:
    """All of it."""
    found = [*disk(state, settings.limits.disk_reserve), sqlite(), program()]
    if not any(state.glob("nodes/*/admin.sock")):  # a node that runs is asked for its own
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        may = 1 << 20 if hard == resource.RLIM_INFINITY else hard
        found.append(descriptors("descriptors", "a process started here", may, 0, settings.limits.connections))
    return found


def disk(state: Path, reserve: int) -> list[Finding]:
    """Whether there is room for messages."""
    there = next(path for path in (state, *state.parents) if path.exists())
    try:
        found = os.statvfs(there)
    except OSError as error:
        return [failure("disk.space", f"{there} cannot be looked at: {error.strerror}", "look at the disk")]
    free, whole = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
    room = f"{size(free)} of {size(whole)} are free where {state} is"
    fix = "make room: nothing that was accepted is lost, and nodes go on by themselves"
    if free < reserve:
        space = failure(
            "disk.space", f"{room}; below {size(reserve)} (limits.disk_reserve) nothing more is accepted", fix
        )
    elif free < 2 * reserve or free < LITTLE * whole:
        space = warning("disk.space", f"{room}; at {size(reserve)} (limits.disk_reserve) nodes stop accepting", fix)
    else:
        space = ok("disk.space", room)
    if found.f_files and found.f_favail < LITTLE * found.f_files:
        return [space, warning("disk.inodes", f"{found.f_favail} of {found.f_files} inodes are left", "remove files")]
    return [space]


def sqlite() -> Finding:
    """Whether its version is one that keeps what is written."""
    import apsw

    version = apsw.sqlite_lib_version()
    if numbers(version) < numbers(OLDEST_SQLITE):
        return failure(
            "sqlite",
            f"SQLite {version} may corrupt the message table: before {OLDEST_SQLITE}, when a checkpoint meets a writer",
            f"pip install -U 'apsw>={OLDEST_SQLITE}', and start the nodes again",
        )
    return ok("sqlite", version)


def program() -> Finding:
    """Which yanchat this is; plain Python does all that a compiled build does, slower."""
    plain = "plain Python; `scripts/install` makes a quicker build where there is a C compiler"
    return ok("program", f"yanchat {__version__}, {'compiled' if build() == 'compiled' else plain}")


def descriptors(check: str, who: str, may: int, used: int, connections: int) -> Finding:
    """Whether a process may open as many files as it is to have clients."""
    room = max(0, may - KEPT)
    detail = f"{who} may open {may} files" + (f" and has {used} open" if used else "")
    fix = f"raise LimitNOFILE= of its unit (ulimit -Hn) to {connections + KEPT}, or lower limits.connections"
    if may < FEWEST or used > 0.9 * may:
        return failure(check, f"{detail}: enough for {room} clients", fix)
    if room < connections:
        return warning(check, f"{detail}: enough for {room} clients, not {connections} (limits.connections)", fix)
    return ok(check, detail)


def size(count: float) -> str:
    """
    >>> size(1 << 28), size(3 << 29), size(12)
    ('256 MiB', '1.5 GiB', '12 B')
    """
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def numbers(version: str) -> tuple[int, ...]:
    """
    >>> numbers("3.51.3") < numbers("3.54.1.0")
    True
    """
    return tuple(int(part) for part in version.split(".") if part.isdigit())
