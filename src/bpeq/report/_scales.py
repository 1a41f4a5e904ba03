"""Axes and lines: when an axis is logarithmic, its ticks, how many points a line needs."""

from __future__ import annotations

import math

import numpy as np

from bpeq.report._read import Floats

LOG_DECADES = 1.5  # a log axis for values that span more than this
MOST_POINTS = 600  # of a line on a page


def logarithmic(values: Floats, decades: float = LOG_DECADES) -> bool:
    """Whether values want a log axis: all positive, over more than so many decades."""
    finite = values[np.isfinite(values)]
    if not len(finite) or finite.min() <= 0:
        return False
    return math.log10(finite.max()) - math.log10(finite.min()) > decades


def log_limits(low: float, high: float) -> tuple[float, float]:
    """The limits of a log axis from `low` to `high`, with a little room on both sides."""
    edge = 10 ** (0.04 * (math.log10(high) - math.log10(low)))
    return low / edge, high * edge


def log_ticks(axis: object, low: float, high: float) -> None:
    """Ticks of a log axis as plain numbers: 1, 2, 5 over few decades, else powers of ten."""
    from matplotlib.axis import Axis
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    assert isinstance(axis, Axis)
    few = math.log10(high) - math.log10(low) < 2.5
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
    axis.set_minor_formatter(NullFormatter())


def thin(x: Floats, y: Floats, most: int = MOST_POINTS) -> tuple[Floats, Floats]:
    """A long curve in fewer points that looks the same: each stretch keeps its extremes."""
    if len(x) <= most:
        return x, y
    keep = {0, len(x) - 1}
    for stretch in np.array_split(np.arange(len(x)), most // 2):
        part = y[stretch]
        if np.isnan(part).all():
            keep.add(int(stretch[0]))
        else:
            keep |= {int(stretch[np.nanargmin(part)]), int(stretch[np.nanargmax(part)])}
            keep |= set(stretch[np.isnan(part)][:1].tolist())
    chosen = sorted(keep)
    return x[chosen], y[chosen]


def _tick(value: float) -> str:
    return f"{value:g}" if 1e-4 <= value < 1e5 else f"1e{round(math.log10(value))}"
