"""Curves of an error on a log axis, named at their ends, with guides of a known slope."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bpeq.report import _colours as colours
from bpeq.report._canvas import WIDTH, Margins, Panel, abbreviate, label_ends, room
from bpeq.report._numbers import plain
from bpeq.report._read import Floats
from bpeq.report._scales import log_limits, log_ticks
from bpeq.report._tables import folded_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TALL = 3.4  # inches
_LONGEST, _MOST_LINES = 14, 13  # characters and lines of the labels at the right edge
_LEAST_DECADES = 0.7  # that a log axis spans, so that it has a tick or two


class Line(NamedTuple):
    """One curve: x `[k]` rising, y `[k]`, the share of phases that settled `[k]`; how it looks."""

    label: str
    rule: str
    estimator: str
    precision: str
    beta: float
    x: Floats
    y: Floats
    settled: Floats
    colour: str
    dash: str = "-"

    @property
    def drawn(self) -> np.ndarray:
        """`[k]`, which points log axes can show: finite, and above 0."""
        x, y = self.x, self.y
        return np.isfinite(x) & (x > 0) & np.isfinite(y) & (y > 0)


class Words(NamedTuple):
    """What a panel of lines is called: its y and x axis, its caption, what the alt text adds."""

    quantity: str
    axis: str
    caption: str
    alt: str = ""


def line_panel(
    lines: Sequence[Line],
    words: Words,
    log_x: bool,
    more: Callable[[Axes], None] | None = None,
    extra: Sequence[tuple[float, float]] = (),
    tails: Mapping[str, str] = MappingProxyType({}),
) -> Panel | None:
    """Lines and their dots; hollow where not all phases settled. None where none can be drawn.

    Args:
      lines: those without a point above 0 are left out.
      words: axes and captions.
      log_x: whether x is logarithmic too.
      more: draws into the axes, below the lines, when the limits are final.
      extra: points that must lie within the axes.
      tails: what follows a line's label, by label, on a line of its own.
    """
    lines = [line for line in lines if line.drawn.any()]
    if not lines:
        return None
    ends = {line.label: line for line in reversed(lines)}  # the first of a label: its float32
    labels = dict(zip(ends, fold([*ends]), strict=True))
    labels = {k: f"{text}\n{tails[k]}" if k in tails else text for k, text in labels.items()}
    margins = Margins(right=room([*labels.values()]))
    points = [pair for a in lines for pair in zip(a.x[a.drawn], a.y[a.drawn], strict=True)]
    points += [(x, y) for x, y in extra if 0 < x < math.inf and 0 < y < math.inf]
    xs, ys = np.asarray(points, np.float64).T

    def draw(axes: Axes) -> None:
        log_axis(axes.yaxis, ys)
        if log_x:
            log_axis(axes.xaxis, xs)
        else:
            _whole_axis(axes, xs)
        if more is not None:
            more(axes)
        for line in lines:
            _draw_line(axes, line)
        axes.set_xlabel(words.axis)
        axes.set_ylabel(f"{words.quantity} (log scale)", rotation=0, ha="left", va="bottom")
        axes.yaxis.set_label_coords(-margins.left / (WIDTH - margins.left - margins.right), 1.04)
        label_ends(axes, [(labels[k], a.colour, float(a.y[a.drawn][-1])) for k, a in ends.items()])

    caption = words.caption
    if any((line.settled[line.drawn] < 1).any() for line in lines):
        caption += " Hollow: not all phases settled."
    first, last = plain(float(xs.min())), plain(float(xs.max()))
    told = "; ".join(map(_tell, lines))
    head = f"{words.quantity.capitalize()} over {words.axis} from {first} to {last}"
    return Panel(draw, f"{head}. {told}. {words.alt}".strip(), caption, _TALL, margins)


def guide(axes: Axes, curve: Callable[[Floats], Floats], last: float, text: str) -> None:
    """A dotted guide, up to x = `last` and within the axes, named at its middle."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    spaced = np.geomspace if axes.get_xscale() == "log" else np.linspace
    x = spaced(left, min(right, last), 200)
    y = curve(x)
    inside = (y >= low) & (y <= high)
    if not inside.any():
        return
    axes.plot(x[inside], y[inside], ":", color=colours.CONTROL, lw=1.4, zorder=1)
    middle = np.flatnonzero(inside)[int(inside.sum()) // 2]
    falls = y[-1] < y[0]
    axes.annotate(
        text, (float(x[middle]), float(y[middle])), xytext=(6, 3 if falls else -3),
        textcoords="offset points", va="bottom" if falls else "top", color=colours.MUTED, size=9,
        parse_math=False,
    )  # fmt: skip


def fold(names: Sequence[str]) -> list[str]:
    """Names for the right edge: long ones on several lines, or abbreviated where there are many."""
    folded = [folded_name(abbreviate(name, 3 * _LONGEST), _LONGEST) for name in names]
    if len(names) * max((text.count("\n") + 1 for text in folded), default=0) <= _MOST_LINES:
        return folded
    return [abbreviate(name, 20) for name in names]


def wide(low: float, high: float) -> tuple[float, float]:
    """Limits of a log axis, pushed apart where they span too little for a tick."""
    lack = _LEAST_DECADES - (math.log10(high) - math.log10(low))
    edge = 10 ** (max(lack, 0.0) / 2)
    return low / edge, high * edge


def log_axis(axis: Any, values: Floats) -> None:
    """Makes an axis logarithmic, with limits and ticks that suit the values."""
    low, high = wide(float(values.min()), float(values.max()))
    name = axis.axis_name
    axis.axes.set(**{f"{name}scale": "log", f"{name}lim": log_limits(low, high)})
    log_ticks(axis, low, high)


def _whole_axis(axes: Axes, xs: Floats) -> None:
    from matplotlib.ticker import MaxNLocator

    edge = 0.04 * float(np.ptp(xs)) or 1.0
    axes.set_xlim(float(xs.min()) - edge, float(xs.max()) + edge)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))


def _draw_line(axes: Axes, line: Line) -> None:
    y = np.where(line.drawn, line.y, np.nan)
    axes.plot(line.x, y, line.dash, color=line.colour, lw=1.6)
    done = line.settled >= 1
    for part, fill in ((done, line.colour), (~done, colours.PAPER)):
        axes.plot(line.x[part], y[part], "o", color=line.colour, mfc=fill, ms=4, mew=1)


def _tell(line: Line) -> str:
    name = f"{line.label} ({line.precision})" if line.precision else line.label
    y = line.y[line.drawn]
    return f"{name}: {plain(float(y[0]))} to {plain(float(y[-1]))}, least {plain(float(y.min()))}"
