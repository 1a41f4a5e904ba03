"""Learning curves: a mean line, a band from the lowest to the highest seed, or a line a seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bpeq.report import _colours as colours
from bpeq.report._canvas import WIDTH, Margins, Panel, abbreviate, label_ends, room
from bpeq.report._metrics import SPLITS, Metric, metric, ordered, primary
from bpeq.report._numbers import plain
from bpeq.report._read import Floats, History, Series
from bpeq.report._scales import LOG_DECADES, MOST_POINTS, log_limits, log_ticks, logarithmic, thin

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEW_SEEDS = 10  # up to here a lone curve shows every seed as a line, above it as a band
ERROR_DECADES = 1.0  # a log axis from here on: the last points of an error are what one looks for
_MOST_BANDS = 5  # bands of more curves than that hide each other
_MARKED = 5  # logged points that each get a dot
_LINEAR = ("solved", "unsettled", "r2", "accuracy")


class Curve(NamedTuple):
    """One line: x `[k]`, values `[k, seeds]` in the metric's unit, how it looks."""

    label: str
    x: Floats
    values: Floats
    colour: str
    dash: str = "-"

    @property
    def mean(self) -> Floats:
        """`[k]`, over the seeds that are finite there; NaN where none is."""
        finite = np.isfinite(self.values)
        total = np.where(finite, self.values, 0.0).sum(axis=1)
        kept = finite.sum(axis=1)
        return np.where(kept > 0, total / np.maximum(kept, 1), np.nan)


def run_panels(history: History) -> list[Panel]:
    """A panel for each family of metrics, its test, validation and train curves in one.

    Sweeps that never change, those of a fixed number of steps, are left out.
    """
    families: dict[str, list[str]] = {}
    for name in ordered(history.series):
        families.setdefault(metric(name).family, []).append(name)
    leading = primary(history.series)
    order = sorted(families, key=lambda f: (leading not in families[f], f != "loss"))
    panels = []
    for family in order:
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
    return [panel for panel in panels if panel is not None]


def rule_panels(histories: dict[str, tuple[History, bool]], names: Sequence[str]) -> list[Panel]:
    """A panel for each metric in `names`, a curve for each rule; controls grey and dashed.

    `histories`: by rule, its history and whether it is a null control; a rule's place among the
    rules gives its colour.
    """
    panels = []
    for name in names:
        shown, curves = metric(name), []
        place, nulls = -1, 0
        for rule, (history, control) in histories.items():
            place += not control
            if name not in history.series:
                continue
            curve = _curve(rule, history.series[name], shown, place)
            if control:
                curve = curve._replace(colour=colours.CONTROL, dash=("--", ":", "-.")[nulls % 3])
                nulls += 1
            curves.append(curve)
        axis = next((h.axis for h, _ in histories.values() if name in h.series), "epoch")
        panels.append(_panel(shown, curves, axis))
    return [panel for panel in panels if panel is not None]


def _curve(label: str, series: Series, shown: Metric, index: int) -> Curve:
    values = np.where(np.isfinite(series.values), series.values, np.nan) * shown.scale
    if shown.family == "solved":  # a share of seeds: 0 or 1 a seed has no band
        values = Curve("", series.x, values, "").mean[:, None]
    return Curve(label, series.x, values, colours.series(index), colours.dash(index))


def _panel(shown: Metric, curves: list[Curve], axis: str) -> Panel | None:
    curves = [c for c in curves if np.isfinite(c.values).any()]
    if not curves:
        return None
    curves = [c._replace(label=abbreviate(c.label, 20)) for c in curves]
    seeds = max(c.values.shape[1] for c in curves)
    every_seed = len(curves) == 1 and 1 < seeds <= FEW_SEEDS
    points = np.concatenate([c.values.ravel() for c in curves])
    decades = ERROR_DECADES if shown.family == "error" else LOG_DECADES
    log = shown.family not in _LINEAR and logarithmic(points, decades)
    labels = [c.label for c in curves]
    named = len(curves) > 1 or labels[0] != shown.family
    margins = Margins(right=room(labels) if named else 0.25)
    label_x = -margins.left / (WIDTH - margins.left - margins.right)

    def draw(axes: Axes) -> None:
        for curve in curves:
            _draw_curve(axes, curve, every_seed, band=len(curves) <= _MOST_BANDS)
        axes.set_xlabel(axis)
        axes.set_ylabel(
            shown.axis + (" (log scale)" if log else ""),
            rotation=0, ha="left", va="bottom", parse_math=False,
        )  # fmt: skip
        axes.yaxis.set_label_coords(label_x, 1.04)
        _limits(axes, curves, log, shown)
        if named:
            label_ends(axes, [(c.label, c.colour, _last(c)) for c in curves])

    height = max(2.9, 1.0 + 0.185 * len(curves))
    caption = _caption(shown, curves, every_seed)
    return Panel(draw, _alt(shown, curves, axis), caption, height, margins)


