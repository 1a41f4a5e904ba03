"""Typed models of the result files: summary, comparison, fidelity, sweep, metrics.

They are the one way to read these files. JSON has no NaN and no infinities: null stands for a
number that is not finite. Keys that a model does not name are kept. A file that does not fit ends
as a `DataError` of one line, which names the file and the key.

Only this module of `bpeq.runs` imports pydantic.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from bpeq.types import DataError

Floats = NDArray[np.float64]
T = TypeVar("T")


def _number(value: Any) -> float:
    if value is None:
        return math.nan
    if isinstance(value, int | float) or value in ("NaN", "Infinity", "-Infinity"):
        try:
            return float(value)
        except OverflowError:
            return math.copysign(math.inf, value)
    raise ValueError(f"must be a number, not {_short(value)}")


def _numbers(value: Any) -> list[float]:
    return [_number(item) for item in (value if isinstance(value, list) else [value])]


Number = Annotated[float, BeforeValidator(_number)]
"""A number; null is NaN."""
MaybeNumber = Annotated[float | None, BeforeValidator(lambda v: None if v is None else _number(v))]
"""A number, or null where it is not known."""
Text = Annotated[str, BeforeValidator(lambda v: "" if v is None else str(v))]
Items = Annotated[list[T], BeforeValidator(lambda v: [] if v is None else v)]
Objects = Annotated[dict[str, T], BeforeValidator(lambda v: {} if v is None else v)]
Values = Annotated[list[float], BeforeValidator(_numbers)]
"""Numbers, one a seed; a single number is a list of one."""


class Result(BaseModel):
    """What all models share: unknown keys are kept."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())


