"""Learning curves: a mean line, with a band over the seeds or with a line for each seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bpeq.report import colours, figures
from bpeq.report.metrics import SPLITS, Metric, metric, ordered, primary
from bpeq.report.numbers import format_number
from bpeq.runs.results import Floats, History, Series

FEW_SEEDS = 10  # a single curve shows up to this number of seeds as lines, more as a band
ERROR_DECADES = 1.0  # for errors, a log axis from here on: readers look at the last points
MOST_POINTS = 600  # the largest number of points of a line
_MOST_BANDS = 5  # bands of more curves hide each other
_MARKED = 5  # the largest number of logged points with a dot each
_LINEAR = ("solved", "unsettled", "r2", "accuracy")


class Curve(NamedTuple):
    """One line of a plot.

    Args:
      label: its name.
      x: `[k]`, epochs or steps.
      values: `[k, seeds]`, in the metric's unit.
      colour: its colour.
      dash: its line style; the default is solid.
    """

    label: str
    x: Floats
    values: Floats
    colour: str
    dash: str = "-"

    @property
    def mean(self) -> Floats:
        """`[k]`, the mean over the finite seeds; NaN without one."""
        return np.ma.masked_invalid(self.values).mean(axis=1).filled(np.nan)

    @property
    def ends(self) -> tuple[float, float]:
        """The first and the last finite mean."""
        kept = self.mean[np.isfinite(self.mean)]
        return float(kept[0]), float(kept[-1])


def run_panels(history: History) -> list[figures.Panel | None]:
    """Makes a panel for each family of metrics, with its test, validation and train curves.

    Numbers of sweeps that never change are left out.

    Args:
      history: the metrics over training.

    Returns:
      The panels; None for one without a finite value.
    """
    families: dict[str, list[str]] = {}
    for name in ordered(history.series):
        families.setdefault(metric(name).family, []).append(name)
    leading = primary(history.series)
    first = None if leading is None else leading.family
    panels = []
    for family in sorted(families, key=lambda f: (f != first, f != "loss")):
        names = families[family]
        shown = metric(names[0])
        if len(names) > 1:
            shown = metric(family)._replace(unit=shown.unit)
        curves = []
        for place, name in enumerate(names):
            split = metric(name).split
            index = SPLITS.index(split) if split else place
            part = name.removeprefix("sweeps_") if len(names) > 1 else family
            label = split or ("all" if part == family and len(names) > 1 else part)
            curves.append(_curve(label, history.series[name], shown, index))
        if family == "sweeps" and all(np.ptp(c.values) == 0 for c in curves):
            continue
        panels.append(_panel(shown, curves, history.axis))
    return panels


def rule_panels(
    histories: Mapping[str, History], controls: Sequence[str], names: Sequence[str]
) -> list[figures.Panel | None]:
    """Makes a panel for each metric, with a curve for each rule. Null controls are grey and dashed.

    Args:
      histories: the metrics over training by rule, the null controls last. The place of a rule sets
        its colour.
      controls: the names of the null controls.
      names: the metrics to draw.

    Returns:
      The panels; None for one without a finite value.
    """
    panels = []
    for name in names:
        shown, curves, axis = metric(name), [], "epoch"
        for place, (rule, history) in enumerate(histories.items()):
            if name not in history.series:
                continue
            axis = history.axis
            curve = _curve(rule, history.series[name], shown, place)
            if rule in controls:
                dash = ("--", ":", "-.")[controls.index(rule) % 3]
                curve = curve._replace(colour=colours.CONTROL, dash=dash)
            curves.append(curve)
        panels.append(_panel(shown, curves, axis))
    return panels


def thin(x: Floats, y: Floats, most: int = MOST_POINTS) -> tuple[Floats, Floats]:
    """Reduces a long curve to fewer points that look the same: each part keeps its extremes.

    Args:
      x: `[k]`, the x values.
      y: `[k]`, the y values.
      most: the number of points above which the curve is reduced.

    Returns:
      The remaining x and y.
    """
    if len(x) <= most:
        return x, y
    keep = {0, len(x) - 1}
    for stretch in np.array_split(np.arange(len(x)), most // 2):
        part = y[stretch]
        if np.isfinite(part).any():
            keep |= {int(stretch[np.nanargmin(part)]), int(stretch[np.nanargmax(part)])}
        keep |= set(stretch[np.isnan(part)][:1].tolist())
    chosen = sorted(keep)
    return x[chosen], y[chosen]


def _curve(label: str, series: Series, shown: Metric, index: int) -> Curve:
    values = np.where(np.isfinite(series.values), series.values, np.nan) * shown.scale
    if shown.family == "solved":  # a share over seeds; single seeds are 0 or 1 and have no band
        values = Curve("", series.x, values, "").mean[:, None]
    return Curve(label, series.x, values, colours.series(index), colours.dash(index))


def _panel(shown: Metric, curves: list[Curve], axis: str) -> figures.Panel | None:
    curves = [c for c in curves if np.isfinite(c.values).any()]
    if not curves:
        return None
    seeds = max(c.values.shape[1] for c in curves)
    every_seed = len(curves) == 1 and 1 < seeds <= FEW_SEEDS
    points = np.concatenate([c.values.ravel() for c in curves])
    decades = ERROR_DECADES if shown.family == "error" else figures.LOG_DECADES
    log = shown.family not in _LINEAR and figures.is_logarithmic(points, decades)

    def draw(axes: figures.Axes) -> None:
        handles = [_draw_curve(axes, c, every_seed, len(curves) <= _MOST_BANDS) for c in curves]
        figures.label_axes(axes, axis, shown.axis + (" (log scale)" if log else ""))
        _set_limits(axes, curves, log, shown)
        if len(curves) > 1 or curves[0].label != shown.family:
            ends = [(c.label, line, c.ends[1]) for c, line in zip(curves, handles, strict=True)]
            figures.name_lines(axes, ends)

    height = max(2.9, 1.0 + 0.185 * len(curves))
    return figures.Panel(
        draw, _alt(shown, curves, axis), _caption(shown, curves, every_seed), height
    )


def _draw_curve(axes: figures.Axes, curve: Curve, every_seed: bool, band: bool) -> Any:
    """Draws seeds as lines, dots or a band, their mean, and a cross where a seed is lost."""
    single, colour = len(curve.x) == 1, curve.colour
    marker = "o" if len(curve.x) <= _MARKED else ""
    if every_seed or single:
        for values in curve.values.T if curve.values.shape[1] > 1 else ():
            style = "o" if single else "-"
            axes.plot(*thin(curve.x, values), style, color=colour, alpha=0.35, lw=0.8, ms=3, mew=0)
    elif curve.values.shape[1] > 1 and band:
        steps = np.unique(np.linspace(0, len(curve.x) - 1, MOST_POINTS).astype(int))
        low = np.fmin.reduceat(np.fmin.reduce(curve.values, axis=1), steps)
        high = np.fmax.reduceat(np.fmax.reduce(curve.values, axis=1), steps)
        axes.fill_between(curve.x[steps], low, high, color=colour, alpha=0.16, lw=0)
    (line,) = axes.plot(
        *thin(curve.x, curve.mean), curve.dash, color=colour, lw=1.8, marker=marker,
        ms=6 if single else 4,
    )  # fmt: skip
    for values in curve.values.T:
        last = np.flatnonzero(np.isfinite(values))[-1:]
        if len(last) and last[0] < len(values) - 1:
            axes.plot(curve.x[last], values[last], "x", color=colour, ms=6)
    return line


def _set_limits(axes: figures.Axes, curves: list[Curve], log: bool, shown: Metric) -> None:
    """Sets the limits of y: 0 is included for shares, and for other values if they are near 0."""
    points = np.concatenate([c.values[np.isfinite(c.values)] for c in curves])
    low, high = float(points.min()), float(points.max())
    if log:
        figures.log_axis(axes.yaxis, points)
    elif low >= 0 and (shown.unit == "%" or low < 0.3 * high):
        ceiling = 100.0 if shown.unit == "%" and shown.better > 0 and high > 50 else high
        axes.set_ylim(0, 1.05 * ceiling or 1.0)
    xs = np.concatenate([c.x for c in curves])
    figures.whole_axis(axes.xaxis)
    if xs.min() < xs.max():
        axes.set_xlim(float(xs.min()), float(xs.max()))
    else:
        axes.set_xticks([float(xs.min())], [f"{xs.min():g}"])


def _alt(shown: Metric, curves: list[Curve], axis: str) -> str:
    parts = [f"{c.label}: {' to '.join(map(format_number, c.ends))}" for c in curves]
    first, last = min(c.x[0] for c in curves), max(c.x[-1] for c in curves)
    return (
        f"{shown.axis} from {axis} {first:g} to {last:g}. Means, first to last: {'; '.join(parts)}."
    )


def _caption(shown: Metric, curves: list[Curve], every_seed: bool) -> str:
    seeds = max(c.values.shape[1] for c in curves)
    single = all(len(c.x) == 1 for c in curves)
    if shown.family == "solved":
        return "Share of all seeds."
    if seeds == 1:
        return "One logged point." if single else "One seed."
    if single:
        text = f"One logged point. Large dot: mean of {seeds} seeds; small dots: each seed."
    elif every_seed:
        text = f"Thick line: mean of {seeds} seeds; thin lines: each seed."
    elif len(curves) <= _MOST_BANDS:
        text = f"Line: mean of {seeds} seeds; band: lowest to highest seed."
    else:
        text = f"Means of {seeds} seeds."
    if any(not np.isfinite(c.values[-1]).all() for c in curves):
        text += " × marks where a seed stops being finite. The mean goes on without it."
    return text
