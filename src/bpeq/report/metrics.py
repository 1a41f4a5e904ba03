"""What a metric is called, its unit and which way is better; and how its figures are written."""

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
    """How to show a metric. `better`: −1 lower, +1 higher, 0 unknown. `split` may be empty."""

    name: str
    split: str
    family: str
    label: str
    unit: str = ""
    scale: float = 1.0
    better: int = 0

    @property
    def axis(self) -> str:
        """The label with its unit: "test error, %"."""
        return f"{self.label}, {self.unit}" if self.unit else self.label

    @property
    def after(self) -> str:
        """The unit as it follows a figure: " %", or nothing if it has none or a long one."""
        return " %" if self.unit == "%" else ""

    @property
    def column(self) -> Column:
        """A column of `Statistic` of this metric."""
        unit = "" if self.family == "solved" else self.unit
        return Column(self.label, unit, format=partial(spread, self))

    def show(self, value: float) -> str:
        """The value in the metric's unit, without it."""
        if self.unit == "%":
            return format_number(100 * value, decimals=2)
        return format_number(value)

    def difference(self, value: float) -> str:
        """A signed difference of two values, in the metric's unit; of shares in points."""
        decimals = 2 if self.unit == "%" else None
        return format_number(self.scale * value, decimals=decimals, signed=True)


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
    """The metric of this name; one that the reports do not know keeps its name, without a unit."""
    if name.startswith("sweeps_"):  # of one phase
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
    before, _, after = family.partition(known)  # of a study's own row, such as test_error_digits
    parts = [before.strip("_"), split, label, after.strip("_")]
    label = " ".join(filter(None, parts)).replace("_", " ")
    return Metric(name, split, family, label, unit, scale, better)


def _is_of(name: str, family: str) -> bool:
    return f"_{family}_" in f"_{name}_" and "squared" not in name


def ordered(names: Iterable[str]) -> list[str]:
    """Metric names: known families first, test before validation before train."""
    families, splits = list(_FAMILIES), [*SPLITS, ""]

    def rank(name: str) -> tuple[int, int, str]:
        m = metric(name)
        known = families.index(m.family) if m.family in families else len(families)
        return known, splits.index(m.split), name

    return sorted(dict.fromkeys(names), key=rank)


def primary(names: Iterable[str]) -> Metric | None:
    """The metric that a report leads with: an error on the test set, else the nearest to it."""
    names = list(names)
    wanted = [
        split + family
        for split in ("test_", "validation_", "train_", "")
        for family in (_PRIMARY[:-1] if split == "train_" else _PRIMARY)
    ]
    rest = [name for name in ordered(names) if metric(name).family != "solved"]
    return next((metric(n) for n in [*wanted, *rest, *names] if n in names), None)


def spread(m: Metric, stat: Statistic) -> str:
    """The mean with ± std over seeds, in the metric's unit: "2.13 ± 0.41"; "98 % (49 of 50)"."""
    if m.family == "solved":
        part = f"{100 * stat.mean:.3g} %"
        if len(stat.values) < 2:
            return "yes" if stat.mean == 1 else "no" if stat.mean == 0 else part
        return f"{part} ({int(np.sum(stat.finite == 1))} of {len(stat.values)})"
    several = len(stat.values) > 1 and math.isfinite(stat.std)
    if m.unit != "%":
        return plus_minus(stat.mean, stat.std if several else 0.0)
    return m.show(stat.mean) + (f" ± {m.show(stat.std)}" if several else "")


def with_unit(m: Metric, stat: Statistic) -> str:
    """`spread` and the unit, if there is a mean."""
    return spread(m, stat) + (m.after if math.isfinite(stat.mean) else "")


def best_worst(m: Metric, stat: Statistic) -> tuple[str, str]:
    """The best and the worst seed; NaN is the worst there is. Lowest first if none is better."""
    if not len(stat.finite):
        return ABSENT, ABSENT
    ends = [float(stat.finite.min()), float(stat.finite.max())]
    best, worst = ends[::-1] if m.better > 0 else ends
    return m.show(best), "NaN" if stat.lost else m.show(worst)


def each_seed(stats: Mapping[str, tuple[Metric, Statistic]]) -> Sequence[tuple[str, str]]:
    """Every seed's value, a line a name; nothing if each has one seed only."""
    if all(len(stat.values) < 2 for _, stat in stats.values()):
        return []
    return [(name, "  ".join(map(m.show, stat.values))) for name, (m, stat) in stats.items()]