class Statistic(Result):
    """A metric over seeds. `values` `[seeds]` may hold NaN for seeds that diverged.

    A file may hold the values alone. Then `mean` and `std` are computed from them.
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
        """The values that are finite."""
        values = np.asarray(self.values, dtype=np.float64)
        return values[np.isfinite(values)]

    @property
    def lost(self) -> int:
        """The number of seeds whose value is not finite."""
        return len(self.values) - len(self.finite)


class Measures(Result):
    """How near a gradient comes to the exact one. NaN where a figure is not finite or not known."""

    relative_error: Number
    cosine: Number
    norm_ratio: Number = math.nan
    sign_agreement: Number = math.nan


class Objective(Measures):
    """The same against the exact gradient of the objective that a rule follows."""

    objective: Text = "its own objective"
    layers: Objects[Measures] = {}
    reference_settled: MaybeNumber = None
    reference_residual: MaybeNumber = None


class Nudge(Result):
    """How far the nudge moves each state, and what the solver left unsettled of it."""

    amplitude: Objects[Number] = {}
    residual: MaybeNumber = None


class RuleFidelity(Measures):
    """The gradient of one rule: all parameters together, layer by layer, and how its phases ended.

    measured: False if the rule has no exact reference. Then `note` gives the reason.
    """

    layers: Objects[Measures] = {}
    converged: Number
    sweeps: Number
    beta: MaybeNumber = None
    error_bar: MaybeNumber = None
    reference: Text = ""
    reference_settled: MaybeNumber = None
    reference_residual: MaybeNumber = None
    nudge: Nudge | None = None
    note: Text = ""
    own_objective: Objective | None = None
    precisions: Objects[Measures] = {}
    measured: bool = True

    @model_validator(mode="before")
    @classmethod
    def _without_reference(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("note") and "relative_error" not in value:
            absent = dict.fromkeys(("relative_error", "cosine", "converged", "sweeps"))
            return {**absent, **value, "measured": False}
        return value

    @property
    def relaxes(self) -> bool:
        """Whether the rule takes sweeps."""
        return self.sweeps != 0


class TrainingFidelity(Result):
    """The fidelity of a rule with its initial and with its trained parameters."""

    rule: Text = ""
    examples: MaybeNumber = None
    initial: RuleFidelity | None = None
    trained: RuleFidelity | None = None

    @property
    def ends(self) -> dict[str, RuleFidelity]:
        """Those of "initial" and "trained" that have figures."""
        both = {"initial": self.initial, "trained": self.trained}
        return {end: row for end, row in both.items() if row is not None and row.measured}


class LayerSize(Result):
    """A layer of a network and its number of parameters."""

    name: Text = ""
    parameters: Number = 0.0


class Holder(Result):
    """What every result file begins with."""

    name: Text = ""
    rule: Text = ""
    seeds: Any = None
    config: Any = None
    environment: Objects[Any] = {}
    data: Any = None
    notes: Items[Text] = []


class Summary(Holder):
    """summary.json."""

    metrics: Objects[Statistic] = {}
    seconds: Objects[Number] = {}
    layers: Items[LayerSize] = []
    pictures: Items[Text] = []
    fidelity: TrainingFidelity | None = None


class ComparisonRow(Result):
    """One rule of a comparison: its metrics, what one gradient costs, how its training ended."""

    metrics: Objects[Statistic] = {}
    cost: Objects[Number] = {}
    control: Annotated[bool, BeforeValidator(bool)] = False
    note: Text = ""
    seconds: Objects[Number] = {}
    fidelity: TrainingFidelity | None = None
    diverged: Text = ""


class Difference(Result):
    """a − b, seed by seed, on one metric: the mean and its interval at `level`, of `n` pairs."""

    a: Text = "?"
    b: Text = "?"
    metric: Text = "difference"
    mean: Number = math.nan
    low: Number = math.nan
    high: Number = math.nan
    level: Number = 0.95
    n: Number = 0.0


class Trial(Result):
    """Settings by their keys in the config. `value`: the metric that they led to, or NaN."""

    settings: Objects[Number] = {}
    failed: Text = ""
    value: Number = math.nan


class Tuning(Result):
    """The trials of one rule, the first with the config's own settings; `chosen` is one of them."""

    metric: Text = "?"
    trials: list[Trial]
    chosen: int = 0

    @field_validator("trials")
    @classmethod
    def _read_metric(cls, trials: list[Trial], info: ValidationInfo) -> list[Trial]:
        for i, trial in enumerate(trials):
            try:
                trial.value = _number((trial.model_extra or {}).get(info.data["metric"]))
            except ValueError as error:
                raise ValueError(f"{i}.{info.data['metric']}: {error}") from None
        return trials

    @field_validator("chosen", mode="before")
    @classmethod
    def _is_a_trial(cls, chosen: Any, info: ValidationInfo) -> Any:
        if chosen not in range(len(info.data.get("trials", ()))):
            raise ValueError("must be the number of a trial")
        return chosen

    @property
    def best(self) -> Trial:
        """The trial that was chosen."""
        return self.trials[self.chosen]


class Comparison(Holder):
    """comparison.json."""

    rules: Objects[ComparisonRow]
    paired: Items[Difference] = []
    tuning: Objects[Tuning] = {}
    interrupted: Any = None

    @field_validator("rules")
    @classmethod
    def _has_rules(cls, rules: dict[str, ComparisonRow]) -> dict[str, ComparisonRow]:
        if not rules:
            raise ValueError("must hold at least one rule")
        return rules


