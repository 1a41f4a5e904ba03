"""Paired differences of a comparison, and the verdicts that their intervals allow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from bpeq.report.metrics import Metric, mean_of, metric
from bpeq.runs.results import Comparison, ComparisonRow, Difference

FROZEN = "frozen_hidden"
"""The null control with random hidden layers. A rule whose hidden layers learn must beat it."""

Rules = Mapping[str, ComparisonRow]


def interval(pair: Difference) -> str:
    """The ends of the interval, such as "−0.20 to +0.40".

    Args:
      pair: the paired difference.

    Returns:
      The text; empty without an interval.
    """
    low, high = (metric(pair.metric).show(end, signed=True) for end in (pair.low, pair.high))
    return f"{low} to {high}" if pair.is_judged else ""


def verdict(pair: Difference) -> str:
    """The verdict on the first row.

    Args:
      pair: the paired difference.

    Returns:
      "better", "worse", "not distinguishable" or "not judged". If neither direction is better, it
      is "higher" or "lower".
    """
    if not pair.is_judged:
        return "not judged"
    if not pair.is_resolved:
        return "not distinguishable"
    better = metric(pair.metric).better
    if not better:
        return "higher" if pair.mean > 0 else "lower"
    return "better" if pair.mean * better > 0 else "worse"


def reason(pair: Difference) -> str:
    """The verdict with its reason, as a clause.

    Args:
      pair: the paired difference.

    Returns:
      The clause.
    """
    reasons = {
        "not judged": "not judged: too few finite pairs of seeds",
        "not distinguishable": "not distinguishable: the interval contains 0",
    }
    return reasons.get(verdict(pair), f"{pair.a} is {verdict(pair)}")


def sentence(pair: Difference) -> str:
    """The difference, its interval and its verdict in one line.

    Args:
      pair: the paired difference.

    Returns:
      The line.
    """
    m = metric(pair.metric)
    unit = f" {m.unit_of_difference}".rstrip().replace(" percentage", "")
    between = f", {100 * pair.level:g} % interval {interval(pair)}" if pair.is_judged else ""
    size = f"{m.show(pair.mean, signed=True)}{unit}{between}, n\u00a0=\u00a0{pair.number}"
    return f"{pair.title}, {m.label}: {size}; {reason(pair)}."


def pairs_of(comparison: Comparison) -> list[Difference]:
    """Sorts paired differences: rules against the frozen control, rules against rules, others.

    Within each kind, pairs with the first rule come first.

    Args:
      comparison: the comparison.

    Returns:
      The pairs.
    """
    rules = comparison.rules
    controls = {name for name, row in rules.items() if row.control}

    def rank(pair: Difference) -> tuple[bool, int, bool]:
        both = {pair.a, pair.b}
        return controls & both != {FROZEN}, len(controls & both), next(iter(rules)) not in both

    return sorted(comparison.paired, key=rank)


def omitted(shown: int, of: int) -> str:
    """The sentence below a shortened list of pairs.

    Args:
      shown: the number of pairs in the list.
      of: the number of all pairs.

    Returns:
      The sentence; empty if the list is complete.
    """
    return f"{shown} of {of} pairs; all are in comparison.json." if shown < of else ""


def against_controls(pairs: Sequence[Difference], rules: Rules, m: Metric) -> list[str]:
    """Says which rules beat the null controls: by the interval, or by the mean without intervals.

    Args:
      pairs: the paired differences.
      rules: the rows by name.
      m: the leading metric.

    Returns:
      The notes.
    """
    means = {name: mean_of(row.metrics, m) for name, row in rules.items()}
    means = {name: mean for name, mean in means.items() if math.isfinite(mean)}
    controls = [name for name in means if rules[name].control]
    if not controls or not m.better:
        return []

    def bar(control: str) -> str:
        return f"{control} ({m.show(means.get(control, 0.0))}{m.after} {m.label})"

    judged = [
        p
        for p in pairs
        if p.b == FROZEN and p.metric == m.name and p.a in rules and p.a not in controls
    ]
    if any(p.is_judged for p in judged):
        return _by_interval(judged, bar(FROZEN))
    best = max(controls, key=lambda name: m.better * means[name])
    weak = [
        name
        for name, mean in means.items()
        if not rules[name].control and m.better * (mean - means[best]) <= 0
    ]
    return [f"No better than the null control {bar(best)}: {', '.join(weak)}."] if weak else []


def _by_interval(pairs: Sequence[Difference], bar: str) -> list[str]:
    """The verdicts of rules against the frozen control. `bar` is the control with its value."""
    level = f"{100 * pairs[0].level:g} %"
    better, same, worse = (
        ", ".join(p.a for p in pairs if verdict(p) == wanted)
        for wanted in ("better", "not distinguishable", "worse")
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
