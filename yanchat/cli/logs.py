"""The log of a node: one event a line on stderr, as JSON for programs or as text for a person."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import structlog

if TYPE_CHECKING:
    from yanchat.config import LogSettings


def configure_logs(log: LogSettings) -> None:
    """Log like this from now on; what libraries log is among it, from warnings on. May be called again."""
    for_person = sys.stderr.isatty() if log.format == "auto" else log.format == "console"
    renderer: Any
    if for_person:
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    else:
        renderer = structlog.processors.JSONRenderer(ensure_ascii=False)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper("iso", utc=not for_person),
            *([] if for_person else [structlog.processors.format_exc_info]),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(log.level),
        logger_factory=lambda *_: _Log(),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(handlers=[_Libraries()], level=logging.WARNING, force=True)


class _Log:
    """Writes to stderr, past Python's buffer. What cannot be written, to a full disk or to nobody, is lost.

    The node goes on without its log.
    """

    def msg(self, line: str) -> None:
        with suppress(OSError):
            os.write(2, f"{line}\n".encode(errors="backslashreplace"))

    debug = info = warning = error = critical = exception = msg


class _Libraries(logging.Handler):
    """Libraries that log in Python's own way: their lines become events."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            about = {"library": record.name, "message": record.getMessage()}
            structlog.get_logger().log(record.levelno, "library.log", **about, exc_info=record.exc_info)
        except Exception:
            self.handleError(record)
