"""The grids of `bpeq fidelity`: the error of every rule over β, N, sweeps and precision."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bpeq.analysis.gradient_fidelity import exact_gradient, judge
from bpeq.config.errors import ConfigError
from bpeq.config.loading import Config
from bpeq.config.problem import Problem, build
from bpeq.config.schema import wires
from bpeq.experiment.rule_fidelity import OperatingPoint, fidelity_entry
from bpeq.types import Estimate, LearningRule, RuleInfo, Solver

GRIDS = {"betas": "a β", "points": "points on a circle", "sweeps": "a count of sweeps"}
"""The grids of [fidelity], and what a rule must have for each of them."""


class RuleUnderTest(NamedTuple):
    """One rule: its config, its parts, and the point where it is measured.

    Args:
      config: the config under this rule.
      problem: the built parts of the config.
      point: weights, examples and key.
    """

    config: Config
    problem: Problem
    point: OperatingPoint

    @property
    def name(self) -> str:
        """The rule's name in the config."""
        return self.config.rule.name

    @property
    def info(self) -> RuleInfo:
        """What the rule declares."""
        return self.problem.rule.info

    @property
    def precisions(self) -> list[str]:
        """The precisions of the grids; the config's own if [fidelity] names none."""
        asked: Sequence[str] | None = self.config.fidelity.precisions
        return list(asked or [self.config.precision])

    @property
    def own_beta(self) -> float | None:
        """The β of the config.

        It is 0.1 for "auto", because a grid needs a number; None for a rule without β.
        """
        beta = self.config.rule.settings.get(self.info.beta)
        if beta is None and self.info.beta:
            return float(self.point.state[self.info.beta])
        return 0.1 if beta == "auto" else beta


class Variant(NamedTuple):
    """A rule under one setting of a grid.

    Args:
      estimator: the nudging, such as "holomorphic-4"; empty if the rule keeps its own.
      rule: the rule with this setting.
      betas: the values of β to try; [None] for a rule without β.
      sweeps: the number of sweeps of every phase; None if the phases keep their solvers.
    """

    estimator: str
    rule: LearningRule
    betas: Sequence[float | None]
    sweeps: int | None

    @property
    def points(self) -> int | None:
        """N of a holomorphic estimator; None for other estimators."""
        number = self.estimator.rpartition("-")[2]
        return int(number) if number.isdecimal() else None


Job = tuple[str, Callable[[], list[dict[str, Any]]]]
"""A label, and a function that measures the rows of a grid."""


def grid_jobs(rules: Sequence[RuleUnderTest]) -> tuple[list[Job], list[str]]:
    """Prepares the grids that [fidelity] lists.

    Args:
      rules: one config under several rules.

    Returns:
      The measurements, and notes. A note names the rules that a grid leaves out, because they lack
      the setting that the grid varies.

    Raises:
      ConfigError: the system does not allow a nudging.
    """
    by_name = {rule.name: rule for rule in rules}

    @functools.cache
    def exact(name: str, precision: str) -> Estimate:
        """The exact gradient of the rule's own objective, or of its function without one."""
        info = by_name[name].info
        with by_name[name].point.cast(precision) as (params, _, batch, key):
            aim = info.objective or info.reference
            rule = by_name[name].problem.rule
            return exact_gradient(rule, params, batch, key=key, reference=aim)

    jobs: list[Job] = []
    notes = []
    for grid in (grid for grid in GRIDS if getattr(rules[0].config.fidelity, grid)):
        variants = {rule.name: list(_variants(rule, grid)) for rule in rules}
        without = ", ".join(name for name, found in variants.items() if not found)
        if without:
            notes.append(f"Without {GRIDS[grid]}, not in the grid over it: {without}.")
        for precision in rules[0].precisions:
            for rule in (rule for rule in rules if variants[rule.name]):
                measure = functools.partial(
                    _grid_rows, rule, grid, variants[rule.name], precision, exact
                )
                jobs.append((f"{grid}, {rule.name}, {precision}", measure))
    return jobs, notes


def _grid_rows(
    rule: RuleUnderTest,
    grid: str,
    variants: Sequence[Variant],
    precision: str,
    exact: Callable[[str, str], Estimate],
) -> list[dict[str, Any]]:
    """Measures one row for every variant and β: the estimate against the exact gradient."""
    rows = []
    with rule.point.cast(precision) as (params, state, batch, key):
        for variant in variants:
            estimate = jax.jit(variant.rule.estimate)
            for beta in variant.betas:
                if beta is not None:
                    state = {**state, rule.info.beta: jnp.asarray(beta, jnp.result_type(float))}
                gradients, _ = estimate(params, batch, state, key)
                fidelity = judge(gradients, exact(rule.name, precision), rule.problem.network)
                row = {
                    **fidelity_entry(fidelity),
                    "rule": rule.name,
                    "estimator": variant.estimator,
                    "beta": beta,
                    "points": variant.points,
                    "phase_sweeps": variant.sweeps,
                    "precision": precision,
                    "varied": "beta" if grid == "betas" else grid,
                }
                if rule.info.objective is not None:
                    row["against"] = rule.info.objective.name
                rows.append(row)
    return rows


def _variants(rule: RuleUnderTest, grid: str) -> Iterator[Variant]:
    """Yields the rule under every setting of a grid, or nothing if the rule lacks the setting."""
    info, asked = rule.info, rule.config.fidelity
    missing = {"betas": not info.beta, "points": not info.nudgings, "sweeps": False}[grid]
    if info.reference is None or missing:
        return
    names: Sequence[str] = [""]
    if grid == "points":
        names = [f"holomorphic-{n}" for n in asked.points or ()]
    elif info.nudgings:
        names = asked.nudgings or info.nudgings
    betas = [rule.own_beta]
    if grid == "betas":
        betas = [beta for beta in asked.betas or () if beta <= info.beta_max]
    for name in names:
        for sweeps in asked.sweeps or () if grid == "sweeps" else [None]:
            config = rule.config if sweeps is None else _with_sweeps(rule, sweeps)
            if config is None:
                return
            variant = Variant(name, rule.problem.rule, betas, sweeps)
            if name or sweeps is not None:
                variant = variant._replace(rule=_rebuilt(rule, config, variant))
            yield variant


def _with_sweeps(rule: RuleUnderTest, sweeps: int) -> Config | None:
    """The config in which every phase runs `sweeps` sweeps; None if the rule has no phases."""
    phases = [name for name, word in wires(rule.config.rule.factory).items() if word is Solver]
    solvers = {n: {"name": "fixed_steps", "steps": sweeps} for n in phases if n != "evaluation"}
    counts = rule.info.sweep_settings(sweeps) if rule.info.sweep_settings else {}
    return rule.config.changed(solvers=solvers, rule=counts) if solvers or counts else None


def _rebuilt(rule: RuleUnderTest, config: Config, variant: Variant) -> LearningRule:
    """Builds the rule of a changed config, with the nudging of a variant."""
    name, data = variant.estimator, rule.problem.data
    if not name:
        return build(config, data).rule
    nudging: dict[str, Any] = {"nudging": name}
    if variant.points:
        nudging = {"nudging": name.rpartition("-")[0], "points": variant.points}
    try:
        return build(config.changed(rule={**nudging, rule.info.beta: rule.own_beta}), data).rule
    except ConfigError as error:
        reason = str(error.__cause__ or error)
        raise rule.config.error("fidelity.nudgings", name, reason) from error
