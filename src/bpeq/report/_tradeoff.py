"""Accuracy against cost: each rule's final error over what one of its gradients costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from bpeq.report import _colours as colours
from bpeq.report import _numbers as n
from bpeq.report._canvas import WIDTH, Margins, Panel, label_ends, room
from bpeq.report._logplot import fold, log_axis
from bpeq.report._metrics import Metric, spread
from bpeq.report._points import (
    Point,
    draw_key,
    draw_point,
    key_height,
    label_points,
    side_by_side,
)
from bpeq.report._read import Floats
from bpeq.report._rows import Row, mean_of, unit_after
from bpeq.report._scales import log_limits, log_ticks, logarithmic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_AXES = {
    "macs": ("multiply-accumulates of a gradient, millions", 1e-6),
    "seconds": ("time of a gradient, ms", 1e3),
}
_TALL = 3.6  # inches, of a panel
_NAMED = 6  # points that have their names beside them; more have numbers, and a key below
_MARKERS = "osD^v"  # one for each round of the colours


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

    numbered = len(points) > _NAMED
    tall, room_below = _TALL, 0.0
    if numbered:
        room_below = key_height([p.name for p in points])
        tall += 0.06 * (len(points) - _NAMED) + room_below
        margins = margins._replace(bottom=margins.bottom + room_below)
    costs = np.asarray([p.x for p in points])
    edge = (costs.max() / costs.min()) ** (0.12 if numbered else 0.0)

    def draw(axes: Axes) -> None:
        log_axis(axes.xaxis, np.asarray([costs.min() / edge, costs.max() * edge]))
        _value_axis(axes, ys)
        axes.set_xlabel(label)
        axes.set_ylabel(measured.axis, rotation=0, ha="left", va="bottom", parse_math=False)
        axes.yaxis.set_label_coords(-margins.left / (WIDTH - margins.left - margins.right), 1.03)
        for y in bars.values():
            axes.axhline(y, color=colours.CONTROL, lw=1, ls=(0, (4, 3)), zorder=1)
        moves = side_by_side(axes, points) if numbered else [0.0] * len(points)
        for p, move in zip(points, moves, strict=True):
            draw_point(axes, p, move)
        label_points(axes, points, moves, [*bars.values()], numbered)
        if numbered:
            draw_key(axes, points, margins)
        label_ends(axes, [(labels[name], colours.CONTROL, y) for name, y in bars.items()])

    caption = "Dot: mean over seeds; line: ± one standard deviation."
    caption += " Dashed: the null controls, whatever they cost." if bars else ""
    if numbered:
        caption += " Numbered from the lowest error on. Rules that would lie upon each other are"
        caption += " set side by side: a thin line leads to their place."
    caption += f" Not drawn, for want of a figure: {', '.join(lost)}." if lost else ""
    told = [f"{p.name} {_says(measured, shown[p.name])} at {n.plain(p.x)}" for p in points]
    told += [f"{name} {_says(measured, shown[name])}" for name in bars]
    alt = f"{measured.axis} over {label}: {'; '.join(told)}."
    return Panel(draw, f"{alt[0].upper()}{alt[1:]}", caption, tall, margins)


def _points(
    found: Sequence[Row], m: Metric, key: str, scale: float
) -> tuple[list[Point], list[str]]:
    """The rules that have both figures, and the names of those that lack one."""
    points, lost = [], []
    known = [(mean, row.name) for row in found
             if not row.control and (mean := mean_of(row, m)) is not None]  # fmt: skip
    order = [name for _, name in sorted(known)]
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
            Point(
                row.name, scale * cost, m.scale * mean, spread_of, colours.series(i), mark,
                order.index(row.name) + 1,
            )
        )  # fmt: skip
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


def _std(row: Row, m: Metric) -> float:
    stat = row.stats[m.name]
    return stat.std if len(stat.values) > 1 and math.isfinite(stat.std) else 0.0


def _says(m: Metric, row: Row) -> str:
    return spread(m, row.stats[m.name]) + unit_after(m)
