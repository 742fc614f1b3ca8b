"""`yanchat serve`: settings, logs, the ready line; the node itself is built in daemon.py."""

from __future__ import annotations

import faulthandler
import os
from typing import Annotated

import typer

from yanchat.cli.call import Call, choices, flag, run_async


def serve(
    call: Call,
    listen: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Where clients connect (127.0.0.1:8084); port 0 takes a free one."),
    ] = None,
    advertise: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Where the other nodes reach this one; else what it listens on."),
    ] = None,
    insecure: Annotated[
        bool, flag("--insecure", "Listen beyond this machine, although anybody may then be anybody.")
    ] = False,
    log_format: Annotated[
        str | None,
        choices(
            "--log-format",
            ("auto", "console", "json"),
            "Of the log on stderr; auto: console on a terminal, else json.",
        ),
    ] = None,
    log_level: Annotated[
        str | None,
        choices("--log-level", ("debug", "info", "warning", "error"), "The least that is logged (info)."),
    ] = None,
) -> None:
    """Run a node until SIGTERM or Ctrl-C; SIGHUP takes up changed settings.

    When clients can come, its URL is printed on stdout; the log is on stderr. Several nodes with the same state
    directory form a cluster. After a crash, start the node again: what it had accepted is still there.
    """
    from yanchat.cli.logs import configure_logs
    from yanchat.config.load import state_directory

    options = {
        ("node", "listen"): listen,
        ("node", "advertise"): advertise,
        ("node", "insecure"): insecure or None,
        ("log", "format"): log_format,
        ("log", "level"): log_level,
    }
    settings = call.settings(options)
    state = state_directory(settings, os.environ)
    configure_logs(settings.log)

    def ready(url: str) -> None:
        call.out.document({"url": url, "state_dir": str(state)}, f"Serving at {url}", one_line=True)

    from yanchat import daemon

    os.umask(0o077)  # what the node keeps is nobody else's business
    faulthandler.enable()  # a watchdog that bites (SIGABRT) leaves in the log where each thread was
    run_async(daemon.serve, settings, state, daemon.Caller(ready, lambda: call.settings(options), configure_logs))
