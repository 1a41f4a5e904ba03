"""Orders of the bias in β, and the nearest pole, read off a grid of errors."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

Pair = tuple[float, float]


def fits(grid: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Orders of the bias in β, one an estimator, and the radius that the N-point errors fall by.

    Args:
      grid: rows of fidelity.json's `grid`. An estimator is one of eqprop's nudgings, or another
        rule by its name. An error of (β/R)^N gives the radius R, the distance to the nearest pole
        in β; it is fitted on errors between 1e-11 and 0.1 in float64.
    """
    found: dict[str, Any] = {"bias_order": {}, "fit": {}, "radius": None}
    rows = [row for row in grid if row["varied"] == "beta"]
    best = max((row["precision"] for row in rows), default="")  # float64 where there are both
    for name in dict.fromkeys(_estimator(row) for row in rows):
        own = [r for r in rows if _estimator(r) == name and r["precision"] == best]
        fit = bias_order([r["beta"] for r in own], [r["relative_error"] for r in own])
        found["bias_order"][name] = fit["order"]
        found["fit"][name] = {"betas": fit["betas"], "intercept": fit["intercept"]}
    rows = [row for row in grid if row["varied"] == "points" and row["precision"] == "float64"]
    usable = [r for r in rows if 1e-11 < r["relative_error"] < 0.1]
    if len(usable) >= 2:
        n, error = ([r[key] for r in usable] for key in ("points", "relative_error"))
        slope = np.polyfit(n, np.log(error), 1)[0]
        found["radius"] = float(usable[0]["beta"] * np.exp(-slope))
    return found


def bias_order(betas: Sequence[float], errors: Sequence[float]) -> dict[str, Any]:
    """The slope of log error over log β, fitted where bias is what is seen.

    Used are the errors below 1 % and above 100 times the round-off there, which grows as 1/β: its
    size is read off where the error rises as β falls, below the β of the least error. Of those the
    longest run in which the error grows with β is fitted: a point out of line, such as one near the
    pole where the bias changes sign, ends a run. `order` is None where fewer than two remain.

    Raises:
      ValueError: the same β twice.

    Example:
      >>> fit = bias_order([1e-1, 1e-2, 1e-3], [1e-3, 1e-5, 1e-7])
      >>> round(fit["order"], 6), fit["betas"]
      (2.0, [0.1, 0.01, 0.001])
    """
    if len(set(betas)) < len(betas):
        raise ValueError(f"bias_order: betas = {list(betas)}: must all be different")
    pairs: list[Pair] = sorted((b, e) for b, e in zip(betas, errors, strict=True) if np.isfinite(e))
    least = min(range(len(pairs)), key=lambda i: pairs[i][1], default=0)
    rising = [b * e for (b, e), (_, above) in itertools.pairwise(pairs[: least + 1]) if e > above]
    noise = max(rising, default=0.0)
    used = _longest_run([(b, e) for b, e in pairs if max(100.0 * noise / b, 0.0) < e < 1e-2])
    used.sort(reverse=True)
    if len(used) < 2:
        return {"order": None, "intercept": None, "betas": [b for b, _ in used]}
    x, y = np.log10(np.array(used).T)
    order, intercept = np.polyfit(x, y, 1)
    return {"order": float(order), "intercept": float(intercept), "betas": [b for b, _ in used]}


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
