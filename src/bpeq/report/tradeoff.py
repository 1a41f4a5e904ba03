"""Accuracy against cost: each rule's final error over the cost of one of its gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bpeq.report import colours
from bpeq.report.figures import Panel, abbreviate, is_logarithmic, label_axes, log_axis
from bpeq.report.metrics import Metric, with_unit
from bpeq.report.numbers import format_number
from bpeq.report.pairs import mean_of
from bpeq.runs.results import ComparisonRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_AXES = {
    "macs": ("multiply-accumulates of a gradient, millions", 1e-6),
    "seconds": ("time of a gradient, ms", 1e3),
}
_MARKERS = "osD^v"  # one for each round of the colours
_SIZE = 9  # points, of a marker with its number inside


class ScatterPoint(NamedTuple):
    """The point of one rule.

    Args:
      name: the name of the rule.
      x: its cost.
      y: its error.
      std: the standard deviation of the error.
      colour: its colour.
      marker: its marker.
    """

    name: str
    x: float
    y: float
    std: float
    colour: str
    marker: str


def tradeoffs(rules: Mapping[str, ComparisonRow], m: Metric) -> list[Panel]:
    """Draws the error over multiply-accumulates and over seconds.

    Args:
      rules: the rows by name.
      m: the metric of the error.

    Returns:
      The panels that have a rule to show.
    """
    panels = (_panel(rules, m, key) for key in _AXES)
    return [panel for panel in panels if panel is not None]


def dodge(places: Sequence[tuple[float, float]], apart: float) -> list[float]:
    """Moves points to the right or left so that they do not overlap.

    Args:
      places: x and y of the points.
      apart: the least distance of two points, in the same unit.

    Returns:
      A shift in x for each point: 0, or a positive or negative multiple of `apart`.
    """
    shifts = dict[int, float]()
    steps = [0.0, *(sign * k * apart for k in range(1, len(places) + 1) for sign in (1, -1))]
    for i in sorted(range(len(places)), key=lambda i: places[i]):
        x, y = places[i]
        placed = [(places[j][0] + shift, places[j][1]) for j, shift in shifts.items()]
        shifts[i] = next(
            step
            for step in steps
            if all(math.hypot(x + step - a, y - b) >= 0.99 * apart for a, b in placed)
        )
    return [shifts[i] for i in range(len(places))]


def _panel(rules: Mapping[str, ComparisonRow], m: Metric, key: str) -> Panel | None:
    label, scale = _AXES[key]
    points, lost = _points(rules, m, key, scale)
    if not points:
        return None
    means = {name: mean_of(row, m) for name, row in rules.items() if row.control}
    bars = {name: m.scale * mean for name, mean in means.items() if mean is not None}
    around = [p.y + sign * p.std for p in points for sign in (-1, 1)]
    ys = np.asarray([*around, *bars.values()])

    def draw(axes: Axes) -> None:
        costs = np.asarray([p.x for p in points])
        edge = (costs.max() / costs.min()) ** 0.12
        log_axis(axes.xaxis, np.asarray([costs.min() / edge, costs.max() * edge]))
        if is_logarithmic(ys):
            log_axis(axes.yaxis, ys)
        else:
            room = 0.1 * float(np.ptp(ys)) or 0.1 * abs(float(ys[0])) or 1.0
            axes.set_ylim(
                max(ys.min() - room, 0.0 if ys.min() >= 0 else -math.inf), ys.max() + room
            )
        label_axes(axes, label, m.axis)
        for name, y in bars.items():
            axes.axhline(y, color=colours.CONTROL, lw=1, ls=(0, (4, 3)), zorder=1)
            axes.annotate(
                f"{name}\n{format_number(y)}", (1, y), xycoords=("axes fraction", "data"),
                xytext=(4, 0), textcoords="offset points", va="center", color=colours.CONTROL,
                size=9, parse_math=False,
            )  # fmt: skip
        _draw_points(axes, points)

    caption = (
        "Dot: mean over seeds; line: ± one standard deviation. Numbers: from the lowest error on. "
        "Rules that would cover each other stand side by side."
    )
    caption += " Dashed: the null controls, whatever they cost." if bars else ""
    caption += f" Not drawn, because a figure is missing: {', '.join(lost)}." if lost else ""
    texts = [f"{p.name} {_with_unit(rules, m, p.name)} at {format_number(p.x)}" for p in points]
    texts += [f"{name} {_with_unit(rules, m, name)}" for name in bars]
    alt = f"{m.axis} over {label}: {'; '.join(texts)}."
    tall = 3.6 + 0.09 * len(points)
    return Panel(draw, f"{alt[0].upper()}{alt[1:]}", caption, tall)


def _draw_points(axes: Axes, points: Sequence[ScatterPoint]) -> None:
    """Draws numbered markers, moved apart if they overlap, and their legend below the axes."""
    from matplotlib.lines import Line2D
    from matplotlib.transforms import ScaledTranslation

    figure: Any = axes.figure
    marks = [Line2D([], [], color=p.colour, marker=p.marker, ms=6, lw=0) for p in points]
    names = [abbreviate(f"{i}  {p.name}", 34) for i, p in enumerate(points, start=1)]
    key = figure.legend(
        marks, names, loc="outside lower left", ncols=2, fontsize=9, frameon=False,
        labelspacing=0.35, handletextpad=0.3, columnspacing=1.0,
    )  # fmt: skip
    for text in key.get_texts():
        text.set_parse_math(False)
    figure.get_layout_engine().execute(figure.canvas.figure)  # places are known after this
    inches = [axes.transData.transform((p.x, p.y)) / figure.dpi for p in points]
    shifts = dodge([(float(x), float(y)) for x, y in inches], 1.15 * _SIZE / 72)
    for number, (p, shift) in enumerate(zip(points, shifts, strict=True), start=1):
        moved = axes.transData + ScaledTranslation(shift, 0.0, figure.dpi_scale_trans)
        axes.errorbar(
            p.x, p.y, yerr=p.std or None, fmt=p.marker, ms=_SIZE, lw=1.2, color=p.colour,
            transform=moved, markeredgecolor=colours.PAPER, markeredgewidth=0.6,
        )  # fmt: skip
        axes.text(
            p.x, p.y, str(number), transform=moved, color=colours.PAPER, size=6.5, weight="bold",
            ha="center", va="center_baseline",
        )  # fmt: skip


def _points(
    rules: Mapping[str, ComparisonRow], m: Metric, key: str, scale: float
) -> tuple[list[ScatterPoint], list[str]]:
    """The rules that have both numbers, in rising order of error, and the names of the others."""
    points, lost = [], []
    for i, (name, row) in enumerate(rules.items()):
        mean, cost = mean_of(row, m), row.cost.get(key, math.nan)
        if row.control:
            continue
        if mean is None or not 0 < cost < math.inf:
            lost.append(name)
            continue
        stat = row.metrics[m.name]
        std = stat.std if len(stat.values) > 1 and math.isfinite(stat.std) else 0.0
        marker = _MARKERS[i // len(colours.SERIES) % len(_MARKERS)]
        look = (colours.series(i), marker)
        points.append(ScatterPoint(name, scale * cost, m.scale * mean, m.scale * std, *look))
    return sorted(points, key=lambda p: (p.y, p.name)), lost


def _with_unit(rules: Mapping[str, ComparisonRow], m: Metric, name: str) -> str:
    return with_unit(m, rules[name].metrics[m.name])
