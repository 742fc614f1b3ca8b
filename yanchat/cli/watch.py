"""`--watch`: look again every so often, until Ctrl-C."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import typer

from yanchat.cli.render import Cells, Columns, Output, Rows, table
from yanchat.errors import UsageError

WATCH = typer.Option("--watch", metavar="SECONDS", help="Look again every so many seconds, until Ctrl-C.")
SHORTEST = 0.1


async def watch(
    out: Output, seconds: float, columns: Columns, cells: Cells, look: Callable[[], Awaitable[Rows]]
) -> None:
    """Show a table again and again: in place on a terminal, else one behind the other.

    As ndjson each row carries `at`, the milliseconds of its look, so that one look can be told from the next.
    """
    import trio

    if not seconds >= SHORTEST:  # NaN is neither
        raise UsageError(f"--watch takes {SHORTEST} seconds or more.")
    if out.form == "json":
        raise UsageError("--watch never ends, so it is no single JSON document; take --ndjson.")
    if out.on_terminal:
        from rich.live import Live

        with Live(console=out.lines, auto_refresh=False, transient=False) as live:
            while True:
                live.update(table(columns, await look(), cells), refresh=True)
                await trio.sleep(seconds)
    while True:
        at = int(time.time() * 1000)
        rows = await look()
        out.table(columns, rows if out.form == "person" else [{"at": at, **row} for row in rows], cells)
        await trio.sleep(seconds)
