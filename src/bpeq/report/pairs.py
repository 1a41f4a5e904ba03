"""Paired differences of a comparison: which of them are shown where, and their verdicts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from bpeq.report.metrics import Metric, mean_of, metric
from bpeq.report.numbers import plural
from bpeq.runs.results import Comparison, ComparisonRow, Difference

FROZEN = "frozen_hidden"
"""The null control with random hidden layers. A rule whose hidden layers learn must beat it."""

OTHERS = "other pairs"
"""The label of the pairs that have neither a null control nor the best rule in them."""
Rules = Mapping[str, ComparisonRow]


class PairGroup(NamedTuple):
    """Pairs that answer one question.

    Args:
      label: the question, such as "less the null control frozen_hidden".
      pairs: the paired differences.
    """

    label: str
    pairs: Sequence[Difference]


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
      "better", "worse" or "not distinguishable", or why there is no verdict, such as "too few
      seeds". If neither direction of the metric is better, it is "higher" or "lower".
    """
    better = metric(pair.metric).better
    if not pair.is_resolved or not better:
        return pair.verdict
    return "better" if (pair.verdict == "higher") == (better > 0) else "worse"


def best_rule(comparison: Comparison) -> str:
    """The rule with the best mean of the metric of the paired differences.

    Args:
      comparison: the comparison.

    Returns:
      The name of the rule; empty without a pair of finite values.
    """
    names = {name: p.metric for p in comparison.paired for name in (p.a, p.b)}
    means = {
        name: metric(names[name]).better * mean_of(row.metrics, metric(names[name]))
        for name, row in comparison.rules.items()
        if name in names and not row.control
    }
    return max((k for k, v in means.items() if math.isfinite(v)), key=means.__getitem__, default="")


def groups_of(comparison: Comparison) -> list[PairGroup]:
    """Groups the pairs: each rule less each null control, each rule less the best rule, others.

    The frozen control comes first. Pairs are turned so that the rule in question comes first.

    Args:
      comparison: the comparison.

    Returns:
      The groups that have pairs. The label of the last one is `OTHERS`.
    """
    rules, best = comparison.rules, best_rule(comparison)
    controls = sorted((k for k, row in rules.items() if row.control), key=lambda k: k != FROZEN)
    labels = {name: f"less the null control {name}" for name in controls}
    labels[best] = f"less the best rule, {best}"
    labels[""] = OTHERS
    groups: dict[str, list[Difference]] = {name: [] for name in labels}

    def rank(name: str) -> int:
        return 2 if name in controls else 1 if name == best else 0

    for pair in comparison.paired:
        turned = pair.reversed if rank(pair.a) > rank(pair.b) else pair
        against = turned.b if rank(turned.b) > rank(turned.a) else ""
        groups[against].append(turned)
    return [PairGroup(labels[name], pairs) for name, pairs in groups.items() if pairs]


def units(pairs: Sequence[Difference]) -> set[str]:
    """The metrics of paired differences, such as "test error in percentage points".

    Args:
      pairs: the paired differences.

    Returns:
      Their names, with the unit of a difference.
    """
    measured = {metric(pair.metric) for pair in pairs}
    return {f"{m.label} in {m.unit_of_difference}".removesuffix(" in ") for m in measured}


def correction(pairs: Sequence[Difference]) -> str:
    """Says how verdicts and intervals are corrected for the number of comparisons.

    Args:
      pairs: all paired differences.

    Returns:
      The sentences; empty without a pair.
    """
    judged = next((pair for pair in pairs if pair.is_judged), None)
    text = ""
    if judged is not None:
        level, number = f"{100 * judged.level:g} %", int(judged.comparisons)
        many = number > 1
        text = f"Verdicts: Student's paired t test at {100 - 100 * judged.level:.3g} %"
        text += (
            f", corrected for {number} comparisons by {judged.correction}'s method."
            if many
            else "."
        )
        text += f" Intervals: {level}"
        text += " for all comparisons together (Bonferroni)." if many else "."
    reasons = [pair.verdict for pair in pairs if not pair.is_judged]
    counts = [f"{plural(reasons.count(k), 'pair')}: {k}" for k in dict.fromkeys(reasons)]
    if counts:
        text += f" No verdict for {'; '.join(counts)}."
        text += " A verdict needs three seeds, and differences that are not all equal."
    return text.strip()


def against_controls(pairs: Sequence[Difference], rules: Rules, m: Metric) -> list[str]:
    """Says which rules beat the null controls: by the verdict, or by the mean without verdicts.

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
        return _by_verdict(judged, bar(FROZEN))
    best = max(controls, key=lambda name: m.better * means[name])
    weak = [
        name
        for name, mean in means.items()
        if not rules[name].control and m.better * (mean - means[best]) <= 0
    ]
    return [f"No better than the null control {bar(best)}: {', '.join(weak)}."] if weak else []


def _by_verdict(pairs: Sequence[Difference], bar: str) -> list[str]:
    """The verdicts of rules against the frozen control. `bar` is the control with its value."""
    better, same, worse, unknown = (
        ", ".join(p.a for p in pairs if verdict(p) in wanted)
        for wanted in (["better"], ["not distinguishable"], ["worse"], ["no spread"])
    )
    weak = [f"{same} (not distinguishable)"] if same else []
    weak += [f"{worse} (worse)"] if worse else []
    weak += [f"{unknown} (no verdict)"] if unknown else []
    notes = [f"Beat the null control {bar} by the paired test: {better}."] if better else []
    if weak:
        notes.append(
            f"Do not beat the null control {bar}, whose hidden layers stay random: "
            f"{'; '.join(weak)}. Nothing here shows that their hidden layers learn anything useful."
        )
    return notes
