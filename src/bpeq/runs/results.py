# ruff: noqa: RUF012 (pydantic copies the defaults of its fields)
"""Typed models of the result files: summary, comparison, fidelity, sweep, metrics.

All result files are read through these models. JSON has no NaN and no infinities; null stands for a
number that is not finite. Unknown keys are kept. A wrong file causes a `DataError` of one line,
which names the file and the key.

Only this module and the modules that it imports use pydantic, not the rest of `bpeq.runs`.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Self

import numpy as np
from pydantic import BeforeValidator, ValidationInfo, field_validator, model_validator

from bpeq.runs.fidelity_results import (
    Equilibrium,
    Fidelity,
    Fit,
    Gdu,
    GridRow,
    Measures,
    Objective,
    RuleFidelity,
    TrainingFidelity,
)
from bpeq.runs.history import Floats, History, MetricsRow, Series, read_history
from bpeq.runs.json_models import (
    Holder,
    Items,
    Number,
    Objects,
    Result,
    Text,
    Values,
    parse,
    read,
    read_text,
    to_number,
)

__all__ = [
    "Comparison",
    "ComparisonRow",
    "Difference",
    "Equilibrium",
    "Fidelity",
    "Fit",
    "Floats",
    "Gdu",
    "GridRow",
    "History",
    "Holder",
    "LayerSize",
    "Measures",
    "MetricsRow",
    "Objective",
    "Result",
    "RuleFidelity",
    "Series",
    "Statistic",
    "Summary",
    "Sweep",
    "SweepRow",
    "TrainingFidelity",
    "Trial",
    "Tuning",
    "parse",
    "read",
    "read_history",
    "read_text",
]


class Statistic(Result):
    """A metric over seeds. `values` `[seeds]` may hold NaN for seeds that diverged.

    A file may hold only the values. `mean` and `std` are then computed from them.
    """

    values: Values = []
    mean: Number = math.nan
    std: Number = math.nan

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


class LayerSize(Result):
    """A layer of a network and its number of parameters."""

    name: Text = ""
    parameters: Number = 0.0


class Summary(Holder):
    """The content of summary.json."""

    metrics: Objects[Statistic] = {}
    seconds: Objects[Number] = {}
    layers: Items[LayerSize] = []
    pictures: Items[Text] = []
    fidelity: TrainingFidelity | None = None


class ComparisonRow(Result):
    """One rule of a comparison: its metrics, the cost of one gradient, how its training ended."""

    metrics: Objects[Statistic] = {}
    cost: Objects[Number] = {}
    control: Annotated[bool, BeforeValidator(bool)] = False
    note: Text = ""
    seconds: Objects[Number] = {}
    fidelity: TrainingFidelity | None = None
    diverged: Text = ""


class Difference(Result):
    """a − b of one metric, seed by seed: the mean, and its interval at `level` for `n` pairs."""

    a: Text = "?"
    b: Text = "?"
    metric: Text = "difference"
    mean: Number = math.nan
    low: Number = math.nan
    high: Number = math.nan
    level: Number = 0.95
    n: Number = 0.0


class Trial(Result):
    """The settings of a trial by their keys in the config. `value` is its metric, or NaN."""

    settings: Objects[Number] = {}
    failed: Text = ""
    value: Number = math.nan


class Tuning(Result):
    """The trials of one rule. The first has the config's settings; `chosen` is the best one.

    `chosen` is None where the tuning was interrupted.
    """

    metric: Text = "?"
    trials: list[Trial]
    chosen: int | None = 0

    @field_validator("trials")
    @classmethod
    def _read_metric(cls, trials: list[Trial], info: ValidationInfo) -> list[Trial]:
        for i, trial in enumerate(trials):
            try:
                trial.value = to_number((trial.model_extra or {}).get(info.data["metric"]))
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


class Comparison(Holder):
    """The content of comparison.json."""

    interrupted: Any = None  # before `rules`, whose check reads it
    rules: Objects[ComparisonRow]
    paired: Items[Difference] = []
    tuning: Objects[Tuning] = {}

    @field_validator("tuning")
    @classmethod
    def _has_choices(cls, tuning: dict[str, Tuning], info: ValidationInfo) -> dict[str, Tuning]:
        for rule, trials in tuning.items():
            if trials.chosen is None and not info.data.get("interrupted"):
                raise ValueError(f"{rule}.chosen: must be the number of a trial")
        return tuning

    @field_validator("rules")
    @classmethod
    def _has_rules(
        cls, rules: dict[str, ComparisonRow], info: ValidationInfo
    ) -> dict[str, ComparisonRow]:
        if not rules and not info.data.get("interrupted"):
            raise ValueError("must hold at least one rule")
        return rules


class SweepRow(Result):
    """One run of a sweep: its folder, its settings, its state, its metrics, why it failed."""

    run: Text = ""
    settings: Objects[Any] = {}
    state: Text = ""
    metrics: Objects[Statistic] = {}
    failed: Text = ""


class Sweep(Holder):
    """The content of sweep.json."""

    runs: Items[SweepRow] = []
