"""Accuracy against cost: each rule's final error over what one of its gradients costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bpeq.report import _colours as colours
from bpeq.report import _numbers as n
from bpeq.report._canvas import CHARACTER, TEXT, WIDTH, Margins, Panel, label_ends, room
from bpeq.report._logplot import fold, log_axis
from bpeq.report._metrics import Metric, spread
from bpeq.report._read import Floats
from bpeq.report._rows import Row, mean_of, unit_after
from bpeq.report._scales import log_limits, log_ticks, logarithmic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_AXES = {
    "macs": ("multiply-accumulates of a gradient, millions", 1e-6),
    "seconds": ("time of a gradient, ms", 1e3),
}
_TALL, _DOT, _LINE = 3.6, 0.06, 1.15 * TEXT / 72  # inches: a panel, half a dot, a line of text
_MARKERS = "osD^v"  # one for each round of the colours


Box = tuple[float, float, float, float]
"""left, bottom, right, top, in inches from the lower left corner of the axes."""


class _Point(NamedTuple):
    """One rule: its cost x, its error y ± std, and how it is drawn."""

    name: str
    x: float
    y: float
    std: float
    colour: str
    mark: str


def tradeoffs(found: Sequence[Row], measured: Metric) -> list[Panel]:
    """A panel over multiply-accumulates and one over seconds; those that have a rule to show."""
    panels = (_panel(found, measured, key) for key in _AXES)
    return [panel for panel in panels if panel is not None]


def _panel(found: Sequence[Row], measured: Metric, key: str) -> Panel | None:
    label, scale = _AXES[key]
    points, lost = _points(found, measured, key, scale)
    if not points:
        return None
    controls = {row.name: mean_of(row, measured) for row in found if row.control}
    bars = {name: measured.scale * mean for name, mean in controls.items() if mean is not None}
    shown = {row.name: row for row in found}
    labels = dict(zip(bars, fold([*bars]), strict=True))
    labels = {name: f"{text}\n{n.plain(bars[name])}" for name, text in labels.items()}
    margins = Margins(right=room([*labels.values()]) if labels else 0.25)
    around = [p.y + sign * p.std for p in points for sign in (-1, 1)]
    ys = np.asarray([*around, *bars.values()])

    def draw(axes: Axes) -> None:
        log_axis(axes.xaxis, np.asarray([p.x for p in points]))
        _value_axis(axes, ys)
        axes.set_xlabel(label)
        axes.set_ylabel(measured.axis, rotation=0, ha="left", va="bottom", parse_math=False)
        axes.yaxis.set_label_coords(-margins.left / (WIDTH - margins.left - margins.right), 1.03)
        for y in bars.values():
            axes.axhline(y, color=colours.CONTROL, lw=1, ls=(0, (4, 3)), zorder=1)
        for p in points:
            spread_of = p.std or None
            axes.errorbar(p.x, p.y, yerr=spread_of, fmt=p.mark, ms=6, lw=1.2, color=p.colour)
        _name_points(axes, points)
        label_ends(axes, [(labels[name], colours.CONTROL, y) for name, y in bars.items()])

    caption = "Dot: mean over seeds; line: ± one standard deviation."
    caption += " Dashed: the null controls, whatever they cost." if bars else ""
    caption += f" Not drawn, for want of a figure: {', '.join(lost)}." if lost else ""
    told = [f"{p.name} {_says(measured, shown[p.name])} at {n.plain(p.x)}" for p in points]
    told += [f"{name} {_says(measured, shown[name])}" for name in bars]
    alt = f"{measured.axis} over {label}: {'; '.join(told)}."
    tall = _TALL + 0.12 * max(0, len(points) - 6)
    return Panel(draw, f"{alt[0].upper()}{alt[1:]}", caption, tall, margins)


def _points(
    found: Sequence[Row], m: Metric, key: str, scale: float
) -> tuple[list[_Point], list[str]]:
    """The rules that have both figures, and the names of those that lack one."""
    points, lost = [], []
    for i, row in enumerate(found):
        mean, cost = mean_of(row, m), row.cost.get(key, math.nan)
        if row.control:
            continue
        if mean is None or not 0 < cost < math.inf:
            lost.append(row.name)
            continue
        mark = _MARKERS[i // len(colours.SERIES) % len(_MARKERS)]
        spread_of = m.scale * _std(row, m)
        points.append(
            _Point(row.name, scale * cost, m.scale * mean, spread_of, colours.series(i), mark)
        )
    return points, lost


def _value_axis(axes: Axes, ys: Floats) -> None:
    low, high = float(ys.min()), float(ys.max())
    if logarithmic(ys):
        axes.set_yscale("log")
        axes.set_ylim(*log_limits(low, high))
        log_ticks(axes.yaxis, low, high)
        return
    edge = 0.1 * (high - low) or 0.1 * abs(high) or 1.0
    axes.set_ylim(max(low - edge, 0.0) if low >= 0 else low - edge, high + edge)


def _name_points(axes: Axes, points: Sequence[_Point]) -> None:
    """Names beside their points, each where it covers no other name, no point and no bar."""
    figure: Any = axes.figure
    box, size = axes.get_position(), figure.get_size_inches()
    inches = np.asarray((box.width * size[0], box.height * size[1]))  # of the axes
    to_axes = axes.transData + axes.transAxes.inverted()

    def place(x: float, y: float) -> tuple[float, float]:
        right, up = to_axes.transform((x, y)) * inches
        return float(right), float(up)

    at = [place(p.x, p.y) for p in points]
    taken = [(x - _DOT, y - _DOT, x + _DOT, y + _DOT) for x, y in at]
    for p, (x, _) in zip(points, at, strict=True):
        ends = [max(p.y + sign * p.std, axes.get_ylim()[0]) for sign in (-1, 1)]
        taken.append((x - 0.02, place(p.x, ends[0])[1], x + 0.02, place(p.x, ends[1])[1]))
    names: list[Box] = []
    for p, (x, y) in sorted(zip(points, at, strict=True), key=lambda pair: pair[1][1]):
        tried = []
        for rank, (side, own) in enumerate(_places(x, y, CHARACTER * len(p.name))):
            over = sum(_overlap(own, other) for other in [*taken, *5 * names])
            outside = (-own[0], own[2] - inches[0], -own[1], own[3] - inches[1])
            over += sum(max(0.0, float(part)) for part in outside)
            tried.append((over + 1e-3 * rank, side, own))
        _, side, own = min(tried)
        names.append(own)
        _name(axes, p, (x, y), side, own, inches)


def _name(
    axes: Axes, p: _Point, at: tuple[float, float], side: str, own: Box, inches: Floats
) -> None:
    """The name in its box, with a line to its point where that is not beside it."""
    left, bottom, right, top = own
    start = {"left": left, "right": right, "center": (left + right) / 2}[side]
    axes.text(
        start / inches[0], (bottom + top) / 2 / inches[1], p.name, color=p.colour, ha=side,
        va="center", transform=axes.transAxes, parse_math=False,
    )  # fmt: skip
    if bottom - _LINE / 2 < at[1] < top + _LINE / 2:
        return
    foot = (min(max(at[0], left), right), top if top < at[1] else bottom)
    xs, ys = np.asarray([at, foot]).T / inches[:, None]
    axes.plot(xs, ys, color=p.colour, lw=0.6, transform=axes.transAxes)


def _places(x: float, y: float, width: float) -> list[tuple[str, Box]]:
    """Boxes for a name around a point, and how it stands in them: the best first, then farther."""
    found = []
    for step in range(8):
        for middle in dict.fromkeys((y + step * _LINE, y - step * _LINE)):
            starts = {"left": x + 0.1, "right": x - 0.1 - width, "center": x - width / 2}
            for side, left in starts.items():
                if step or side != "center":
                    box = (left, middle - _LINE / 2, left + width, middle + _LINE / 2)
                    found.append((side, box))
    return found


def _overlap(a: Box, b: Box) -> float:
    """The area that two boxes share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _std(row: Row, m: Metric) -> float:
    stat = row.stats[m.name]
    return stat.std if len(stat.values) > 1 and math.isfinite(stat.std) else 0.0


def _says(m: Metric, row: Row) -> str:
    return spread(m, row.stats[m.name]) + unit_after(m)
