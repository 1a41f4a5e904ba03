"""Fits a power law to errors, but only where the slopes between neighbouring points agree."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

AGREE = 0.1
"""The largest difference between the slopes of a range that a fit uses."""
ABOVE_FLOOR = 10.0
"""A fit uses errors of at least so many times their floor."""
_LEAST_SPAN = math.log10(3.0)  # a range covers at least a factor of three
_LEAST_POINTS = 3  # two slopes that can agree


class Line(NamedTuple):
    """A straight line through the points of one range.

    Args:
      slope: the slope by least squares; None if there is no range.
      error: the difference between the largest and the smallest slope of neighbouring points.
      intercept: the value of the line at x = 0.
      used: the indices of the points of the range.
      residuals: y less the line, for each of these points.
      reason: why there is no range; empty if there is one.
    """

    slope: float | None
    error: float | None
    intercept: float | None
    used: Sequence[int]
    residuals: Sequence[float]
    reason: str = ""


class PowerLaw(NamedTuple):
    """error ≈ 10^intercept · β^order, over the range of β where neighbouring slopes agree.

    Args:
      order: the power; None if there is no range.
      error: its error bar: the difference between the largest and the smallest slope of
        neighbouring points in the range. It also covers a slope that drifts with β.
      intercept: log10 of the error at β = 1.
      betas: the values of β of the range, the largest first.
      residuals: log10 of the error less log10 of the law, at each of these values.
      reason: why there is no range; empty if there is one.
    """

    order: float | None
    error: float | None
    intercept: float | None
    betas: Sequence[float]
    residuals: Sequence[float]
    reason: str = ""


def fit_line(
    x: Sequence[float],
    y: Sequence[float],
    agree: float = AGREE,
    span: float = 0.0,
    least: float = -math.inf,
) -> Line:
    """Fits a line to the longest range of points whose neighbouring slopes agree.

    The slope of two neighbours is (y_{i+1} − y_i) / (x_{i+1} − x_i). A range has at least three
    points. Of two equally long ranges it is the one at smaller x.

    Args:
      x: `[k]`, the places, rising.
      y: `[k]`, the values.
      agree: the largest difference between two slopes of a range, > 0.
      span: the least length of a range, in units of x, >= 0.
      least: the smallest slope that a range may have; −∞: any.

    Returns:
      The line.

    Example (the last point does not follow the line):
      >>> line = fit_line([0.0, 1.0, 2.0, 3.0], [1.0, 3.0, 5.0, 5.5])
      >>> round(line.slope, 6), round(line.error, 6), line.used
      (2.0, 0.0, [0, 1, 2])
    """
    if len(x) < _LEAST_POINTS:
        return Line(None, None, None, [], [], f"{len(x)} usable points, at least 3 are needed")
    places, values = np.asarray(x, np.float64), np.asarray(y, np.float64)
    slopes = np.diff(values) / np.diff(places)
    ranges = [
        (first, last)
        for first, last in itertools.combinations(range(len(places)), 2)
        if last - first + 1 >= _LEAST_POINTS
        and places[last] - places[first] >= span
        and np.ptp(slopes[first:last]) <= agree
        and slopes[first:last].min() >= least
    ]
    if not ranges:
        low, high = slopes.min(), slopes.max()
        reason = f"neighbouring slopes lie between {low:.2f} and {high:.2f}; no three points in a "
        reason += f"row have slopes that agree within {agree:g}"
        reason += "" if least == -math.inf else f" and are at least {least:g}"
        return Line(None, None, None, [], [], reason)
    first, last = max(ranges, key=lambda ends: (places[ends[1]] - places[ends[0]], -ends[0]))
    used = slice(first, last + 1)
    slope, intercept = np.polyfit(places[used], values[used], 1)
    residuals = values[used] - (intercept + slope * places[used])
    error = np.ptp(slopes[first:last])
    indices = [*range(first, last + 1)]
    return Line(float(slope), float(error), float(intercept), indices, residuals.tolist())


def power_law(
    betas: Sequence[float],
    errors: Sequence[float],
    floors: Sequence[float] | float = 0.0,
    most: float = math.inf,
    least: float = -math.inf,
) -> PowerLaw:
    """Fits error ≈ c β^order where the slopes of log error over log β agree within 0.1.

    A range has at least three values of β and covers a factor of three or more. Errors that are not
    finite, not positive, or less than 10 times their floor are left out.

    Args:
      betas: `[k]`, the values of β, each > 0.
      errors: `[k]`, the error at each β.
      floors: `[k]` or one number, the part of each error that is round-off or a solver's residual.
      most: larger errors are left out; ∞: none.
      least: the smallest slope that a range may have; −∞: any.

    Returns:
      The law.

    Example (β² with a floor):
      >>> law = power_law([0.1, 0.03, 0.01, 1e-3, 1e-4], [1e-2, 9e-4, 1e-4, 1.1e-6, 1e-7])
      >>> round(law.order, 1), law.betas
      (2.0, [0.1, 0.03, 0.01, 0.001])
    """
    each = np.broadcast_to(np.asarray(floors, np.float64), len(betas)).tolist()
    points = sorted(
        (float(beta), float(error))
        for beta, error, floor in zip(betas, errors, each, strict=True)
        if 0.0 < error <= most and math.isfinite(error) and error >= ABOVE_FLOOR * floor
    )
    x, y = (np.log10([point[i] for point in points]).tolist() for i in (0, 1))
    line = fit_line(x, y, span=_LEAST_SPAN, least=least)
    used = [points[i][0] for i in reversed(line.used)]
    residuals = [*reversed(line.residuals)]
    return PowerLaw(line.slope, line.error, line.intercept, used, residuals, line.reason)
