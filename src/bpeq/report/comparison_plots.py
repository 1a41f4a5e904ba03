"""The panels of a comparison: final values, paired differences, and accuracy against cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from bpeq.report import colours, figures
from bpeq.report.metrics import Metric, mean_of, metric, spread, with_unit
from bpeq.report.numbers import format_number
from bpeq.report.pairs import Rules, verdict
from bpeq.runs.results import ComparisonRow, Difference

_ROW = 0.44  # inches of a row: its name above, its dots below
_COSTS = {
    "macs": ("multiply-accumulates of a gradient, millions", 1e-6),
    "seconds": ("time of a gradient, ms", 1e3),
}
_MARKERS = "osD^v"  # one for each round of the colours
_SIZE = 9  # points, of a marker with its number inside


def colour_of(rules: Rules, name: str) -> str:
    """The colour of a rule, by its place among all rules. Null controls are grey.

    Args:
      rules: the rows by name.
      name: the name of the rule.

    Returns:
      The colour.
    """
    return colours.CONTROL if rules[name].control else colours.series([*rules].index(name))


def final_values(rules: Rules, m: Metric) -> figures.Panel | None:
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
    log = figures.is_logarithmic(everything)

    def draw(axes: figures.Axes) -> None:
        if log:
            figures.log_axis(axes.xaxis, everything)
        _set_frame(axes, len(shown), f"final {m.axis}" + (" (log scale)" if log else ""))
        for y, (name, row) in enumerate(shown.items()):
            colour, mean = colour_of(rules, name), m.scale * mean_of(row.metrics, m)
            _label(axes, y, name, " · null control" * row.control, colour, _value(m, row))
            # Dots have different heights, so that equal values can be counted.
            heights = y + 0.22 + np.linspace(-0.12, 0.12, len(points[name]) + 2)[1:-1]
            fill = "none" if row.control else colour
            axes.scatter(points[name], heights, s=20, c=fill, edgecolors=colour, alpha=0.6, lw=0.9)
            if math.isfinite(mean):
                axes.plot([mean, mean], [y + 0.06, y + 0.38], color=colour, lw=2.4, zorder=3)
            if math.isfinite(mean) and row.control:
                axes.axvline(mean, color=colours.CONTROL, lw=0.8, ls=(0, (2, 3)), zorder=0)

    alt = "; ".join(f"{name} {_value(m, row)}" for name, row in shown.items())
    caption = "Each dot is one seed, the bar is the mean."
    if any(row.control for row in shown.values()):
        caption += " Grey, with dotted lines: the null controls."
    return figures.Panel(draw, f"Final {m.axis}: {alt}.", caption, _ROW * len(shown) + 0.65)


def paired(pairs: Sequence[Difference]) -> figures.Panel | None:
    """Draws paired differences with their intervals, one row for each pair.

    Args:
      pairs: the paired differences. Only those with the metric of the first are drawn.

    Returns:
      The panel; None if no difference is finite.
    """
    shown = [p for p in pairs if math.isfinite(p.mean) and p.metric == pairs[0].metric]
    if not shown:
        return None
    m = metric(shown[0].metric)
    label = f"difference in {m.label}{f', {m.unit_of_difference}' if m.unit else ''}"

    def draw(axes: figures.Axes) -> None:
        _set_frame(axes, len(shown), label)
        axes.axvline(0, color=colours.INK, lw=1)
        for y, p in enumerate(shown):
            colour = colours.INK if p.is_resolved else colours.MUTED
            face = colour if p.is_resolved else colours.PAPER
            _label(axes, y, p.a, f" − {p.b}", colours.INK, m.show(p.mean, signed=True))
            if p.is_judged:
                span = [m.scale * p.low, m.scale * p.high]
                axes.plot(span, [y + 0.22] * 2, color=colour, lw=2, solid_capstyle="butt")
            axes.plot(m.scale * p.mean, y + 0.22, "o", color=colour, mfc=face, ms=6)

    alt = "; ".join(f"{p.title} {m.show(p.mean, signed=True)}, {verdict(p)}" for p in shown)
    caption = (
        f"Dot: mean over pairs of the same seed; line: its {100 * shown[0].level:g} % interval. "
        "Hollow: not distinguishable, or without a verdict."
    )
    return figures.Panel(draw, f"{label.capitalize()}: {alt}.", caption, _ROW * len(shown) + 0.65)


def _set_frame(axes: figures.Axes, rows: int, label: str) -> None:
    axes.set_ylim(rows - 0.45, -0.5)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=colours.LINE, lw=0.8)
    axes.margins(x=0.07)
    figures.label_axes(axes, "", label)


def _label(axes: figures.Axes, y: float, name: str, rest: str, colour: str, value: str) -> None:
    """Writes the name of a row and the text after it above its dots, and its value at the right."""
    rest = figures.abbreviate(rest, max(20, 40 - len(name)))
    text = figures.abbreviate(name, 40 - len(rest)) + rest
    box = {"facecolor": colours.PAPER, "edgecolor": "none", "pad": 1}  # hides the grid
    style: dict[str, Any] = {"va": "center", "parse_math": False, "bbox": box}
    style["transform"] = axes.get_yaxis_transform()
    axes.text(0, y - 0.2, text, color=colour, weight="bold", **style)
    axes.text(1, y - 0.2, value, color=colours.INK, ha="right", **style)


def _value(m: Metric, row: ComparisonRow) -> str:
    """The final value of a row in words."""
    stat, solved = row.metrics[m.name], row.metrics.get("solved")
    if not len(stat.finite):
        return "no finite value"
    if solved is not None:
        text = spread(metric("solved"), solved)  # "98 % (49 of 50)", or "yes" of one seed
        return f"{text.partition('(')[2][:-1]} solved" if "(" in text else f"solved: {text}"
    if stat.lost:
        return f"{stat.lost} of {len(stat.values)} seeds not finite"
    return with_unit(m, stat)


class ScatterPoint(NamedTuple):
    """The point of one rule, over cost and error. They are sorted by error.

    Args:
      y: its error.
      name: the name of the rule.
      x: its cost.
      std: the standard deviation of the error.
      colour: its colour.
      marker: its marker.
    """

    y: float
    name: str
    x: float
    std: float
    colour: str
    marker: str


def tradeoffs(rules: Rules, m: Metric) -> list[figures.Panel]:
    """Draws the error over multiply-accumulates and over seconds.

    Args:
      rules: the rows by name.
      m: the metric of the error.

    Returns:
      The panels that have a rule to show.
    """
    panels = (_tradeoff(rules, m, key) for key in _COSTS)
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


def _tradeoff(rules: Rules, m: Metric, key: str) -> figures.Panel | None:
    label, scale = _COSTS[key]
    points, lost = _points(rules, m, key, scale)
    if not points:
        return None
    means = {name: m.scale * mean_of(row.metrics, m) for name, row in rules.items() if row.control}
    bars = {name: mean for name, mean in means.items() if math.isfinite(mean)}
    around = [p.y + sign * p.std for p in points for sign in (-1, 1)]
    ys = np.asarray([*around, *bars.values()])

    def draw(axes: figures.Axes) -> None:
        costs = np.asarray([p.x for p in points])
        edge = (costs.max() / costs.min()) ** 0.12
        figures.log_axis(axes.xaxis, np.asarray([costs.min() / edge, costs.max() * edge]))
        if figures.is_logarithmic(ys):
            figures.log_axis(axes.yaxis, ys)
        else:
            room = 0.1 * float(np.ptp(ys)) or 0.1 * abs(float(ys[0])) or 1.0
            low = ys.min() - room
            axes.set_ylim(max(low, 0.0) if ys.min() >= 0 else low, ys.max() + room)
        figures.label_axes(axes, label, m.axis)
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
    places = {p.name: f" at {format_number(p.x)}" for p in points} | dict.fromkeys(bars, "")
    values = {name: with_unit(m, rules[name].metrics[m.name]) for name in places}
    texts = "; ".join(f"{name} {values[name]}{place}" for name, place in places.items())
    alt = f"{m.axis} over {label}: {texts}."
    return figures.Panel(draw, f"{alt[0].upper()}{alt[1:]}", caption, 3.6 + 0.09 * len(points))


def _draw_points(axes: figures.Axes, points: Sequence[ScatterPoint]) -> None:
    """Draws numbered markers, moved apart if they overlap, and their legend below the axes."""
    from matplotlib.lines import Line2D
    from matplotlib.transforms import ScaledTranslation

    figure: Any = axes.figure
    marks = [Line2D([], [], color=p.colour, marker=p.marker, ms=6, lw=0) for p in points]
    names = [figures.abbreviate(f"{i}  {p.name}", 34) for i, p in enumerate(points, start=1)]
    figures.legend(
        figure, marks, names, loc="outside lower left", ncols=2, labelspacing=0.35,
        handletextpad=0.3, columnspacing=1.0,
    )  # fmt: skip
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
    rules: Rules, m: Metric, key: str, scale: float
) -> tuple[list[ScatterPoint], list[str]]:
    """The rules that have both numbers, in rising order of error, and the names of the others."""
    points, lost = [], []
    for i, (name, row) in enumerate(rules.items()):
        if row.control:
            continue
        mean, cost = mean_of(row.metrics, m), row.cost.get(key, math.nan)
        if not (math.isfinite(mean) and 0 < cost < math.inf):
            lost.append(name)
            continue
        stat = row.metrics[m.name]
        std = stat.std if len(stat.values) > 1 and math.isfinite(stat.std) else 0.0
        marker = _MARKERS[i // len(colours.SERIES) % len(_MARKERS)]
        place = (m.scale * mean, name, scale * cost, m.scale * std)
        points.append(ScatterPoint(*place, colours.series(i), marker))
    return sorted(points), lost
