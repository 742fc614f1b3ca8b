"""How data looks: tables and lines for a person, JSON for a program. Data on stdout, everything else on stderr."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Form = Literal["person", "json", "ndjson"]
Rows = Sequence[Mapping[str, Any]]
Columns = Sequence[tuple[str, str]]
"""(heading, key of the row) for each column."""
Cells = Mapping[str, Callable[[Any], str]]
"""How a person reads the value of a key."""

# what could steer a terminal or turn its text around; newline and tab are let through
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_WIDE = 10_000


class NotWritten(OSError):
    """stdout takes nothing more: its reader has gone (EPIPE), or its disk is full."""


def printable(text: str) -> str:
    """The text with everything that could steer a terminal shown as an escape."""
    return _STEERING.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def complain(sentence: str) -> None:
    """Print an error."""
    _to_stderr(f"yanchat: {sentence}", "red")


def note(sentence: str) -> None:
    """Print what a person may like to know and a program need not."""
    _to_stderr(sentence, "dim")


def warn(sentence: str) -> None:
    _to_stderr(sentence, "yellow")


def end_line() -> None:
    """Go on behind the ^C that a terminal shows."""
    if sys.stderr.isatty():
        sys.stderr.write("\n")


def _to_stderr(sentence: str, style: str) -> None:
    try:
        if sys.stderr.isatty():
            console(sys.stderr).print(printable(sentence), style=style, markup=False, highlight=False, soft_wrap=True)
        else:
            print(printable(sentence), file=sys.stderr, flush=True)  # noqa: T201
    except OSError:
        pass  # nobody reads it; the call goes on


def console(stream: Any = None) -> Console:
    """A terminal's own width and colours; elsewhere plain text, never cut."""
    from rich.console import Console

    stream = stream or sys.stdout
    if stream.isatty():
        return Console(file=stream, highlight=False)
    return Console(file=stream, width=_WIDE, color_system=None, highlight=False)


class Output:
    """Where one call puts its data. Listed things come one by one through `item`, tables whole through `table`."""

    def __init__(self, form: Form) -> None:
        self.form = form
        self._listed = -1
        """How many items of a JSON list are out; -1 before its opening bracket."""
        self._console: Console | None = None

    def table(self, columns: Columns, rows: Rows, cells: Cells | None = None) -> None:
        """Print rows."""
        if self.form == "json":
            self._write(_json(list(rows), indent=2))
        elif self.form == "ndjson":
            for row in rows:
                self._write(_json(row))
        elif rows and self.on_terminal:
            self.lines.print(table(columns, rows, cells or {}))
        elif rows:
            self._write(_plain_table(columns, rows, cells or {}))

    def document(self, document: Mapping[str, Any], sentence: str, *, one_line: bool = False) -> None:
        """Print one thing."""
        if self.form == "person":
            self.line(sentence)
        else:
            self._write(_json(document, indent=2 if self.form == "json" and not one_line else None))

    def item(self, item: Mapping[str, Any], sentence: str, style: str = "") -> None:
        """Print one of a list as it happens."""
        if self.form == "json":
            self._write(("[\n" if self._listed < 1 else ",\n") + "  " + _json(item), end="")
            self._listed = max(1, self._listed + 1)
        elif self.form == "ndjson":
            self._write(_json(item))
        else:
            self.line(sentence, style)

    def begin_list(self) -> None:
        """From here on the JSON document is a list, which `end_list` closes, whatever happens."""
        self._listed = max(self._listed, 0)
        if self.on_terminal:
            _ = self.lines  # loaded now, so that it does not slow down what is measured later

    def end_list(self) -> None:
        if self.form == "json" and self._listed >= 0:
            self._write("\n]" if self._listed else "[]")
        self._listed = -1

    def line(self, sentence: str, style: str = "") -> None:
        """Print a line for a person."""
        if self.on_terminal:
            self.lines.print(printable(sentence), style=style, markup=False, soft_wrap=True)
        else:
            self._write(printable(sentence))

    def raw(self, text: str) -> None:
        """Print a line as it is."""
        self._write(text)

    @property
    def on_terminal(self) -> bool:
        return self.form == "person" and sys.stdout.isatty()

    @property
    def lines(self) -> Console:
        if self._console is None:
            self._console = console()
        return self._console

    def _write(self, text: str, end: str = "\n") -> None:
        try:
            sys.stdout.flush()
            sys.stdout.buffer.write((text + end).encode(errors="backslashreplace"))
            sys.stdout.buffer.flush()
        except OSError as error:
            raise NotWritten(error.errno, error.strerror) from None


def table(columns: Columns, rows: Rows, cells: Cells) -> Table:
    """A table for a terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for heading, key in columns:
        whole = key == "message_id"  # it is there to be copied
        made.add_column(heading, overflow="fold", no_wrap=whole, justify="right" if key in _NUMBERS else "left")
    for row in rows:
        made.add_row(*(Text(_cell(key, row[key], cells), _STYLES.get(str(row[key]), "")) for _, key in columns))
    return made


def _plain_table(columns: Columns, rows: Rows, cells: Cells) -> str:
    """The same in aligned columns, for whoever cuts and greps."""
    lines = [[heading for heading, _ in columns]]
    lines += [[_cell(key, row[key], cells) for _, key in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


_NUMBERS = frozenset({"sessions", "attempts"})
_STYLES = {"up": "green", "draining": "yellow", "dead": "red", "expired": "red", "delivered": "green"}


def _cell(key: str, value: Any, cells: Cells) -> str:
    if value is None:
        return "-"
    return printable(str(cells[key](value) if key in cells else value)).replace("\n", "\\n")


def ago(at_ms: int) -> str:
    """How long ago a time was."""
    return span(time.time() - at_ms / 1000)


def span(seconds: float) -> str:
    """A duration as a person says it: two digits and a unit are enough.

    >>> span(0.0042), span(3.2), span(125), span(90_000)
    ('4 ms', '3.2 s', '2 min', '25 h')
    """
    seconds = max(0.0, seconds)
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds // 60:.0f} min"
    if seconds < 172800:
        return f"{seconds // 3600:.0f} h"
    return f"{seconds // 86400:.0f} d"


def _json(value: Any, indent: int | None = None) -> str:
    import json

    separators = (",", ": ") if indent else (", ", ": ")
    return json.dumps(value, ensure_ascii=False, indent=indent, separators=separators)
