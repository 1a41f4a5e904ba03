"""What a metric is called, its unit and which way is better; and its figures over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from bpeq.report import _numbers as n
from bpeq.report._read import Floats, mapping, number, numbers

SPLITS = ("test", "validation", "train")


class Metric(NamedTuple):
    """How to show a metric. `better`: −1 lower, +1 higher, 0 unknown. `split` may be empty."""

    name: str
    split: str
    family: str
    label: str
    unit: str
    scale: float
    better: int

    @property
    def axis(self) -> str:
        """The label with its unit: "test error, %"."""
        return f"{self.label}, {self.unit}" if self.unit else self.label

    def show(self, value: float) -> str:
        """The value in the metric's unit, without it."""
        return n.fixed(100 * value) if self.unit == "%" else n.plain(value)

    def difference(self, value: float) -> str:
        """A signed difference of two values, in the metric's unit; of shares in points."""
        return n.signed(100 * value, 2) if self.unit == "%" else n.signed(value)


class Stat(NamedTuple):
    """A metric over seeds; `values` `[seeds]` may hold NaN for seeds that diverged."""

    mean: float
    std: float
    values: Floats

    @property
    def finite(self) -> Floats:
        return self.values[np.isfinite(self.values)]

    @property
    def lost(self) -> int:
        """Seeds whose value is not finite."""
        return len(self.values) - len(self.finite)


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
        return Metric(name, "", "sweeps", f"{phase} sweeps per gradient", "", 1.0, 0)
    if name.startswith("solved_"):
        label = "seeds solved, " + name.removeprefix("solved_").replace("_", " ")
        return Metric(name, "", "solved", label, "%", 100.0, 1)
    split, _, family = name.partition("_")
    if split not in SPLITS or not family:
        split, family = "", name
    own = family if family in _FAMILIES else next((f for f in _PARTED if _is_of(family, f)), "")
    if not own:
        return Metric(
            name, split, family, f"{split} {family}".replace("_", " ").strip(), "", 1.0, 0
        )
    label, unit, scale, better = _FAMILIES[own]
    before, _, after = family.partition(own)  # of a study's own row, such as test_error_digits
    said = [before.strip("_"), split, label, after.strip("_")]
    label = " ".join(filter(None, said)).replace("_", " ")
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


def primary(names: Iterable[str]) -> str | None:
    """The metric that a report leads with: an error on the test set, else the nearest to it."""
    there = list(names)
    for split in ("test_", "validation_", "train_", ""):
        for family in _PRIMARY[:-1] if split == "train_" else _PRIMARY:
            if split + family in there:
                return split + family
    rest = [name for name in ordered(there) if metric(name).family != "solved"]
    return rest[0] if rest else (there[0] if there else None)


def stats(metrics: Any, where: str) -> dict[str, Stat]:
    """`metrics` of a summary or of a comparison's rule, checked, in the order of `ordered`.

    Raises:
      DataError: something else than numbers where numbers must be; names `where` and the metric.
    """
    found = mapping(metrics, where)
    return {name: _stat(found[name], f"{where}.{name}") for name in ordered(found)}


def spread(m: Metric, stat: Stat) -> str:
    """The mean with ± std over seeds, in the metric's unit: "2.13 ± 0.41"; "98 % (49 of 50)"."""
    if m.family == "solved":
        share = f"{100 * stat.mean:.3g} %"
        if len(stat.values) < 2:
            return "yes" if stat.mean == 1 else "no" if stat.mean == 0 else share
        return f"{share} ({int(np.sum(stat.finite == 1))} of {len(stat.values)})"
    several = len(stat.values) > 1 and math.isfinite(stat.std)
    if m.unit != "%":
        return n.plus_minus(stat.mean, stat.std if several else 0.0)
    return m.show(stat.mean) + (f" ± {m.show(stat.std)}" if several else "")


def best_worst(m: Metric, stat: Stat) -> tuple[str, str]:
    """The best and the worst seed; NaN is the worst there is. Lowest first where none is better."""
    if not len(stat.finite):
        return n.ABSENT, n.ABSENT
    low, high = float(stat.finite.min()), float(stat.finite.max())
    best, worst = (high, low) if m.better > 0 else (low, high)
    return m.show(best), ("NaN" if stat.lost else m.show(worst))


def _stat(entry: Any, where: str) -> Stat:
    fields = entry if isinstance(entry, dict) else {"values": entry}
    listed = fields.get("values", fields.get("mean"))
    values = np.asarray(numbers(listed, f"{where}.values"), dtype=np.float64)
    mean = number(fields["mean"], f"{where}.mean") if "mean" in fields else _mean(values)
    std = number(fields["std"], f"{where}.std") if "std" in fields else _std(values)
    return Stat(mean, std, values)


def from_values(values: Floats) -> Stat:
    """The figures of `values` `[seeds]`, as a summary would hold them."""
    return Stat(_mean(values), _std(values), values)


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else math.nan


def _std(values: Floats) -> float:
    if len(values) < 2 or not np.isfinite(values).all():
        return math.nan
    return float(values.std(ddof=1))
