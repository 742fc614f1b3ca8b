"""What `yanchat doctor` looks at, one file for each kind of thing. Each looks, judges, and says what to do."""

from __future__ import annotations

from typing import Literal, NamedTuple

Status = Literal["ok", "warn", "fail"]


class Finding(NamedTuple):
    """One thing that was looked at."""

    check: str
    status: Status
    detail: str
    """What was found."""
    fix: str = ""
    """What to do; empty when there is nothing to do."""


def ok(check: str, detail: str) -> Finding:
    """It is as it should be."""
    return Finding(check, "ok", detail)


def warning(check: str, detail: str, fix: str) -> Finding:
    """It works, but not for long, or not as somebody wanted it."""
    return Finding(check, "warn", detail, fix)


def failure(check: str, detail: str, fix: str) -> Finding:
    """It does not work, or what is promised does not hold."""
    return Finding(check, "fail", detail, fix)
