"""Charts of the report, as SVG: the same bytes for the same numbers."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

SIZE = (4.8, 3.1)  # inches: two beside each other on a laptop, one on a phone
# Text stays text, drawn with the reader's fonts; ids of clip paths do not depend on chance.
STYLE = {
    "svg.hashsalt": "wsss.report", "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False,
    "axes.spines.right": False, "lines.linewidth": 1.6,
}  # fmt: skip
COLOURS = ("#1f5fa8", "#c8501e", "#2d8a4e", "#8a4fa3", "#8c6d1f", "#555555")  # apart for the colour-blind too


@dataclass(frozen=True)
class Line:
    """A curve; points whose y is not finite are left out."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    dashed: bool = False
    colour: int | None = None  # of COLOURS; None: the next one


@dataclass(frozen=True)
class Chart:
    """A line chart.

    Args:
        title, x_label, y_label: Texts.
        lines: The curves, at least one with a point.
        y_range: Ends of the y axis; None: as the points need.
        mark: (x, y, text) of a point to show, with a vertical line through it.
        whole_x: x counts something.
        legend_columns: Names of lines beside each other, below the chart.
    """

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    y_range: tuple[float, float] | None = None
    mark: tuple[float, float, str] | None = None
    whole_x: bool = True
    legend_columns: int = 4


def draw(chart: Chart) -> bytes:
    """The chart as an SVG file."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.add_subplot()
        for k, line in enumerate(chart.lines):
            points = [(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]
            axes.plot(
                *zip(*points, strict=True) if points else ((), ()),
                linestyle="--" if line.dashed else "-",
                color=COLOURS[(k if line.colour is None else line.colour) % len(COLOURS)],
                marker="o" if len(points) <= 30 else None,
                markersize=3,
                label=line.label,
            )
        if chart.mark:
            x, y, text = chart.mark
            axes.axvline(x, color="0.4", linewidth=1, linestyle=":")
            if math.isfinite(y):
                axes.plot([x], [y], "o", color="0.15", markersize=5, label=text)
        axes.set(title=chart.title, xlabel=chart.x_label, ylabel=chart.y_label)
        if chart.y_range:
            axes.set_ylim(*chart.y_range)
        if chart.whole_x:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
        axes.grid(alpha=0.25)
        if len(chart.lines) > 1 or chart.mark:
            figure.legend(loc="outside lower center", fontsize=8, frameon=False, ncols=chart.legend_columns)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
