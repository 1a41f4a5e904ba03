"""Dot plots: every seed's final value by rule, and paired differences with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bpeq.report import _colours as colours
from bpeq.report._canvas import CHARACTER, WIDTH, Margins, Panel, abbreviate
from bpeq.report._metrics import Metric, metric, spread
from bpeq.report._read import Floats
from bpeq.report._rows import Difference, Row, unit_after
from bpeq.report._scales import log_limits, log_ticks, logarithmic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ROW = 0.44  # inches a row: its name above, its dots below
_MARGINS = Margins(left=0.15, right=0.2, bottom=0.3, top=0.35)
_INSIDE = WIDTH - _MARGINS.left - _MARGINS.right  # the width of the axes


def final_values(found: Sequence[Row], measured: Metric) -> Panel | None:
    """Every seed's final value, a row a rule, the mean as a bar; controls grey, as reference lines.

    None where no rule has a finite value.
    """
    shown = [row for row in found if measured.name in row.stats]
    points = [measured.scale * row.stats[measured.name].finite for row in shown]
    everything = np.concatenate(points) if points else np.empty(0)
    if not len(everything):
        return None
    log, names = logarithmic(everything), [row.name for row in found]

    def draw(axes: Axes) -> None:
        _value_axis(axes, everything, log)
        _frame(axes, len(shown), f"final {measured.axis}" + (" (log scale)" if log else ""))
        for y, (row, values) in enumerate(zip(shown, points, strict=True)):
            # the colour of its curve: by its place among all rules, controls being last
            colour = colours.CONTROL if row.control else colours.series(names.index(row.name))
            mean = measured.scale * row.stats[measured.name].mean
            if row.control and math.isfinite(mean):
                axes.axvline(mean, color=colours.CONTROL, lw=0.8, ls=(0, (2, 3)), zorder=0)
            rest = " · null control" if row.control else ""
            _label(axes, y, row.name, _says(measured, row), colour, rest)
            heights = y + 0.22 + _stack(values, everything, log)
            fill = "none" if row.control else colour
            axes.scatter(values, heights, s=20, c=fill, edgecolors=colour, alpha=0.6, lw=0.9)
            if math.isfinite(mean):
                axes.plot([mean, mean], [y + 0.06, y + 0.38], color=colour, lw=2.4, zorder=3)

    alt = "; ".join(f"{r.name} {_says(measured, r)}" for r in shown)
    caption = "Each dot is one seed, the bar is the mean."
    if any(row.control for row in shown):
        caption += " Grey, with dotted lines: the null controls."
    height = _ROW * len(shown) + _MARGINS.bottom + _MARGINS.top
    return Panel(draw, f"Final {measured.axis}: {alt}.", caption, height, _MARGINS)


def paired(found: Sequence[Difference]) -> Panel | None:
    """Paired differences, a row a pair, with their intervals; one metric, that of the first.

    None where none is finite.
    """
    shown = [d for d in found if math.isfinite(d.mean) and d.metric == found[0].metric]
    if not shown:
        return None
    m = shown[0].metric
    ends = np.asarray([v for d in shown for v in (d.low, d.mean, d.high, 0.0)]) * m.scale
    ends = ends[np.isfinite(ends)]
    unit = f", {shown[0].unit}" if m.unit else ""

    def draw(axes: Axes) -> None:
        _value_axis(axes, ends, False)
        _frame(axes, len(shown), f"difference in {m.label}{unit}")
        axes.axvline(0, color=colours.INK, lw=1)
        for y, d in enumerate(shown):
            colour = colours.INK if d.resolved else colours.MUTED
            if math.isfinite(d.low + d.high):
                span = [m.scale * d.low, m.scale * d.high]
                axes.plot(span, [y + 0.22] * 2, color=colour, lw=2, solid_capstyle="butt")
            face = colour if d.resolved else colours.PAPER
            axes.plot(m.scale * d.mean, y + 0.22, "o", color=colour, mfc=face, ms=6)
            _label(axes, y, d.a, m.difference(d.mean), colours.INK, f" − {d.b}")

    alt = "; ".join(f"{d.title} {m.difference(d.mean)}, {d.says()}" for d in shown)
    caption = (
        f"Dot: mean over pairs of the same seed; line: its {100 * shown[0].level:g} % interval. "
        "Hollow: the interval contains 0."
    )
    height = _ROW * len(shown) + _MARGINS.bottom + _MARGINS.top
    return Panel(draw, f"Difference in {m.label}{unit}: {alt}.", caption, height, _MARGINS)


def _frame(axes: Axes, count: int, label: str) -> None:
    axes.set_ylim(count - 0.5 + 0.05, -0.5)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(False)
    axes.grid(axis="x", color=colours.LINE, lw=0.8)
    axes.set_xlabel(label, ha="left", va="bottom", parse_math=False)
    axes.xaxis.set_label_coords(-_MARGINS.left / _INSIDE, 1.0 + 0.1 / (_ROW * count))


def _value_axis(axes: Axes, values: Floats, log: bool) -> None:
    low, high = float(values.min()), float(values.max())
    if log:
        axes.set_xscale("log")
        axes.set_xlim(*log_limits(low, high))
        log_ticks(axes.xaxis, low, high)
        return
    edge = 0.07 * (high - low) or 0.1 * abs(high) or 1.0
    axes.set_xlim(low - edge, high + edge)


def _label(axes: Axes, y: float, name: str, figures: str, colour: str, rest: str = "") -> None:
    """A row's name, and what follows it, at the left; its figures at the right; above the dots."""
    place: dict[str, Any] = {
        "transform": axes.get_yaxis_transform(),
        "va": "center",
        "parse_math": False,
        "bbox": {"facecolor": colours.PAPER, "edgecolor": "none", "pad": 1},  # hides the grid
    }
    bold = 1.13 * CHARACTER
    most = max(16, int((_INSIDE - CHARACTER * len(figures)) / bold) - 2)
    rest = abbreviate(rest, max(most // 2, most - len(name)))
    name = abbreviate(name, most - len(rest)) + rest
    axes.text(-_MARGINS.left / _INSIDE, y - 0.2, name, color=colour, weight="bold", **place)
    axes.text(1, y - 0.2, figures, color=colours.INK, ha="right", **place)


def _says(m: Metric, row: Row) -> str:
    stat, solved = row.stats[m.name], row.stats.get("solved")
    if not len(stat.finite):
        return "no finite value"
    if solved is not None:
        text = spread(metric("solved"), solved)  # "98 % (49 of 50)", or "yes" of one seed
        return f"{text.partition('(')[2][:-1]} solved" if "(" in text else f"solved: {text}"
    if stat.lost:
        return f"{stat.lost} of {len(stat.values)} seeds not finite"
    return spread(m, stat) + unit_after(m)


def _stack(values: Floats, everything: Floats, log: bool) -> Floats:
    """Heights that keep dots of (nearly) equal value apart, within a row."""
    place = np.log(values) if log else values
    span = np.log(everything) if log else everything
    width = (float(span.max()) - float(span.min())) / 55 or 1.0
    bins: dict[int, int] = {}
    level = np.empty(len(values))
    for i in np.argsort(place, kind="stable"):
        column = round(float(place[i]) / width)
        level[i] = bins.get(column, 0)
        bins[column] = int(level[i]) + 1
    tallest = max(bins.values(), default=1)
    step = min(0.09, 0.24 / max(1, tallest - 1))
    # alternately above and below the middle of the row
    return np.where(level % 2 == 1, -1, 1) * np.ceil(level / 2) * step
