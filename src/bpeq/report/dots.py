"""Dot plots: the final value of every seed, and paired differences with their intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bpeq.report import colours
from bpeq.report.figures import Panel, abbreviate, is_logarithmic, label_axes, log_axis
from bpeq.report.metrics import Metric, metric, spread, with_unit
from bpeq.report.pairs import Pair
from bpeq.runs.results import ComparisonRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ROW = 0.44  # inches of a row: its name above, its dots below


def final_values(rules: Mapping[str, ComparisonRow], m: Metric) -> Panel | None:
    """Draws every seed's final value, one row for each rule, with a bar at the mean.

    Null controls are grey, with dotted lines through the other rows.

    Args:
      rules: the rows by name.
      m: the metric.

    Returns:
      The panel; None if no rule has a finite value.
    """
    shown = {name: row for name, row in rules.items() if m.name in row.metrics}
    points = {name: m.scale * row.metrics[m.name].finite for name, row in shown.items()}
    everything = np.concatenate([*points.values()]) if points else np.empty(0)
    if not len(everything):
        return None
    log = is_logarithmic(everything)

    def draw(axes: Axes) -> None:
        if log:
            log_axis(axes.xaxis, everything)
        _set_frame(axes, len(shown), f"final {m.axis}" + (" (log scale)" if log else ""))
        for y, (name, row) in enumerate(shown.items()):
            colour = colour_of(rules, name)
            mean = m.scale * row.metrics[m.name].mean
            _label(axes, y, name, " · null control" if row.control else "", colour)
            _put_figures(axes, y, _figures(m, row))
            # Dots have different heights, so that equal values can be counted.
            heights = y + 0.22 + np.linspace(-0.12, 0.12, len(points[name]) + 2)[1:-1]
            fill = "none" if row.control else colour
            axes.scatter(points[name], heights, s=20, c=fill, edgecolors=colour, alpha=0.6, lw=0.9)
            if math.isfinite(mean):
                axes.plot([mean, mean], [y + 0.06, y + 0.38], color=colour, lw=2.4, zorder=3)
            if math.isfinite(mean) and row.control:
                axes.axvline(mean, color=colours.CONTROL, lw=0.8, ls=(0, (2, 3)), zorder=0)

    alt = "; ".join(f"{name} {_figures(m, row)}" for name, row in shown.items())
    caption = "Each dot is one seed, the bar is the mean."
    if any(row.control for row in shown.values()):
        caption += " Grey, with dotted lines: the null controls."
    return Panel(draw, f"Final {m.axis}: {alt}.", caption, _ROW * len(shown) + 0.65)


def paired(pairs: Sequence[Pair]) -> Panel | None:
    """Draws paired differences with their intervals, one row for each pair.

    Args:
      pairs: the paired differences. Only those with the metric of the first are drawn.

    Returns:
      The panel; None if no difference is finite.
    """
    shown = [p for p in pairs if math.isfinite(p.mean) and p.metric == pairs[0].metric]
    if not shown:
        return None
    m = shown[0].metric
    label = f"difference in {m.label}{f', {shown[0].unit}' if m.unit else ''}"

    def draw(axes: Axes) -> None:
        _set_frame(axes, len(shown), label)
        axes.axvline(0, color=colours.INK, lw=1)
        for y, p in enumerate(shown):
            colour = colours.INK if p.is_resolved else colours.MUTED
            face = colour if p.is_resolved else colours.PAPER
            _label(axes, y, p.first, f" − {p.second}", colours.INK)
            _put_figures(axes, y, m.difference(p.mean))
            if p.is_judged:
                span = [m.scale * p.low, m.scale * p.high]
                axes.plot(span, [y + 0.22] * 2, color=colour, lw=2, solid_capstyle="butt")
            axes.plot(m.scale * p.mean, y + 0.22, "o", color=colour, mfc=face, ms=6)

    alt = "; ".join(f"{p.title} {m.difference(p.mean)}, {p.reason}" for p in shown)
    caption = (
        f"Dot: mean over pairs of the same seed; line: its {100 * shown[0].level:g} % interval. "
        "Hollow: the interval contains 0."
    )
    return Panel(draw, f"{label.capitalize()}: {alt}.", caption, _ROW * len(shown) + 0.65)


def colour_of(rules: Mapping[str, ComparisonRow], name: str) -> str:
    """The colour of a rule, by its place among all rules. Null controls are grey.

    Args:
      rules: the rows by name.
      name: the name of the rule.

    Returns:
      The colour.
    """
    return colours.CONTROL if rules[name].control else colours.series([*rules].index(name))


def _set_frame(axes: Axes, rows: int, label: str) -> None:
    axes.set_ylim(rows - 0.45, -0.5)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=colours.LINE, lw=0.8)
    axes.margins(x=0.07)
    label_axes(axes, "", label)


def _label(axes: Axes, y: float, name: str, rest: str, colour: str) -> None:
    """Writes the name of a row and the text after it above its dots, at the left."""
    rest = abbreviate(rest, max(20, 40 - len(name)))
    text = abbreviate(name, 40 - len(rest)) + rest
    axes.text(0, y - 0.2, text, color=colour, weight="bold", **_place(axes))


def _put_figures(axes: Axes, y: float, text: str) -> None:
    axes.text(1, y - 0.2, text, color=colours.INK, ha="right", **_place(axes))


def _place(axes: Axes) -> dict[str, Any]:
    box = {"facecolor": colours.PAPER, "edgecolor": "none", "pad": 1}  # hides the grid
    transform = axes.get_yaxis_transform()
    return {"transform": transform, "va": "center", "parse_math": False, "bbox": box}


def _figures(m: Metric, row: ComparisonRow) -> str:
    stat, solved = row.metrics[m.name], row.metrics.get("solved")
    if not len(stat.finite):
        return "no finite value"
    if solved is not None:
        text = spread(metric("solved"), solved)  # "98 % (49 of 50)", or "yes" of one seed
        return f"{text.partition('(')[2][:-1]} solved" if "(" in text else f"solved: {text}"
    if stat.lost:
        return f"{stat.lost} of {len(stat.values)} seeds not finite"
    return with_unit(m, stat)
