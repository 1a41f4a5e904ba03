"""Curves of an error on a log axis, with a legend and with guide lines of a known slope."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from bpeq.report import colours, figures
from bpeq.report.numbers import format_number, setting
from bpeq.runs.results import Floats

_TALL = 3.4  # inches


class ErrorLine(NamedTuple):
    """One curve of an error.

    Args:
      label: its name.
      x: `[k]`, rising.
      y: `[k]`, the error.
      settled: `[k]`, the share of settled phases.
      colour: its colour.
      dash: its line style; the default is solid.
      precision: "float32" or "float64"; empty if unknown.
      beta: its β; 0 if β varies.
    """

    label: str
    x: Floats
    y: Floats
    settled: Floats
    colour: str
    dash: str = "-"
    precision: str = ""
    beta: float = 0.0

    @property
    def drawn(self) -> np.ndarray:
        """`[k]`, whether log axes can show the point: it is finite and above 0."""
        x, y = self.x, self.y
        return np.isfinite(x) & (x > 0) & np.isfinite(y) & (y > 0)


def line_panel(
    lines: Sequence[ErrorLine],
    quantity: str,
    axis: str,
    caption: str,
    alt: str = "",
    *,
    log_x: bool = True,
    more: Callable[[figures.Axes], None] | None = None,
    extra: Sequence[tuple[float, float]] = (),
    slopes: Mapping[str, str] = MappingProxyType({}),
) -> figures.Panel | None:
    """Makes a panel of lines over a log y axis.

    Args:
      lines: the lines. Lines with the same label share one entry of the legend.
      quantity: the label of the y axis.
      axis: the label of the x axis.
      caption: the caption.
      alt: the end of the alt text; may be empty.
      log_x: whether the x axis is logarithmic too, as by default.
      more: draws into the axes below the lines, after the limits are set; None: nothing.
      extra: points (x, y) that must lie within the axes.
      slopes: label -> text after the label in the legend.

    Returns:
      The panel; None if no line has a point to draw.
    """
    lines = [line for line in lines if line.drawn.any()]
    if not lines:
        return None
    points = [pair for a in lines for pair in zip(a.x[a.drawn], a.y[a.drawn], strict=True)]
    points += [(x, y) for x, y in extra if 0 < x < math.inf and 0 < y < math.inf]
    xs, ys = np.asarray(points, np.float64).T

    def draw(axes: figures.Axes) -> None:
        figures.log_axis(axes.yaxis, ys)
        if log_x:
            figures.log_axis(axes.xaxis, xs)
        else:
            edge = 0.04 * float(np.ptp(xs)) or 1.0
            axes.set_xlim(float(xs.min()) - edge, float(xs.max()) + edge)
            figures.whole_axis(axes.xaxis)
        if more is not None:
            more(axes)
        names: dict[str, tuple[str, Any, float]] = {}
        for line in lines:
            y = np.where(line.drawn, line.y, np.nan)
            (handle,) = axes.plot(line.x, y, line.dash, color=line.colour, lw=1.6)
            settled = line.settled >= 1
            for part, fill in ((settled, line.colour), (~settled, colours.PAPER)):
                axes.plot(line.x[part], y[part], "o", color=line.colour, mfc=fill, ms=4, mew=1)
            text = "\n".join(filter(None, [line.label, slopes.get(line.label)]))
            names.setdefault(line.label, (text, handle, float(line.y[line.drawn][-1])))
        figures.label_axes(axes, axis, f"{quantity} (log scale)")
        figures.name_lines(axes, [*names.values()])

    if any((line.settled[line.drawn] < 1).any() for line in lines):
        caption += " Hollow: not all phases settled."
    first, last = setting(float(xs.min())), setting(float(xs.max()))
    head = f"{quantity.capitalize()} over {axis} from {first} to {last}"
    text = f"{head}. {'; '.join(map(_describe, lines))}. {alt}"
    return figures.Panel(draw, text.strip(), caption, _TALL)


def guide(axes: figures.Axes, curve: Callable[[Floats], Floats], last: float, text: str) -> None:
    """Draws a dotted guide line, with a text at its middle.

    Args:
      axes: the axes, whose limits are set.
      curve: x -> y of the line.
      last: the largest x of the line.
      text: the text.
    """
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    spaced = np.geomspace if axes.get_xscale() == "log" else np.linspace
    x = spaced(left, min(right, last), 200)
    y = curve(x)
    inside = np.flatnonzero((y >= low) & (y <= high))
    if not len(inside):
        return
    axes.plot(x[inside], y[inside], ":", color=colours.CONTROL, lw=1.4, zorder=1)
    middle, falls = inside[len(inside) // 2], y[-1] < y[0]
    axes.annotate(
        text, (float(x[middle]), float(y[middle])), xytext=(6, 3 if falls else -3),
        textcoords="offset points", va="bottom" if falls else "top", color=colours.MUTED, size=9,
        parse_math=False,
    )  # fmt: skip


def _describe(line: ErrorLine) -> str:
    name = f"{line.label} ({line.precision})" if line.precision else line.label
    first, last, least = (
        format_number(float(v)) for v in (*line.y[line.drawn][[0, -1]], line.y[line.drawn].min())
    )
    return f"{name}: {first} to {last}, least {least}"
