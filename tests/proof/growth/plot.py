"""SVG plots: up to three panels in a row, each with a few curves."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

COLOURS = ("#0b6e99", "#c8553d", "#588157", "#8d6a9f")
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: small, and found by a search
    "svg.hashsalt": "yanchat",  # the same figures are the same file
    "font.size": 9,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "sans-serif"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
}
A_ROW = 3
Curve = tuple[Sequence[float], Sequence[float]]


class Panel(NamedTuple):
    """`curves` are xs and ys by what they are; one that is alone needs no name."""

    title: str
    x: str
    curves: Mapping[str, Curve]
    scale: Literal["linear", "log", "symlog"] = "linear"
    dots: bool = True
    """Each point is a measurement; else it is what holds until the next."""


def draw(path: Path, panels: Sequence[Panel]) -> None:
    """Write one file with these panels."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    with matplotlib.rc_context(SETTINGS):
        columns = 2 if len(panels) == 4 else min(A_ROW, len(panels))
        rows = -(-len(panels) // columns)
        figure = Figure(figsize=(6.4 if columns == 1 else 3.4 * columns, 2.8 * rows), layout="constrained")
        places = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axes, panel in zip(places, panels, strict=False):
            for colour, (name, (xs, ys)) in zip(COLOURS, panel.curves.items(), strict=False):
                style = {"marker": "o", "markersize": 4} if panel.dots else {"drawstyle": "steps-post"}
                axes.plot(xs, ys, color=colour, label=name or None, linewidth=1.5, **style)
            everywhere = [x for xs, _ in panel.curves.values() for x in xs]
            if panel.scale == "symlog":
                axes.set_xscale("symlog", linthresh=min((x for x in everywhere if x > 0), default=1))
            elif panel.scale == "log":
                axes.set_xscale("log")
            if max(everywhere, default=0) >= 1000:
                axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            axes.minorticks_off()
            axes.set_ylim(0, 1.25 * max((y for _, ys in panel.curves.values() for y in ys), default=1))
            axes.set_title(panel.title, loc="left", fontsize=9)
            axes.set_xlabel(panel.x)
            if any(panel.curves):
                axes.legend(frameon=False, fontsize=8)
        for axes in places[len(panels) :]:
            axes.remove()
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    path.write_text(_smaller(text.getvalue()))


def _smaller(svg: str) -> str:
    """Without what nobody looks at: comments, metadata, the names of groups, indents."""
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<g id=\"[^\"]*\">", "<g>", svg)
    return re.sub(r"\s*\n\s*", "\n", svg)
