"""The rows of a comparison: rules with figures, costs and notes; and their paired differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from bpeq.report import _numbers as n
from bpeq.report._fidelity_read import Rule, rule
from bpeq.report._metrics import Metric, Stat, metric, ordered, primary, stats
from bpeq.report._read import mapping, number
from bpeq.types import DataError

FROZEN = "frozen_hidden"
"""The null control that a rule whose hidden layers learn must beat."""

COSTS = {
    "sweeps": ("sweeps", n.plain),
    "macs": ("MACs", n.magnitude),
    "seconds": ("time", n.duration),
    "bytes": ("memory", n.memory),
}


class Row(NamedTuple):
    """One rule: figures by metric, cost by name (NaN where it is not known), what is said of it.

    fidelity: with initial and with trained parameters, those that are known; own: the same against
    the rule's own objective, where it follows another one. training: seconds, NaN if not known.
    diverged: how its training ended, where it did not end well.
    """

    name: str
    control: bool
    stats: dict[str, Stat]
    cost: dict[str, float]
    note: str
    fidelity: dict[str, Rule]
    own: dict[str, Rule]
    training: float
    diverged: str


class Difference(NamedTuple):
    """a − b, seed by seed, on one metric: the mean and its interval at `level`."""

    a: str
    b: str
    metric: Metric
    mean: float
    low: float
    high: float
    level: float
    n: int

    @property
    def judged(self) -> bool:
        """Whether the interval is finite."""
        return math.isfinite(self.low + self.high)

    @property
    def resolved(self) -> bool:
        """Whether the interval is finite and leaves out zero."""
        return self.judged and (self.low > 0 or self.high < 0)

    @property
    def title(self) -> str:
        return f"{self.a} − {self.b}"

    @property
    def unit(self) -> str:
        """The unit of a difference: percentage points where the metric is a share."""
        return "percentage points" if self.metric.unit == "%" else self.metric.unit

    @property
    def verdict(self) -> str:
        """What the interval allows one to say of `a`."""
        if not self.judged:
            return "not judged"
        if not self.resolved:
            return "not distinguishable"
        if not self.metric.better:
            return "higher" if self.mean > 0 else "lower"
        return "better" if self.mean * self.metric.better > 0 else "worse"

    def says(self) -> str:
        """The verdict as a clause with its reason."""
        if not self.judged:
            return "not judged: too few finite pairs of seeds"
        if not self.resolved:
            return "not distinguishable: the interval contains 0"
        return f"{self.a} is {self.verdict}"


def rows(comparison: dict[str, Any]) -> list[Row]:
    """The rules of comparison.json in file order, the null controls after all others.

    Raises:
      DataError: figures or costs that are no numbers; names the rule and the key.
    """
    found = []
    for name, entry in mapping(comparison.get("rules"), "rules").items():
        fields = mapping(entry, f"rules.{name}")
        cost = mapping(fields.get("cost"), f"rules.{name}.cost")
        seconds = mapping(fields.get("seconds"), f"rules.{name}.seconds")
        ends = mapping(fields.get("fidelity"), f"rules.{name}.fidelity")
        found.append(
            Row(
                name,
                bool(fields.get("control", False)),
                stats(fields.get("metrics"), f"rules.{name}.metrics"),
                {k: number(v, f"rules.{name}.cost.{k}") for k, v in cost.items()},
                str(fields.get("note") or ""),
                _fidelity(name, ends, f"rules.{name}.fidelity"),
                _fidelity(name, ends, f"rules.{name}.fidelity", "own_objective"),
                number(seconds.get("train"), f"rules.{name}.seconds.train"),
                str(fields.get("diverged") or ""),
            )
        )
    return sorted(found, key=lambda row: row.control)


def _fidelity(name: str, ends: dict[str, Any], where: str, part: str = "") -> dict[str, Rule]:
    """Before and after training; nothing for a rule that has no exact gradient to compare with."""
    read = {}
    for end in ("initial", "trained"):
        entry, place = mapping(ends.get(end), f"{where}.{end}"), f"{where}.{end}"
        if part:
            entry, place = mapping(entry.get(part), f"{place}.{part}"), f"{place}.{part}"
        if "relative_error" in entry:
            read[end] = rule(name, entry, place)
    return read


def lead(found: list[Row]) -> Metric | None:
    """The metric that a comparison leads with: `primary` of those that most rules have."""
    counts: dict[str, int] = {}
    for row in found:
        for name in row.stats:
            counts[name] = counts.get(name, 0) + 1
    most = max(counts.values(), default=0)
    leading = primary(name for name, times in counts.items() if times == most)
    return None if leading is None else metric(leading)


def tabulated(found: Sequence[Row], measured: Metric) -> list[str]:
    """The metrics of a page's table: the leading one, then its family, then others but few losses.

    At most five, what a page is wide; comparison.csv has them all.
    """
    others = [metric(name) for name in ordered(name for row in found for name in row.stats)]
    others = [m for m in others if m.family != "loss" or m.split not in ("test", "validation")]
    others.sort(key=lambda m: m.family != measured.family)
    return [measured.name, *(m.name for m in others if m.name != measured.name)][:5]


def plotted(found: list[Row], measured: Metric | None) -> Metric | None:
    """The metric whose final values are drawn: the leading one, or the loss of a task to be solved.

    Where a seed solves its task or does not (XOR), errors are a few fixed shares and tell less.
    """
    names = {name for row in found for name in row.stats}
    losses = [name for name in ("test_loss", "train_loss") if name in names]
    return metric(losses[0]) if "solved" in names and losses else measured


def differences(comparison: dict[str, Any]) -> list[Difference]:
    """`paired` of comparison.json: rules against the frozen control, then rules, then the others.

    Within each kind those with the first rule come first, so that the head of the list says most.

    Raises:
      DataError: an entry is not as it must be.
    """
    found: list[Difference] = []
    entries = comparison.get("paired") or []
    if not isinstance(entries, list):
        raise DataError("paired: must be a list")
    for i, entry in enumerate(entries):
        where = f"paired.{i}"
        fields = mapping(entry, where)
        mean, low, high = (number(fields.get(k), f"{where}.{k}") for k in ("mean", "low", "high"))
        level = number(fields.get("level", 0.95), f"{where}.level")
        pairs = int(number(fields.get("n", 0), f"{where}.n"))
        a, b = str(fields.get("a", "?")), str(fields.get("b", "?"))
        measured = metric(str(fields.get("metric", "difference")))
        found.append(Difference(a, b, measured, mean, low, high, level, pairs))
    rules = rows(comparison)
    nulls, first = {row.name for row in rules if row.control}, rules[0].name if rules else ""

    def place(d: Difference) -> tuple[bool, int, bool]:
        of_nulls = nulls & {d.a, d.b}
        return of_nulls != {FROZEN}, len(of_nulls), first not in (d.a, d.b)

    return sorted(found, key=place)


def omitted(shown: int, of: int) -> str:
    """What to say below a list of `shown` pairs; nothing where these are all."""
    return f"{shown} of {of} pairs; all are in comparison.json." if shown < of else ""


def unit_after(m: Metric) -> str:
    """The unit as it follows a figure: " %", or nothing where it has none or a long one."""
    return " %" if m.unit == "%" else ""


def interval(d: Difference) -> str:
    """The interval's ends: "−0.20 to +0.40"; nothing where there is none."""
    if not math.isfinite(d.low + d.high):
        return ""
    return f"{d.metric.difference(d.low)} to {d.metric.difference(d.high)}"


def mean_of(row: Row, m: Metric) -> float | None:
    """The mean over seeds; None where there is none, or it is not finite."""
    stat = row.stats.get(m.name)
    return stat.mean if stat is not None and math.isfinite(stat.mean) else None