def _draw_curve(axes: Axes, curve: Curve, every_seed: bool, band: bool) -> None:
    single = len(curve.x) == 1
    marker = "o" if single else ""
    few = "o" if len(curve.x) <= _MARKED else ""
    if every_seed:
        for values in curve.values.T:
            x, y = thin(curve.x, values)
            axes.plot(x, y, color=curve.colour, alpha=0.35, lw=0.8, marker=marker, ms=3)
    elif curve.values.shape[1] > 1 and single:
        x = np.repeat(curve.x, curve.values.shape[1])
        axes.plot(x, curve.values[0], "o", color=curve.colour, alpha=0.35, ms=3, mew=0)
    elif curve.values.shape[1] > 1 and band:
        low, high = np.fmin.reduce(curve.values, axis=1), np.fmax.reduce(curve.values, axis=1)
        steps = np.unique(np.linspace(0, len(curve.x) - 1, MOST_POINTS).astype(int))
        low, high = np.fmin.reduceat(low, steps), np.fmax.reduceat(high, steps)
        axes.fill_between(curve.x[steps], low, high, color=curve.colour, alpha=0.16, lw=0)
    x, y = thin(curve.x, curve.mean)
    axes.plot(x, y, curve.dash, color=curve.colour, lw=1.8, marker=few, ms=6 if single else 4)
    for values in curve.values.T:  # where a seed stops being finite
        finite = np.flatnonzero(np.isfinite(values))
        if len(finite) and finite[-1] < len(values) - 1:
            axes.plot(curve.x[finite[-1]], values[finite[-1]], "x", color=curve.colour, ms=6)


def _limits(axes: Axes, curves: list[Curve], log: bool, shown: Metric) -> None:
    from matplotlib.ticker import MaxNLocator

    points = np.concatenate([c.values.ravel() for c in curves])
    low, high = float(np.nanmin(points)), float(np.nanmax(points))
    if log:
        axes.set_yscale("log")
        axes.set_ylim(*log_limits(low, high))
        log_ticks(axes.yaxis, low, high)
    elif shown.unit == "%":
        ceiling = 100.0 if shown.better > 0 and high > 50 else high
        axes.set_ylim(0 if low >= 0 else low, ceiling * 1.05 if ceiling > 0 else 1.0)
    else:
        edge = 0.05 * (high - low) or 0.1 * abs(high) or 1.0
        axes.set_ylim(0 if 0 <= low < 0.3 * high else low - edge, high + edge)
    xs = np.concatenate([c.x for c in curves])
    if xs.min() == xs.max():
        axes.set_xlim(xs.min() - 1, xs.max() + 1)
        axes.set_xticks([float(xs.min())], [f"{xs.min():g}"])
    else:
        axes.set_xlim(float(xs.min()), float(xs.max()))
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))


def _last(curve: Curve) -> float:
    mean = curve.mean
    return float(mean[np.flatnonzero(np.isfinite(mean))[-1]])


def _alt(shown: Metric, curves: list[Curve], axis: str) -> str:
    parts = []
    for c in curves:
        finite = c.mean[np.isfinite(c.mean)]
        parts.append(f"{c.label}: {plain(finite[0])} to {plain(finite[-1])}")
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
        text = (
            f"One logged point: the large dot is the mean of {seeds} seeds, small dots are seeds."
        )
    elif every_seed:
        text = f"Thick line: mean of {seeds} seeds; thin lines: each seed."
    elif len(curves) <= _MOST_BANDS:
        text = f"Line: mean of {seeds} seeds; band: lowest to highest seed."
    else:
        text = f"Means of {seeds} seeds."
    lost = sum(int((~np.isfinite(c.values[-1])).sum()) for c in curves)
    if lost:
        text += " × marks where a seed stops being finite; the mean is then of those that are left."
    return text
