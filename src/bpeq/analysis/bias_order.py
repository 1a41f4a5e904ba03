"""Fits the order of the bias in β, and the distance to the nearest pole, to a grid of errors."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from bpeq.analysis.power_law import PowerLaw, fit_line, power_law
from bpeq.settings import SettingError

_MOST = 0.1  # a larger relative error is not small against the gradient, so β is not small
_LEAST_ORDER = 0.5  # a constant error and round-off have slopes of 0 and −1
_POLE_AGREE = 0.05  # slopes of log10 error over N: the pole is known to about 12 %


def fit_grid(grid: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Fits the order of the bias in β for each estimator, and the distance to the nearest pole.

    The error of an N-point estimate is (β/R)^N, with R the distance to the nearest pole in β. R is
    fitted to float64 errors between 1e-11 and 0.1, where the slopes of log error over N agree.

    Args:
      grid: the rows of fidelity.json's `grid`. An estimator is one of eqprop's nudgings, or the
        name of another rule. A row may have the theoretical `order` of its bias.

    Returns:
      The keys of fidelity.json:
        bias_order: estimator -> the fitted order; None if no range holds.
        fit: estimator -> `error`, `intercept`, `betas`, `residuals` and `reason` of the `PowerLaw`,
          and `theory`, the theoretical order or None.
        radius: R; None if no range of N holds.
        pole: how R was fitted: `error`, `points`, `residuals`, `reason`. Only with a grid over N.
    """
    orders: dict[str, Any] = {}
    fits: dict[str, Any] = {}
    rows = [row for row in grid if row["varied"] == "beta"]
    best = max((row["precision"] for row in rows), default="")  # float64 if there
    for name in dict.fromkeys(_estimator(row) for row in rows):
        line = [r for r in rows if _estimator(r) == name and r["precision"] == best]
        law = bias_order([r["beta"] for r in line], [r["relative_error"] for r in line])
        fits[name] = {**law._asdict(), "theory": line[0].get("order") or None}
        orders[name] = fits[name].pop("order")
    return {"bias_order": orders, "fit": fits, **_fit_pole(grid)}


def bias_order(betas: Sequence[float], errors: Sequence[float]) -> PowerLaw:
    """Fits the order of the bias: error ≈ c β^order, where neighbouring slopes agree.

    The fit is `power_law` on errors of at most 10 % that are at least 10 times the round-off at
    their β, with slopes of at least ½. Round-off grows as 1/β. Below the β of the least error,
    errors that rise as β falls show its size. A floor that does not rise shows in the slopes.

    Args:
      betas: the values of β, each > 0.
      errors: the relative error at each β. Errors that are not finite are ignored.

    Returns:
      The law. Its order is None if no range of β holds.

    Raises:
      SettingError: a β occurs twice.

    Example:
      >>> law = bias_order([1e-1, 1e-2, 1e-3], [1e-3, 1e-5, 1e-7])
      >>> round(law.order, 6), law.betas
      (2.0, [0.1, 0.01, 0.001])
    """
    if len(set(betas)) < len(betas):
        raise SettingError("bias_order", "betas", list(betas), "must all be different")
    pairs = sorted((b, e) for b, e in zip(betas, errors, strict=True) if np.isfinite(e))
    least = min(range(len(pairs)), key=lambda i: pairs[i][1], default=0)
    rising = [b * e for (b, e), (_, above) in itertools.pairwise(pairs[: least + 1]) if e > above]
    noise = max(rising, default=0.0)
    x, y = ([pair[i] for pair in pairs] for i in (0, 1))
    return power_law(x, y, [noise / beta for beta in x], _MOST, _LEAST_ORDER)


def _fit_pole(grid: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """`radius`, and `pole` if the grid has errors over N."""
    rows = [row for row in grid if row["varied"] == "points"]
    if not rows:
        return {"radius": None}
    usable = sorted(
        (r["points"], r["relative_error"], r["beta"])
        for r in rows
        if r["precision"] == "float64" and 1e-11 < r["relative_error"] < 0.1
    )
    points = [row[0] for row in usable]
    line = fit_line(points, np.log10([row[1] for row in usable]).tolist(), _POLE_AGREE)
    radius = error = None
    if line.slope is not None and line.error is not None:
        radius = float(usable[0][2] * 10.0**-line.slope)
        error = float(radius * (10.0**line.error - 1.0))
    used = [points[i] for i in line.used]
    pole = {"error": error, "points": used, "residuals": line.residuals, "reason": line.reason}
    return {"radius": radius, "pole": pole}


def _estimator(row: dict[str, Any]) -> str:
    """The name of a row's estimator: its nudging, or its rule."""
    return row["estimator"] or row["rule"]
