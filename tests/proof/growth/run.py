"""`scripts/growth`: how one node grows, and what many cost: figures into growth.json, and a plot of each measurement.

    scripts/growth                                   # all of them, in less than 20 minutes, on a quiet machine
    scripts/growth --only rows slow --out /tmp/try   # some; the figures of others stay as they are in growth.json
    scripts/growth --draw                            # the plots once more, from the figures that are there

The node runs on the first processor and the load on the last; only `nodes` leaves that to the system.
"""

from __future__ import annotations

import argparse
import datetime
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from tests.proof.growth import connections, nodes, rows, size, slow, storm
from tests.proof.growth.plot import Panel, draw
from tests.proof.growth.site import ROOT, Point, Site, say
from tests.services import Missing
from yanchat import __version__
from yanchat.bench.processes import machine

FILE = "growth.json"


class Measurement(NamedTuple):
    what: str
    minutes: float
    """On two cores, about."""
    measure: Callable[[Site], Iterator[Point]]
    panels: Callable[[Sequence[Point]], list[Panel]]


def _of(module: ModuleType, minutes: float) -> Measurement:
    assert module.__doc__ is not None
    return Measurement(module.__doc__.partition(": ")[2].strip(), minutes, module.measure, module.panels)


MEASUREMENTS = {
    "connections": _of(connections, 2),
    "storm": _of(storm, 3),
    "rows": _of(rows, 5),
    "nodes": _of(nodes, 2),
    "size": _of(size, 2),
    "slow": _of(slow, 4),
}


class Asked(argparse.Namespace):
    only: list[str]
    out: Path
    quick: bool
    draw: bool
    connections: int
    yanchat: str | None
    within: Path | None


def main(arguments: list[str] | None = None) -> int:
    asked = _parser().parse_args(arguments, Asked())
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        say("The plots need matplotlib: pip install matplotlib.")
        return 1
    _, descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
    program = [asked.yanchat] if asked.yanchat else [sys.executable, "-m", "yanchat"]
    asked.out.mkdir(parents=True, exist_ok=True)
    failed = 0
    for name in asked.only or MEASUREMENTS:
        if not asked.draw:
            site = Site(program, asked.quick, descriptors, asked.connections, asked.within)
            try:
                _measure(name, site, asked.out)
            except (RuntimeError, Missing) as error:
                say(f"{name}: {error}")
                failed += 1
                continue
        points = _read(asked.out).get(name, {}).get("points", [])
        if points:
            draw(asked.out / f"{name}.svg", MEASUREMENTS[name].panels(points))
            _table(name, points)
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    about = [f"  {name:12} {one.minutes:2g} min  {one.what}" for name, one in MEASUREMENTS.items()]
    parser = argparse.ArgumentParser(
        prog="scripts/growth",
        description=__doc__,
        epilog="\n".join(["measurements:", *about, "", "`nodes` and a part of `storm` start a Redis and a Kafka."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, default=[], metavar="NAME", help="these alone")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "performance", metavar="DIRECTORY")
    parser.add_argument("--quick", action="store_true", help="tiny ones, which only show that all of it works")
    parser.add_argument("--draw", action="store_true", help="measure nothing, draw what growth.json has")
    parser.add_argument(
        "--connections", type=int, default=19_000, metavar="N", help="idle clients at most (19000; 100000 are tried)"
    )
    parser.add_argument("--yanchat", metavar="PROGRAM", help="the program of the nodes; without it, this tree's")
    parser.add_argument(
        "--within",
        type=Path,
        metavar="DIRECTORY",
        help="where nodes have their state, on a real disk with 4 GB free; else where temporary files go",
    )
    return parser


def _measure(name: str, site: Site, out: Path) -> None:
    """Measure, and write it down beside what was measured before."""
    say(f"{name}: {MEASUREMENTS[name].what}")
    here, began, points = machine(), time.monotonic(), list[Point]()
    for point in MEASUREMENTS[name].measure(site):
        points.append(point)
        say(f"  {time.monotonic() - began:4.0f} s  " + ", ".join(f"{k} {_cell(v)}" for k, v in _shown(point).items()))
    everything = _read(out)
    everything[name] = {
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "version": __version__,
        "machine": {**here, "descriptors": site.descriptors},
        "quick": site.quick,
        "rounds": site.rounds,
        "seconds": site.seconds,
        "took_s": round(time.monotonic() - began),
        "notes": site.notes,
        "points": points,
    }
    text = json.dumps({name: everything[name] for name in MEASUREMENTS if name in everything}, indent=1)
    (out / FILE).write_text(_lists_on_one_line(text) + "\n")


def _read(out: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((out / FILE).read_text())
    except FileNotFoundError:
        return {}
    return found


def _lists_on_one_line(text: str) -> str:
    """Lists of numbers, which are long."""
    lines, open_list = list[str](), False
    for line in text.splitlines():
        bare = line.strip().rstrip(",")
        number = bare.lstrip("-").replace(".", "", 1).isdigit()
        if open_list and (number or bare == "]"):
            lines[-1] += ("" if lines[-1].endswith("[") or bare == "]" else " ") + line.strip()
        else:
            lines.append(line)
        open_list = line.endswith("[") or (open_list and number)
    return "\n".join(lines)


def _shown(point: Point) -> Point:
    return {key: value for key, value in point.items() if not isinstance(value, list)}


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int | float) else str(value)


def _table(name: str, points: Sequence[Point]) -> None:
    """For a person, and as Markdown has it."""
    heads = list(_shown(points[0]))
    lines = [[_cell(point.get(head)) for head in heads] for point in points]
    widths = [max(len(cell) for cell in column) for column in zip(heads, *lines, strict=True)]
    print(f"\n{name}\n")
    for number, cells in enumerate([heads, *lines]):
        print("| " + " | ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)) + " |")
        if number == 0:
            print("|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