class GridRow(Result):
    """One estimate of a grid: where it stands, its relative error, the share that settled.

    estimator: which of the nudgings of eqprop, empty for other rules. against: the objective whose
    gradient it is set against, empty if that is the cost.
    """

    varied: Text
    rule: Text = ""
    estimator: Text = ""
    precision: Text = ""
    beta: MaybeNumber = None
    points: MaybeNumber = None
    sweeps: MaybeNumber = None
    relative_error: Number
    cosine: Number = math.nan
    converged: Number = 1.0
    against: Text = ""

    @model_validator(mode="before")
    @classmethod
    def _has_its_place(cls, value: Any) -> Any:
        if isinstance(value, dict):
            varied = value.get("varied")
            if varied not in ("beta", "points", "sweeps"):
                raise ValueError(
                    f"varied: must be one of beta, points, sweeps, not {_short(varied)}"
                )
            if varied not in value:
                raise ValueError(f"{varied}: is missing")
            if not _number(value[varied]) > 0:
                raise ValueError(f"{varied}: must be a number > 0, not {_short(value[varied])}")
        return value

    @property
    def x(self) -> float:
        """The value of what varies."""
        return float(getattr(self, self.varied))


class Fit(Result):
    """log10 error = intercept + order · log10 β, fitted over `betas`."""

    betas: Items[Number] = []
    intercept: MaybeNumber = None


class Curvature(Result):
    """The smallest curvature of all examples, and their median."""

    smallest: Number
    median: Number


class Jump(Result):
    """The share of examples that leave their branch at β."""

    beta: Number
    share: Number


class Jumps(Result):
    """The same along the grid of β."""

    betas: Items[Number] = []
    shares: Items[Number] = []

    @model_validator(mode="after")
    def _same_length(self) -> Self:
        if len(self.betas) != len(self.shares):
            raise ValueError(f"shares: must hold a number a beta, {len(self.betas)}")
        return self


class Equilibrium(Result):
    """What the settled states are like. None where it was not measured."""

    curvature: Curvature | None = None
    output_curvature: Curvature | None = None
    asymmetry: MaybeNumber = None
    saturated: Objects[Number] = {}
    jumped: Jump | None = None
    jumped_along: Jumps | None = None
    units: MaybeNumber = None
    examples: MaybeNumber = None
    settled: MaybeNumber = None

    @property
    def along(self) -> list[tuple[float, float]]:
        """β and the share of examples that jump there, from the smallest β on."""
        jumps = self.jumped_along or Jumps()
        return sorted(zip(jumps.betas, jumps.shares, strict=True))


class Gdu(Result):
    """The updates of EP against the gradients of BPTT: their mismatch over β, and its slope."""

    slope: Number = math.nan
    betas: Items[Number] = []
    mismatch: Items[Number] = []

    @model_validator(mode="after")
    def _same_length(self) -> Self:
        if len(self.betas) != len(self.mismatch):
            raise ValueError(f"mismatch: must hold a number a beta, {len(self.betas)}")
        return self


class Fidelity(Holder):
    """fidelity.json."""

    params: Text = ""
    precision: Text = ""
    examples: MaybeNumber = None
    rules: Objects[RuleFidelity]
    grid: Items[GridRow] = []
    bias_order: Objects[Number] = {}
    fit: Objects[Fit] = {}
    radius: MaybeNumber = None
    equilibrium: Equilibrium | None = None
    gdu: Objects[Gdu] = {}

    @field_validator("rules")
    @classmethod
    def _has_rules(cls, rules: dict[str, RuleFidelity]) -> dict[str, RuleFidelity]:
        if not rules:
            raise ValueError("must hold at least one rule")
        return rules

    @property
    def measured(self) -> dict[str, RuleFidelity]:
        """The rules that have figures."""
        return {name: rule for name, rule in self.rules.items() if rule.measured}


class SweepRow(Result):
    """One run of a sweep: its folder, what varies, how it stands, its metrics, why it failed."""

    run: Text = ""
    settings: Objects[Any] = {}
    state: Text = ""
    metrics: Objects[Statistic] = {}
    failed: Text = ""


class Sweep(Holder):
    """sweep.json."""

    runs: Items[SweepRow] = []


class MetricsRow(Result):
    """One line of metrics.jsonl. `values`: metric -> `[seeds]`; the means stand beside it."""

    __pydantic_extra__: dict[str, Values]
    epoch: MaybeNumber = None
    step: MaybeNumber = None
    values: Objects[Values] = {}


