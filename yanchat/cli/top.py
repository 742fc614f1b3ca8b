"""`yanchat top`: the cluster at work. Where the numbers come from is in sampling.py."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import typer

from yanchat.cli.call import Call, run_async
from yanchat.cli.ordering import TOKEN_FILE
from yanchat.cli.render import Cells, Columns, Output, span, warn
from yanchat.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from yanchat.cli.sampling import Sampler

SHORTEST: Final = 0.2
FIRST_AFTER: Final = 1.0
"""Seconds until a person sees the first rates, if the interval is longer."""
REMEMBERED: Final = 40
_BARS: Final = " ▁▂▃▄▅▆▇█"
_STYLES: Final = {"up": "green", "draining": "yellow", "unready": "red", "dead": "red", "unknown": "yellow"}
LATE: Final = 60.0
"""Seconds that a message waits before it is worth a look."""
Row = Mapping[str, Any]


class Column(NamedTuple):
    heading: str
    key: str
    show: Callable[[Any], str]
    narrow: bool = True
    """Whether it is there on a terminal where not all have room, too."""


def _count(value: float) -> str:
    """
    >>> _count(0), _count(7.25), _count(1234.5), _count(3_400_000)
    ('0', '7.2', '1,234', '3.4M')
    """
    if value >= 1e6:
        return f"{value / 1e6:.1f}M"
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"


COLUMNS: Final = (
    Column("NODE", "node", str),
    Column("STATE", "state", str),
    Column("SESSIONS", "sessions", _count),
    Column("IN/s", "accepted_per_s", _count),
    Column("OUT/s", "delivered_per_s", _count),
    Column("AGAIN/s", "redelivered_per_s", _count, narrow=False),
    Column("REFUSED/s", "refused_per_s", _count, narrow=False),
    Column("ACCEPT p99", "accept_p99_s", span, narrow=False),
    Column("p50", "delivery_p50_s", span),
    Column("p99", "delivery_p99_s", span),
    Column("PENDING", "pending", _count),
    Column("OLDEST", "oldest_pending_age_s", lambda age: span(age) if age else "-"),
    Column("LAG", "lag", _count, narrow=False),
)
_NUMBER: Final = 6
"""Columns that most numbers need, so that the table is as wide in the next look."""
_ANY: Final = 1000
"""More columns than any terminal has."""
PLAIN: Final[Columns] = tuple((column.heading, column.key) for column in COLUMNS)
CELLS: Final[Cells] = {column.key: column.show for column in COLUMNS}


def top(
    call: Call,
    interval: Annotated[float, typer.Option(metavar="SECONDS", help="Look again every so many seconds.")] = 2.0,
    admin_token_file: TOKEN_FILE = None,
) -> None:
    """Watch the nodes at work, until Ctrl-C: sessions, rates, latencies, and what waits.

    IN is what is accepted, OUT what recipients have acked; p50 and p99 are from the one to the other. --ndjson prints
    each look, one line a node and one for all; --json one look, after one interval.
    """
    if not SHORTEST <= interval < math.inf:  # NaN is neither
        raise UsageError(f"--interval takes {SHORTEST} seconds or more.")
    cluster = call.cluster()

    async def look() -> None:
        from yanchat.cli.sampling import Sampler
        from yanchat.cli.witnesses import admin_token

        sampler = Sampler(cluster, admin_token(cluster, admin_token_file))
        await (_watch if call.out.on_terminal else _print)(call.out, sampler, interval)

    run_async(look)


async def _print(out: Output, sampler: Sampler, interval: float) -> None:
    """One look behind the other; the first one has rates already."""
    import trio

    await sampler.look()
    warned: set[str] = set()
    while True:
        await trio.sleep(interval)
        rows = await sampler.look()
        at = int(time.time() * 1000)
        for why in sampler.silent:
            if why not in warned:
                warn(why)
        warned = set(sampler.silent)
        out.table(PLAIN, rows if out.form == "person" else [{"at": at, **row} for row in rows], CELLS)
        if out.form == "json":
            return


async def _watch(out: Output, sampler: Sampler, interval: float) -> None:
    import trio
    from rich.live import Live

    seen: deque[float] = deque(maxlen=REMEMBERED)
    with Live(console=out.lines, auto_refresh=False) as live:
        wait = min(FIRST_AFTER, interval)
        while True:
            rows = await sampler.look()
            if rows[-1]["delivered_per_s"] is not None:
                seen.append(rows[-1]["delivered_per_s"])
            live.update(picture(rows, sampler.silent, seen, out.lines.width), refresh=True)
            await trio.sleep(wait)
            wait = interval


def picture(rows: Sequence[Row], silent: Sequence[str], seen: Sequence[float], width: int) -> RenderableType:
    """What a person sees."""
    from rich.console import Console, Group
    from rich.text import Text

    total = rows[-1]
    table = _table(COLUMNS, rows, 2)
    if Console(width=_ANY).measure(table).maximum > width:
        table = _table([column for column in COLUMNS if column.narrow], rows, 1)
    head = Text.assemble(
        (time.strftime("%H:%M:%S"), "dim"),
        f"  {total['state']}, {_some(total['sessions'])} session{'s' * (total['sessions'] != 1)},"
        f" {_some(total['pending'])} pending  ",
        (sparks(seen), "cyan"),
        (f" {_count(seen[-1])} delivered a second" if seen else " …", "cyan"),
    )
    return Group(head, Text(), table, *(Text(why, "yellow", overflow="fold") for why in silent))


def _table(columns: Sequence[Column], rows: Sequence[Row], gap: int) -> Table:
    from rich.table import Table
    from rich.text import Text

    total = rows[-1]
    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="bold")
    for column in columns:
        left = column.key in {"node", "state"}
        table.add_column(
            column.heading, justify="left" if left else "right", no_wrap=True, min_width=None if left else _NUMBER
        )
    for row in rows if len(rows) > 2 else rows[:-1]:  # one node is all
        style = "bold" if row is total else ""
        table.add_row(
            *(Text(_shown(column, row), _style(column.key, row[column.key])) for column in columns), style=style
        )
    return table


def _some(value: float | None) -> str:
    return "-" if value is None else _count(value)


def _shown(column: Column, row: Row) -> str:
    return "-" if row[column.key] is None else column.show(row[column.key])


def _style(key: str, value: Any) -> str:
    if key == "state":
        return _STYLES.get(value, "")
    return "yellow" if key == "oldest_pending_age_s" and value is not None and value > LATE else ""


def sparks(values: Sequence[float]) -> str:
    """The last values as a line of bars, the highest of them as high as can be.

    >>> sparks([0, 1, 2, 4]), sparks([])
    (' ▂▄█', '')
    """
    most = max(values, default=0.0) or 1.0
    return "".join(_BARS[math.ceil(value / most * (len(_BARS) - 1))] for value in values)
