# ruff: noqa: RUF012 (pydantic copies the defaults of its fields)
"""fidelity.json as typed models, and the fidelity of a run before and after training."""

from __future__ import annotations

import math
from typing import Any, Self

from pydantic import field_validator, model_validator

from bpeq.runs import json_models as models


class Measures(models.Result):
    """The difference between a gradient and the exact one; NaN if not finite or unknown."""

    relative_error: models.Number
    cosine: models.Number
    norm_ratio: models.Number = math.nan
    sign_agreement: models.Number = math.nan


class Objective(Measures):
    """The difference between a gradient and the exact gradient of the rule's own objective."""

    objective: models.Text = "its own objective"
    layers: models.Objects[Measures] = {}
    reference_settled: models.MaybeNumber = None
    reference_residual: models.MaybeNumber = None


class Nudge(models.Result):
    """How far the nudge moves each state, and the residual of its solver."""

    amplitude: models.Objects[models.Number] = {}
    residual: models.MaybeNumber = None


class RuleFidelity(Measures):
    """The gradient of one rule: in total, by layer, and how its phases ended.

    measured: False if the rule has no exact reference. `note` then gives the reason.
    """

    layers: models.Objects[Measures] = {}
    converged: models.Number
    sweeps: models.Number
    beta: models.MaybeNumber = None
    error_bar: models.MaybeNumber = None
    reference: models.Text = ""
    reference_settled: models.MaybeNumber = None
    reference_residual: models.MaybeNumber = None
    nudge: Nudge | None = None
    note: models.Text = ""
    own_objective: Objective | None = None
    precisions: models.Objects[Measures] = {}
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
        """Whether the rule relaxes, and so takes sweeps."""
        return self.sweeps != 0

    @property
    def parts(self) -> dict[tuple[str, ...], Measures]:
        """The measures of the whole gradient, (), and of each layer, (LAYER,).

        Those against the rule's own objective follow: ("own objective",) and its layers.
        """
        parts: dict[tuple[str, ...], Measures] = {(): self}
        parts |= {(layer,): m for layer, m in self.layers.items()}
        if (own := self.own_objective) is not None:
            parts |= {("own objective",): own}
            parts |= {("own objective", layer): m for layer, m in own.layers.items()}
        return parts


class TrainingFidelity(models.Result):
    """The fidelity of a rule at its initial and at its trained parameters."""

    rule: models.Text = ""
    examples: models.MaybeNumber = None
    initial: RuleFidelity | None = None
    trained: RuleFidelity | None = None

    @property
    def ends(self) -> dict[str, RuleFidelity]:
        """The rows "initial" and "trained" that were measured."""
        both = {"initial": self.initial, "trained": self.trained}
        return {end: row for end, row in both.items() if row is not None and row.measured}


class GridRow(models.Result):
    """One estimate of a grid: its settings, its relative error, the share of settled phases.

    estimator: the nudging of eqprop, empty for other rules. against: the objective whose gradient
    is the reference, empty if it is the cost.
    """

    varied: models.Text
    rule: models.Text = ""
    estimator: models.Text = ""
    precision: models.Text = ""
    beta: models.MaybeNumber = None
    points: models.MaybeNumber = None
    sweeps: models.MaybeNumber = None
    relative_error: models.Number
    cosine: models.Number = math.nan
    converged: models.Number = 1.0
    against: models.Text = ""

    @model_validator(mode="before")
    @classmethod
    def _has_its_place(cls, value: Any) -> Any:
        if isinstance(value, dict):
            varied = value.get("varied")
            if varied not in ("beta", "points", "sweeps"):
                raise ValueError(
                    f"varied: must be one of beta, points, sweeps, not {models.shorten(varied)}"
                )
            if varied not in value:
                raise ValueError(f"{varied}: is missing")
            if not models.to_number(value[varied]) > 0:
                raise ValueError(
                    f"{varied}: must be a number > 0, not {models.shorten(value[varied])}"
                )
        return value

    @property
    def x(self) -> float:
        """The value of the varied setting."""
        return float(getattr(self, self.varied))


class Fit(models.Result):
    """log10 error = intercept + order · log10 β, fitted over `betas`.

    `error` is the error bar of the order, `theory` the theoretical order. `residuals` are log10 of
    the error less the line. `reason` says why no range of β holds.
    """

    betas: models.Items[models.Number] = []
    intercept: models.MaybeNumber = None
    error: models.MaybeNumber = None
    residuals: models.Items[models.Number] = []
    theory: models.MaybeNumber = None
    reason: models.Text = ""


class Pole(models.Result):
    """The fit of the distance to the nearest pole over `points` of N. `error` is its error bar."""

    points: models.Items[models.Number] = []
    error: models.MaybeNumber = None
    residuals: models.Items[models.Number] = []
    reason: models.Text = ""


class Curvature(models.Result):
    """The smallest curvature over all examples, and the median."""

    smallest: models.Number
    median: models.Number


class Jump(models.Result):
    """The share of examples that jump to another branch at β."""

    beta: models.Number
    share: models.Number


class OverBetas(models.Result):
    """Lists of numbers over β, all of the same length."""

    betas: models.Items[models.Number] = []

    @model_validator(mode="after")
    def _same_length(self) -> Self:
        for name in type(self).model_fields:
            values = getattr(self, name)
            if isinstance(values, list) and len(values) != len(self.betas):
                raise ValueError(f"{name}: must hold a number a beta, {len(self.betas)}")
        return self


class Jumps(OverBetas):
    """The shares of examples that jump, along the grid of β."""

    shares: models.Items[models.Number] = []


class Equilibrium(models.Result):
    """Measurements of the settled states; None for those that were not made."""

    curvature: Curvature | None = None
    output_curvature: Curvature | None = None
    asymmetry: models.MaybeNumber = None
    saturated: models.Objects[models.Number] = {}
    jumped: Jump | None = None
    jumped_along: Jumps | None = None
    units: models.MaybeNumber = None
    examples: models.MaybeNumber = None
    settled: models.MaybeNumber = None

    @property
    def along(self) -> list[tuple[float, float]]:
        """β and the share of examples that jump there, in rising order of β."""
        jumps = self.jumped_along or Jumps()
        return sorted(zip(jumps.betas, jumps.shares, strict=True))


class Gdu(OverBetas):
    """EP's updates against BPTT's gradients: their mismatch over β, and its slope."""

    slope: models.Number = math.nan
    fit: Fit = Fit()
    mismatch: models.Items[models.Number] = []


class Fidelity(models.Holder):
    """The content of fidelity.json."""

    params: models.Text = ""
    precision: models.Text = ""
    examples: models.MaybeNumber = None
    rules: models.Objects[RuleFidelity]
    grid: models.Items[GridRow] = []
    bias_order: models.Objects[models.Number] = {}
    fit: models.Objects[Fit] = {}
    radius: models.MaybeNumber = None
    pole: Pole = Pole()
    equilibrium: Equilibrium | None = None
    gdu: models.Objects[Gdu] = {}

    @field_validator("rules")
    @classmethod
    def _has_rules(cls, rules: dict[str, RuleFidelity]) -> dict[str, RuleFidelity]:
        if not rules:
            raise ValueError("must hold at least one rule")
        return rules

    @property
    def measured(self) -> dict[str, RuleFidelity]:
        """The rules that have measurements."""
        return {name: rule for name, rule in self.rules.items() if rule.measured}
