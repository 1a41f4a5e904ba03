"""Paired differences of results, seed by seed, with verdicts corrected for many comparisons."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

LEAST_PAIRS = 3
"""The smallest number of pairs for which a difference gets an interval and a verdict."""
_ROUNDING = 1e-6  # a spread below the rounding of float32 values is none


def paired(rows: Mapping[str, Any], level: float = 0.95) -> list[dict[str, Any]]:
    """Computes a − b for every two rows, seed by seed, with corrected verdicts.

    The metric is test_error, or test_rmse for a regression: lower is better. Student's paired t
    test gives the p value of a difference. The comparisons of one metric are the pairs with three
    or more finite differences that are not all equal. With m of them,

        p_corrected   Holm's: the k-th smallest p times m − k + 1, at most 1 and not falling with k
        low, high     Bonferroni's: Student's interval of the mean at the level 1 − (1 − level)/m

    With a probability of at least `level`, no pair whose true mean is 0 gets the verdict "lower" or
    "higher", and all intervals contain their true mean. Holm's correction is smaller than
    Bonferroni's. So the interval of a pair with such a verdict may still contain 0.

    Args:
      rows: the rows of comparison.json by name, each with `metrics`.
      level: the confidence level of all verdicts and intervals of a metric together, 0 to 1.

    Returns:
      One entry for each pair: `a`, `b`, `metric`, `mean`, `low`, `high`, `level`, `n` (the number
      of seeds), `p`, `p_corrected`, `comparisons` (m), `correction` ("Holm") and `verdict` on a:
      "lower", "higher", "not distinguishable", or the reason why there is none: "too few seeds",
      "no spread", "not finite". Without a verdict `low`, `high`, `p` and `p_corrected` are None.
      A pair without a common metric has no entry.

    Example:
      >>> values = {"a": [0.1, 0.2, 0.2], "b": [0.0, 0.2, 0.1]}
      >>> rows = {name: {"metrics": {"test_error": {"values": v}}} for name, v in values.items()}
      >>> [(p["a"], p["b"], round(p["mean"], 3), p["verdict"]) for p in paired(rows)]
      [('a', 'b', 0.067, 'not distinguishable')]
    """
    entries = []
    differences: dict[str, list[tuple[dict[str, Any], np.ndarray]]] = {}
    for a, b in itertools.combinations(rows, 2):
        known = [set(rows[name]["metrics"]) for name in (a, b)]
        metric = next((m for m in ("test_error", "test_rmse") if all(m in k for k in known)), None)
        if metric is None:
            continue
        values = [np.array(rows[name]["metrics"][metric]["values"]) for name in (a, b)]
        difference = values[0] - values[1]
        entry: dict[str, Any] = {"a": a, "b": b, "metric": metric, "mean": float(difference.mean())}
        entry |= dict.fromkeys(("low", "high", "p", "p_corrected"))
        entry |= {"level": level, "n": len(difference), "correction": "Holm"}
        entry["verdict"] = _no_verdict(difference, float(np.max(np.abs(values))))
        entries.append(entry)
        judged = differences.setdefault(metric, [])
        if not entry["verdict"]:
            judged.append((entry, difference))
    for entry in entries:
        entry["comparisons"] = len(differences[entry["metric"]])
    for judged in differences.values():
        _judge(judged, level)
    return entries


def _no_verdict(difference: np.ndarray, largest: float) -> str:
    """Why a difference gets no verdict; empty if it gets one. `largest` is the largest value."""
    if not np.isfinite(difference).all():
        return "not finite"
    if len(difference) < LEAST_PAIRS:
        return "too few seeds"
    return "no spread" if np.ptp(difference) <= _ROUNDING * largest else ""


def _judge(judged: list[tuple[dict[str, Any], np.ndarray]], level: float) -> None:
    """Adds the intervals, the p values and the verdicts to the entries of one metric."""
    from scipy import stats

    count = len(judged)
    tests = [stats.ttest_1samp(difference, 0.0) for _, difference in judged]
    order = sorted(range(count), key=lambda i: tests[i].pvalue)
    corrected = 0.0
    for rank, i in enumerate(order):
        entry = judged[i][0]
        corrected = max(corrected, min(1.0, (count - rank) * float(tests[i].pvalue)))
        interval = tests[i].confidence_interval(1.0 - (1.0 - level) / count)
        entry |= {"low": float(interval.low), "high": float(interval.high)}
        entry |= {"p": float(tests[i].pvalue), "p_corrected": corrected}
        sign = "lower" if entry["mean"] < 0 else "higher"
        entry["verdict"] = sign if corrected <= 1.0 - level else "not distinguishable"
