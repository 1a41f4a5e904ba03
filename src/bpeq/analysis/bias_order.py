"""Fits the order of the bias in β, and the distance to the nearest pole, to a grid of errors."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from bpeq.settings import SettingError

Pair = tuple[float, float]


def fit_grid(grid: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Fits the order of the bias in β for each estimator, and the distance to the nearest pole.

    The error of an N-point estimate is (β/R)^N, with R the distance to the nearest pole in β. R is
    fitted to float64 errors between 1e-11 and 0.1.

    Args:
      grid: the rows of fidelity.json's `grid`. An estimator is one of eqprop's nudgings, or the
        name of another rule.

    Returns:
      `bias_order` and `fit` of fidelity.json, by estimator, and `radius`, which is R. R is None if
      fewer than two errors are in that range.
    """
    orders: dict[str, Any] = {}
    lines: dict[str, Any] = {}
    radius = None
    rows = [row for row in grid if row["varied"] == "beta"]
    best = max((row["precision"] for row in rows), default="")  # float64 if there
    for name in dict.fromkeys(_estimator(row) for row in rows):
        line = [r for r in rows if _estimator(r) == name and r["precision"] == best]
        fit = bias_order([r["beta"] for r in line], [r["relative_error"] for r in line])
        orders[name] = fit.pop("order")
        lines[name] = fit
    rows = [row for row in grid if row["varied"] == "points" and row["precision"] == "float64"]
    usable = [r for r in rows if 1e-11 < r["relative_error"] < 0.1]
    if len(usable) >= 2:
        n, error = ([r[key] for r in usable] for key in ("points", "relative_error"))
        slope = np.polyfit(n, np.log(error), 1)[0]
        radius = float(usable[0]["beta"] * np.exp(-slope))
    return {"bias_order": orders, "fit": lines, "radius": radius}


def bias_order(betas: Sequence[float], errors: Sequence[float]) -> dict[str, Any]:
    """Fits error ≈ 10^intercept · β^order to the errors that are mostly bias.

    These errors are below 1 % and more than 100 times the round-off at their β. Round-off grows as
    1/β. Below the β of the least error, errors that rise as β falls show its size. Of the remaining
    errors the fit uses the longest run that grows with β. A point that does not grow ends a run.
    This happens near a pole, where the bias changes sign.

    Args:
      betas: the values of β, each > 0.
      errors: the relative error at each β. Errors that are not finite are ignored.

    Returns:
      `order`, `intercept` and the `betas` that were used. Order and intercept are None if fewer
      than two errors remain.

    Raises:
      SettingError: a β occurs twice.

    Example:
      >>> fit = bias_order([1e-1, 1e-2, 1e-3], [1e-3, 1e-5, 1e-7])
      >>> round(fit["order"], 6), fit["betas"]
      (2.0, [0.1, 0.01, 0.001])
    """
    if len(set(betas)) < len(betas):
        raise SettingError("bias_order", "betas", list(betas), "must all be different")
    pairs: list[Pair] = sorted((b, e) for b, e in zip(betas, errors, strict=True) if np.isfinite(e))
    least = min(range(len(pairs)), key=lambda i: pairs[i][1], default=0)
    rising = [b * e for (b, e), (_, above) in itertools.pairwise(pairs[: least + 1]) if e > above]
    noise = max(rising, default=0.0)
    used = _longest_run([(b, e) for b, e in pairs if max(100.0 * noise / b, 0.0) < e < 1e-2])
    used.sort(reverse=True)
    order = intercept = None
    if len(used) > 1:
        x, y = np.log10(np.array(used).T)
        order, intercept = np.polyfit(x, y, 1).tolist()
    return {"order": order, "intercept": intercept, "betas": [b for b, _ in used]}


def _longest_run(pairs: Sequence[Pair]) -> list[Pair]:
    """The longest run of growing errors. Of two equally long runs it is the one at smaller β."""
    runs: list[list[Pair]] = [[]]
    for pair in pairs:
        if runs[-1] and pair[1] <= runs[-1][-1][1]:
            runs.append([])
        runs[-1].append(pair)
    return max(runs, key=len)


def _estimator(row: dict[str, Any]) -> str:
    """The name of a row's estimator: its nudging, or its rule."""
    return row["estimator"] or row["rule"]
