"""Orders of the bias in β, and the nearest pole, read off a grid of errors."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np


def fits(grid: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Orders of the bias in β, one an estimator, and the radius that the N-point errors fall by.

    Args:
      grid: rows of fidelity.json's `grid`. An error of (β/R)^N gives the radius R, the distance to
        the nearest pole in β; it is fitted on errors between 1e-11 and 0.1 in float64.
    """
    found: dict[str, Any] = {"bias_order": {}, "fit": {}, "radius": None}
    rows = [row for row in grid if row["varied"] == "beta"]
    best = max((row["precision"] for row in rows), default="")  # float64 where there are both
    for name in dict.fromkeys(row["estimator"] for row in rows):
        own = [r for r in rows if r["estimator"] == name and r["precision"] == best]
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
    size is read off where the error rises as β falls. `order` is None where fewer than two remain.

    Example:
      >>> fit = bias_order([1e-1, 1e-2, 1e-3], [1e-3, 1e-5, 1e-7])
      >>> round(fit["order"], 6), fit["betas"]
      (2.0, [0.1, 0.01, 0.001])
    """
    pairs = sorted(zip(betas, errors, strict=True))
    rising = [b * e for (b, e), (_, above) in itertools.pairwise(pairs) if e > above]
    noise = max(rising, default=0.0)
    used = [(b, e) for b, e in pairs if e < 1e-2 and e > max(100.0 * noise / b, 0.0)]
    used.sort(reverse=True)
    if len(used) < 2:
        return {"order": None, "intercept": None, "betas": [b for b, _ in used]}
    x, y = np.log10(np.array(used).T)
    order, intercept = np.polyfit(x, y, 1)
    return {"order": float(order), "intercept": float(intercept), "betas": [b for b, _ in used]}
