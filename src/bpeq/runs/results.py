# ruff: noqa: RUF012 (pydantic copies the defaults of its fields)
"""Typed models of the result files: summary, comparison, sweep, and metrics over training.

Reports read all result files through these models and those of `fidelity_results`. JSON has no NaN
and no infinities; null stands for a number that is not finite. Unknown keys are kept. A wrong file
causes a `DataError` of one line, which names the file and the key.

Only these modules use pydantic, not the rest of `bpeq.runs`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, ValidationInfo, field_validator, model_validator

from bpeq.runs import json_models as models
from bpeq.runs.fidelity_results import RuleFidelity, TrainingFidelity

Floats = NDArray[np.float64]


class Statistic(models.Result):
    """A metric over seeds. `values` `[seeds]` may hold NaN for seeds that diverged.

    A file may hold only the values. `mean` and `std` are then computed from them.
    """

    values: models.Values = []
    mean: models.Number = math.nan
    std: models.Number = math.nan

    @model_validator(mode="before")
    @classmethod
    def _from_values(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return {"values": value}
        return value if "values" in value else {**value, "values": value.get("mean")}

    @model_validator(mode="after")
    def _fill(self) -> Self:
        if "mean" not in self.model_fields_set and self.values:
            self.mean = float(np.mean(self.values))
        if "std" not in self.model_fields_set and len(self.values) > 1 and not self.lost:
            self.std = float(np.std(self.values, ddof=1))
        return self

    @property
    def finite(self) -> Floats:
        """The finite values."""
        values = np.asarray(self.values, dtype=np.float64)
        return values[np.isfinite(values)]

    @property
    def lost(self) -> int:
        """The number of seeds whose value is not finite."""
        return len(self.values) - len(self.finite)


class LayerSize(models.Result):
    """A layer of a network and its number of parameters."""

    name: models.Text = ""
    parameters: models.Number = 0.0


class Summary(models.Holder):
    """The content of summary.json."""

    metrics: models.Objects[Statistic] = {}
    seconds: models.Objects[models.Number] = {}
    layers: models.Items[LayerSize] = []
    pictures: models.Items[models.Text] = []
    fidelity: TrainingFidelity | None = None


class ComparisonRow(models.Result):
    """One rule of a comparison: its metrics, the cost of one gradient, how its training ended."""

    metrics: models.Objects[Statistic] = {}
    cost: models.Objects[models.Number] = {}
    control: Annotated[bool, BeforeValidator(bool)] = False
    note: models.Text = ""
    seconds: models.Objects[models.Number] = {}
    fidelity: TrainingFidelity | None = None
    diverged: models.Text = ""

    @property
    def ends(self) -> dict[str, RuleFidelity]:
        """The fidelity "initial" and "trained", of those that were measured."""
        return {} if self.fidelity is None else self.fidelity.ends


class Difference(models.Result):
    """a − b of one metric, seed by seed, of `n` pairs: the mean, its interval, the verdict.

    `level` is that of all intervals of the metric together. `comparisons` is their number, and
    `correction` the method by which `verdict` is corrected for it. `verdict` is "lower", "higher",
    "not distinguishable", or why there is none.
    """

    a: models.Text = "?"
    b: models.Text = "?"
    metric: models.Text = "difference"
    mean: models.Number = math.nan
    low: models.Number = math.nan
    high: models.Number = math.nan
    level: models.Number = 0.95
    n: models.Number = 0.0
    p_corrected: models.Number = math.nan
    comparisons: models.Number = 1.0
    correction: models.Text = ""
    verdict: models.Text = "not judged"

    @property
    def title(self) -> str:
        """The two names, such as "eqprop − backprop"."""
        return f"{self.a} − {self.b}"

    @property
    def number(self) -> int:
        """The number of pairs; 0 if unknown."""
        return int(self.n) if math.isfinite(self.n) else 0

    @property
    def is_judged(self) -> bool:
        """Whether there is a verdict, and so an interval."""
        return self.is_resolved or self.verdict == "not distinguishable"

    @property
    def is_resolved(self) -> bool:
        """Whether the verdict is that the two differ."""
        return self.verdict in ("lower", "higher")

    @property
    def reversed(self) -> Difference:
        """b − a."""
        other = {"lower": "higher", "higher": "lower"}.get(self.verdict, self.verdict)
        ends = {"mean": -self.mean, "low": -self.high, "high": -self.low, "verdict": other}
        return self.model_copy(update={"a": self.b, "b": self.a, **ends})


class Trial(models.Result):
    """The settings of a trial by their keys in the config. `value` is its metric, or NaN."""

    settings: models.Objects[models.Number] = {}
    failed: models.Text = ""
    value: models.Number = math.nan


class Tuning(models.Result):
    """The trials of one rule. The first has the config's settings; `chosen` is the best one.

    `chosen` is None where the tuning was interrupted.
    """

    metric: models.Text = "?"
    trials: list[Trial]
    chosen: int | None = 0

    @field_validator("trials")
    @classmethod
    def _read_metric(cls, trials: list[Trial], info: ValidationInfo) -> list[Trial]:
        for i, trial in enumerate(trials):
            try:
                trial.value = models.to_number((trial.model_extra or {}).get(info.data["metric"]))
            except ValueError as error:
                raise ValueError(f"{i}.{info.data['metric']}: {error}") from None
        return trials

    @field_validator("chosen", mode="before")
    @classmethod
    def _is_a_trial(cls, chosen: Any, info: ValidationInfo) -> Any:
        if chosen is not None and chosen not in range(len(info.data.get("trials", ()))):
            raise ValueError("must be the number of a trial")
        return chosen

    @property
    def best(self) -> Trial:
        """The trial that was chosen; `chosen` must not be None."""
        assert self.chosen is not None
        return self.trials[self.chosen]


class Comparison(models.Holder):
    """The content of comparison.json. `rules` are in the order of the file, null controls last."""

    interrupted: Any = None  # before `rules`, whose check reads it
    rules: models.Objects[ComparisonRow]
    paired: models.Items[Difference] = []
    tuning: models.Objects[Tuning] = {}

    @field_validator("tuning")
    @classmethod
    def _has_choices(cls, tuning: dict[str, Tuning], info: ValidationInfo) -> dict[str, Tuning]:
        for rule, trials in tuning.items():
            if trials.chosen is None and not info.data.get("interrupted"):
                raise ValueError(f"{rule}.chosen: must be the number of a trial")
        return tuning

    @field_validator("rules")
    @classmethod
    def _sort_rules(
        cls, rules: dict[str, ComparisonRow], info: ValidationInfo
    ) -> dict[str, ComparisonRow]:
        if not rules and not info.data.get("interrupted"):
            raise ValueError("must hold at least one rule")
        return dict(sorted(rules.items(), key=lambda pair: pair[1].control))


class SweepRow(models.Result):
    """One run of a sweep: its folder, its settings, its state, its metrics, why it failed."""

    run: models.Text = ""
    settings: models.Objects[Any] = {}
    state: models.Text = ""
    metrics: models.Objects[Statistic] = {}
    failed: models.Text = ""


class Sweep(models.Holder):
    """The content of sweep.json."""

    runs: models.Items[SweepRow] = []


class MetricsRow(models.Result):
    """One line of metrics.jsonl: `values` maps a metric to `[seeds]`; other keys are means."""

    __pydantic_extra__: dict[str, models.Values]
    epoch: models.MaybeNumber = None
    step: models.MaybeNumber = None
    values: models.Objects[models.Values] = {}


class Series(NamedTuple):
    """One metric over training.

    Args:
      x: `[k]`, epochs or steps.
      values: `[k, seeds]`, NaN if absent.
    """

    x: Floats
    values: Floats


class History(NamedTuple):
    """The content of metrics.jsonl.

    Args:
      axis: the meaning of x: "epoch", "step" or "record".
      series: metric -> its values over training.
    """

    axis: str = "epoch"
    series: Mapping[str, Series] = {}


def read_history(path: Path) -> History:
    """Reads metrics.jsonl as arrays.

    If two lines have the same epoch, the later one counts. Timings are left out. A metric without
    an entry in `values` counts as one seed.

    Args:
      path: the file.

    Returns:
      All metrics; empty if there is no such file.

    Raises:
      DataError: a line is not a JSON object, or a number is wrong. The message names file and line.
    """
    if not path.exists():
        return History()
    rows = []
    for i, line in enumerate(models.read_text(path).split("\n"), start=1):
        if line.strip():
            where = f"{path}:{i}"
            rows.append(MetricsRow.parse(models.read_object(line, where), where))
    axis = next((a for a in ("epoch", "step") if all(a in r.model_fields_set for r in rows)), "")
    # metric -> x -> the values of its seeds
    table: dict[str, dict[float, list[float]]] = {}
    for i, row in enumerate(rows):
        x = models.to_number(getattr(row, axis)) if axis else i + 1.0
        for name, seeds in {**(row.model_extra or {}), **row.values}.items():
            if "seconds" not in name:
                table.setdefault(name, {})[x] = seeds
    return History(axis or "record", {name: _series(points) for name, points in table.items()})


def _series(points: dict[float, list[float]]) -> Series:
    """One metric as arrays, in rising order of x."""
    xs = sorted(points)
    values = np.full((len(xs), max(len(points[x]) for x in xs)), np.nan)
    for row, x in zip(values, xs, strict=True):
        row[: len(points[x])] = points[x]
    return Series(np.asarray(xs, dtype=np.float64), values)
