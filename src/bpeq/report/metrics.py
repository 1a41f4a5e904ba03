"""The label, the unit and the direction of a metric, and the format of its values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from bpeq.report.numbers import ABSENT, format_number, plus_minus
from bpeq.report.tables import Column
from bpeq.runs.results import Statistic

SPLITS = ("test", "validation", "train")


class Metric(NamedTuple):
    """How reports show a metric.

    Args:
      name: its name in the result files.
      split: "test", "validation", "train", or empty.
      family: its name without the split.
      label: its name in reports.
      unit: its unit; empty without one.
      scale: the factor from the value in a file to the unit.
      better: −1 if lower is better, +1 if higher is better, 0 if unknown.
    """

    name: str
    split: str
    family: str
    label: str
    unit: str = ""
    scale: float = 1.0
    better: int = 0

    @property
    def axis(self) -> str:
        """The label with its unit, such as "test error, %"."""
        return f"{self.label}, {self.unit}" if self.unit else self.label

    @property
    def after(self) -> str:
        """The unit after a number: " %"; empty for other units."""
        return " %" if self.unit == "%" else ""

    @property
    def unit_of_difference(self) -> str:
        """The unit of a difference: percentage points if the metric is a share."""
        return "percentage points" if self.unit == "%" else self.unit

    @property
    def column(self) -> Column:
        """The column of a table that holds a `Statistic` of this metric."""
        unit = "" if self.family == "solved" else self.unit
        return Column(self.label, unit, format=partial(spread, self))

    def show(self, value: float, *, signed: bool = False) -> str:
        """Formats a value in the metric's unit, without the unit.

        Args:
          value: the value in a file, or a difference of such values.
          signed: whether a positive number has a sign, as a difference has.

        Returns:
          The text.
        """
        decimals = 2 if self.unit == "%" else None
        return format_number(self.scale * value, decimals=decimals, signed=signed)


# family: label, unit, scale, better; in the order in which tables list them
_FAMILIES: dict[str, tuple[str, str, float, int]] = {
    "solved": ("seeds solved", "%", 100.0, 1),
    "error": ("error", "%", 100.0, -1),
    "accuracy": ("accuracy", "%", 100.0, 1),
    "rmse": ("RMSE", "target unit", 1.0, -1),
    "r2": ("R²", "", 1.0, 1),
    "loss": ("loss", "", 1.0, -1),
    "sweeps": ("sweeps per gradient", "", 1.0, 0),
    "unsettled": ("unsettled phases", "%", 100.0, -1),
}
_PARTED = ("error", "accuracy")
_PRIMARY = ("error", "rmse", "accuracy", "r2", "loss")


def metric(name: str) -> Metric:
    """The metric of a name. An unknown metric keeps its name, without a unit.

    Args:
      name: the name in the result files.

    Returns:
      The metric.
    """
    if name.startswith("sweeps_"):  # the sweeps of one phase
        phase = name.removeprefix("sweeps_").replace("_", " ")
        return Metric(name, "", "sweeps", f"{phase} sweeps per gradient")
    if name.startswith("solved_"):
        label = "seeds solved, " + name.removeprefix("solved_").replace("_", " ")
        return Metric(name, "", "solved", label, "%", 100.0, 1)
    split, _, family = name.partition("_")
    if split not in SPLITS or not family:
        split, family = "", name
    known = family if family in _FAMILIES else next((f for f in _PARTED if _is_of(family, f)), "")
    if not known:
        return Metric(name, split, family, f"{split} {family}".replace("_", " ").strip())
    label, unit, scale, better = _FAMILIES[known]
    before, _, after = family.partition(known)  # a study may add words, such as test_error_digits
    parts = [before.strip("_"), split, label, after.strip("_")]
    label = " ".join(filter(None, parts)).replace("_", " ")
    return Metric(name, split, family, label, unit, scale, better)


def _is_of(name: str, family: str) -> bool:
    return f"_{family}_" in f"_{name}_" and "squared" not in name


def ordered(names: Iterable[str]) -> list[str]:
    """Sorts metric names: known families first; test before validation before train.

    Args:
      names: the names.

    Returns:
      The names, each once.
    """
    families, splits = list(_FAMILIES), [*SPLITS, ""]

    def rank(name: str) -> tuple[int, int, str]:
        m = metric(name)
        known = families.index(m.family) if m.family in families else len(families)
        return known, splits.index(m.split), name

    return sorted(dict.fromkeys(names), key=rank)


def primary(names: Iterable[str]) -> Metric | None:
    """The metric that a report leads with: an error on the test set, else the nearest metric.

    Args:
      names: the names of the metrics.

    Returns:
      The metric; None without names.
    """
    names = list(names)
    wanted = [
        split + family
        for split in ("test_", "validation_", "train_", "")
        for family in (_PRIMARY[:-1] if split == "train_" else _PRIMARY)
    ]
    rest = [name for name in ordered(names) if metric(name).family != "solved"]
    return next((metric(n) for n in [*wanted, *rest, *names] if n in names), None)


def spread(m: Metric, stat: Statistic) -> str:
    """Formats the mean ± standard deviation over seeds, such as "2.13 ± 0.41" or "98 % (49 of 50)".

    Args:
      m: the metric.
      stat: its statistic.

    Returns:
      The text, without the unit.
    """
    if m.family == "solved":
        part = f"{100 * stat.mean:.3g} %"
        if len(stat.values) < 2:
            return "yes" if stat.mean == 1 else "no" if stat.mean == 0 else part
        return f"{part} ({int(np.sum(stat.finite == 1))} of {len(stat.values)})"
    several = len(stat.values) > 1 and math.isfinite(stat.std)
    if m.unit != "%":
        return plus_minus(stat.mean, stat.std if several else 0.0)
    return m.show(stat.mean) + (f" ± {m.show(stat.std)}" if several else "")


def mean_of(metrics: Mapping[str, Statistic], m: Metric) -> float:
    """The mean of a metric over seeds.

    Args:
      metrics: the statistics by name.
      m: the metric.

    Returns:
      The mean; NaN if the metric is absent.
    """
    return metrics[m.name].mean if m.name in metrics else math.nan


def csv_cells(names: Iterable[str], metrics: Mapping[str, Statistic]) -> dict[str, float | None]:
    """The columns METRIC_mean and METRIC_std of a CSV file.

    Args:
      names: the metrics.
      metrics: the statistics by name.

    Returns:
      Column -> value; None if the metric is absent.
    """
    ends = ("mean", "std")
    return {
        f"{name}_{end}": getattr(metrics.get(name), end, None) for name in names for end in ends
    }


def with_unit(m: Metric, stat: Statistic) -> str:
    """Formats a statistic like `spread`, with the unit if the mean is finite.

    Args:
      m: the metric.
      stat: its statistic.

    Returns:
      The text.
    """
    return spread(m, stat) + (m.after if math.isfinite(stat.mean) else "")


def best_worst(m: Metric, stat: Statistic) -> tuple[str, str]:
    """Formats the best and the worst seed. NaN counts as the worst.

    Args:
      m: the metric. If neither direction is better, the lowest value comes first.
      stat: its statistic.

    Returns:
      The two texts.
    """
    if not len(stat.finite):
        return ABSENT, ABSENT
    ends = [float(stat.finite.min()), float(stat.finite.max())]
    best, worst = ends[::-1] if m.better > 0 else ends
    return m.show(best), "NaN" if stat.lost else m.show(worst)


def each_seed(stats: Mapping[str, tuple[Metric, Statistic]]) -> Sequence[tuple[str, str]]:
    """Formats every seed's value, one line for each name.

    Args:
      stats: name -> metric and statistic.

    Returns:
      Pairs of name and values; empty if no statistic has several seeds.
    """
    if all(len(stat.values) < 2 for _, stat in stats.values()):
        return []
    return [(name, "  ".join(map(m.show, stat.values))) for name, (m, stat) in stats.items()]
