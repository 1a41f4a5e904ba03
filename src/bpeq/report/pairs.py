"""Paired differences of a comparison, and the verdicts that their intervals allow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from bpeq.report.metrics import Metric, metric
from bpeq.runs.results import Comparison, ComparisonRow

FROZEN = "frozen_hidden"
"""The null control with random hidden layers. A rule whose hidden layers learn must beat it."""


class Pair(NamedTuple):
    """The difference first − second, seed by seed, on one metric.

    Args:
      first: the name of the first row.
      second: the name of the second row.
      metric: the metric.
      mean: the mean difference.
      low: the lower end of the interval; NaN without one.
      high: the upper end of the interval; NaN without one.
      level: the confidence level of the interval, 0 to 1.
      number: the number of seeds.
    """

    first: str
    second: str
    metric: Metric
    mean: float
    low: float
    high: float
    level: float
    number: int

    @property
    def is_judged(self) -> bool:
        """Whether the interval is finite."""
        return math.isfinite(self.low + self.high)

    @property
    def is_resolved(self) -> bool:
        """Whether the interval is finite and excludes zero."""
        return self.is_judged and (self.low > 0 or self.high < 0)

    @property
    def title(self) -> str:
        """The two names, such as "eqprop − backprop"."""
        return f"{self.first} − {self.second}"

    @property
    def unit(self) -> str:
        """The unit of a difference: percentage points if the metric is a share."""
        return "percentage points" if self.metric.unit == "%" else self.metric.unit

    @property
    def interval(self) -> str:
        """The ends of the interval, such as "−0.20 to +0.40"; empty without an interval."""
        if not self.is_judged:
            return ""
        return f"{self.metric.difference(self.low)} to {self.metric.difference(self.high)}"

    @property
    def verdict(self) -> str:
        """The verdict on the first: "better", "worse", "not distinguishable" or "not judged".

        If neither direction is better, it is "higher" or "lower".
        """
        if not self.is_judged:
            return "not judged"
        if not self.is_resolved:
            return "not distinguishable"
        if not self.metric.better:
            return "higher" if self.mean > 0 else "lower"
        return "better" if self.mean * self.metric.better > 0 else "worse"

    @property
    def reason(self) -> str:
        """The verdict with its reason, as a clause."""
        if not self.is_judged:
            return "not judged: too few finite pairs of seeds"
        if not self.is_resolved:
            return "not distinguishable: the interval contains 0"
        return f"{self.first} is {self.verdict}"

    @property
    def sentence(self) -> str:
        """The difference, its interval and its verdict in one line."""
        unit = f" {self.unit}".rstrip().replace(" percentage", "")
        between = f", {100 * self.level:g} % interval {self.interval}" if self.is_judged else ""
        size = f"{self.metric.difference(self.mean)}{unit}{between}, n\u00a0=\u00a0{self.number}"
        return f"{self.title}, {self.metric.label}: {size}; {self.reason}."


def pairs_of(comparison: Comparison, rules: Mapping[str, ComparisonRow]) -> list[Pair]:
    """Sorts paired differences: rules against the frozen control, rules against rules, others.

    Within each kind, pairs with the first rule come first.

    Args:
      comparison: the comparison.
      rules: the rows by name.

    Returns:
      The pairs.
    """
    pairs = [
        Pair(d.a, d.b, metric(d.metric), d.mean, d.low, d.high, d.level,
             int(d.n) if math.isfinite(d.n) else 0)
        for d in comparison.paired
    ]  # fmt: skip
    controls = {name for name, row in rules.items() if row.control}

    def rank(pair: Pair) -> tuple[bool, int, bool]:
        both = {pair.first, pair.second}
        return controls & both != {FROZEN}, len(controls & both), next(iter(rules)) not in both

    return sorted(pairs, key=rank)


def omitted(shown: int, of: int) -> str:
    """The sentence below a shortened list of pairs.

    Args:
      shown: the number of pairs in the list.
      of: the number of all pairs.

    Returns:
      The sentence; empty if the list is complete.
    """
    return f"{shown} of {of} pairs; all are in comparison.json." if shown < of else ""


def against_controls(
    pairs: Sequence[Pair], rules: Mapping[str, ComparisonRow], m: Metric
) -> list[str]:
    """Says which rules beat the null controls: by the interval, or by the mean without intervals.

    Args:
      pairs: the paired differences.
      rules: the rows by name.
      m: the leading metric.

    Returns:
      The notes.
    """
    means = {name: mean_of(row, m) for name, row in rules.items()}
    controls = [k for k, row in rules.items() if row.control and means[k] is not None]
    if not controls or not m.better:
        return []
    judged = {
        p.first: p
        for p in pairs
        if p.second == FROZEN and p.metric == m and p.first in rules and p.first not in controls
    }
    if any(p.is_judged for p in judged.values()):
        return _by_interval([*judged.values()], _shown(FROZEN, rules, m))
    best = max(controls, key=lambda name: m.better * (means[name] or 0.0))
    bar = means[best] or 0.0
    weak = [
        name
        for name, mean in means.items()
        if not rules[name].control and mean is not None and m.better * (mean - bar) <= 0
    ]
    shown = _shown(best, rules, m)
    return [f"No better than the null control {shown}: {', '.join(weak)}."] if weak else []


def _by_interval(pairs: Sequence[Pair], bar: str) -> list[str]:
    """The verdicts of rules against the frozen control. `bar` is the control with its value."""
    level = f"{100 * pairs[0].level:g} %"
    better, same, worse = (
        ", ".join(p.first for p in pairs if p.verdict == verdict)
        for verdict in ("better", "not distinguishable", "worse")
    )
    weak = [f"{same} (the {level} interval of the difference contains 0)"] if same else []
    weak += [f"{worse} (worse)"] if worse else []
    notes = [f"Beat the null control {bar} by the {level} interval: {better}."] if better else []
    if weak:
        notes.append(
            f"Do not beat the null control {bar}, whose hidden layers stay random: "
            f"{'; '.join(weak)}. Nothing here shows that their hidden layers learn anything useful."
        )
    return notes


def mean_of(row: ComparisonRow, m: Metric) -> float | None:
    """The mean of a metric over seeds.

    Args:
      row: the row of the rule.
      m: the metric.

    Returns:
      The mean; None if it is absent or not finite.
    """
    stat = row.metrics.get(m.name)
    return stat.mean if stat is not None and math.isfinite(stat.mean) else None


def _shown(name: str, rules: Mapping[str, ComparisonRow], m: Metric) -> str:
    return f"{name} ({m.show(mean_of(rules[name], m) or 0.0)}{m.after} {m.label})"
