"""Orders of the bias in β, and the nearest pole, read off a grid of errors."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from bpeq.settings import SettingError

Pair = tuple[float, float]


def fit_grid(grid: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Fits the order of the bias in β for each estimator, and the distance to the nearest pole.

    An N-point error is (β/R)^N, with R the distance to the nearest pole in β. R is fitted on errors
    between 1e-11 and 0.1 in float64.

    Args:
      grid: the rows of fidelity.json's `grid`. An estimator is one of eqprop's nudgings, or another
        rule by its name.

    Returns:
      fidelity.json's `bias_order` and `fit`, by estimator, and its `radius`, None if too few errors
      are in that range.
    """
    orders: dict[str, Any] = {}
    lines: dict[str, Any] = {}
    radius = None
    rows = [row for row in grid if row["varied"] == "beta"]
    best = max((row["precision"] for row in rows), default="")  # float64 where there are both
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
    """Fits error ≈ 10^intercept · β^order where the error is bias.

    It uses errors below 1 % and above 100 times the round-off there. Round-off grows as 1/β; its
    size shows where the error rises as β falls, below the β of the least error. Of those errors it
    fits the longest run that grows with β. A point out of line ends a run, such as one near the
    pole, where the bias changes sign.

    Args:
      betas: the grid, each > 0.
      errors: the relative error at each β; those that are not finite do not count.

    Returns:
      `order`, `intercept` and the `betas` that were used. Order and intercept are None if fewer
      than two remain.

    Raises:
      SettingError: the same β twice.

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
    """The longest stretch of growing errors; of two as long the one at smaller β."""
    runs: list[list[Pair]] = [[]]
    for pair in pairs:
        if runs[-1] and pair[1] <= runs[-1][-1][1]:
            runs.append([])
        runs[-1].append(pair)
    return max(runs, key=len)


def _estimator(row: dict[str, Any]) -> str:
    return row["estimator"] or row["rule"]