class Series(NamedTuple):
    """One metric over training. x `[k]`: epochs or steps. values `[k, seeds]`, NaN where absent."""

    x: Floats
    values: Floats


class History(NamedTuple):
    """metrics.jsonl: what the x axis counts ("epoch", "step" or "record"), and every metric."""

    axis: str = "epoch"
    series: Mapping[str, Series] = {}


Model = TypeVar("Model", bound=Result)


def parse(model: type[Model], value: Any, where: str = "") -> Model:
    """What a value of JSON says, as a typed result.

    Args:
      model: the class that the value must fit.
      value: JSON as Python has it; a result that is one already is returned as it is.
      where: the file, and the line if it has several. A message begins with it.

    Raises:
      DataError: a key is missing or a value has the wrong type; one line names the key.
    """
    before = f"{where}: " if where else ""
    if not isinstance(value, dict | model):
        raise DataError(f"{before}must be a JSON object, not {_short(value)}")
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise DataError(before + _explain(error)) from error


def read(model: type[Model], path: Path) -> Model:
    """Reads one result file.

    Raises:
      DataError: the file is absent, is no JSON object, or does not fit; names file and key.
    """
    return parse(model, _json(read_text(path), f"{path}"), f"{path}")


def read_text(path: Path) -> str:
    """The text of a file. Raises DataError if it is absent or not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def read_history(path: Path) -> History:
    """metrics.jsonl as arrays; empty if there is no such file.

    If two lines have the same epoch the later counts: a resumed run repeats some. Timings are left
    out. A metric without `values` counts as one seed.

    Raises:
      DataError: a line is no JSON object or holds no number where one must be; names file and line.
    """
    if not path.exists():
        return History()
    rows = []
    for i, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            where = f"{path}:{i}"
            rows.append(parse(MetricsRow, _json(line, where), where))
    axis = next((a for a in ("epoch", "step") if all(a in r.model_fields_set for r in rows)), "")
    # metric -> x -> the values of its seeds
    table: dict[str, dict[float, list[float]]] = {}
    for i, row in enumerate(rows):
        x = _number(getattr(row, axis)) if axis else i + 1.0
        for name, seeds in {**(row.model_extra or {}), **row.values}.items():
            if "seconds" not in name:
                table.setdefault(name, {})[x] = seeds
    return History(axis or "record", {name: _series(points) for name, points in table.items()})


def _series(points: dict[float, list[float]]) -> Series:
    xs = sorted(points)
    values = np.full((len(xs), max(len(points[x]) for x in xs)), np.nan)
    for row, x in zip(values, xs, strict=True):
        row[: len(points[x])] = points[x]
    return Series(np.asarray(xs, dtype=np.float64), values)


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f" in line {error.lineno}" if error.lineno > 1 else ""
        raise DataError(
            f"{where}: no valid JSON, truncated or corrupt: {error.msg}{line}"
        ) from error
    except (RecursionError, ValueError) as error:  # nested too deeply, or a number without end
        raise DataError(f"{where}: no valid JSON: {error}") from error


def _explain(error: ValidationError) -> str:
    """The first thing that is wrong, as "key.key: must be a number, not 'x'"."""
    first = error.errors(include_url=False)[0]
    key = " ".join(".".join(map(str, first["loc"])).split())
    kinds = {"missing": "is missing", "list_type": "must be a list"}
    kinds |= dict.fromkeys(("model_type", "dict_type"), "must be an object, not ")
    message = kinds.get(first["type"]) or str(first.get("ctx", {}).get("error") or first["msg"])
    if message.endswith("not "):
        message += _short(first["input"])
    inner = message.partition(": ")[0]  # a validator of several keys names the key itself
    joint = "." if inner.replace(".", "").replace("_", "").isalnum() and ": " in message else ": "
    return f"{key}{joint}{message}" if key else message


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
