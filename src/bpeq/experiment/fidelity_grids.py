"""The grids of `bpeq fidelity`: the error of every rule over β, N, sweeps and precision."""

from __future__ import annotations

import functools
import itertools
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
      rule: the rule with this setting.
      betas: the values of β to try; [None] for a rule without β.
      setting: the entries of its rows that name the setting: `estimator`, the nudging, such as
        "holomorphic-4" (empty if the rule keeps its own); `points`, N of a holomorphic one; and
        `phase_sweeps`, the sweeps of every phase. None: the rule keeps its own.
    """

    rule: LearningRule
    betas: Sequence[float | None]
    setting: dict[str, Any]


Job = tuple[str, Callable[[], None]]
"""A label, and a function that measures something and adds it to the result."""


def grid_jobs(rules: Sequence[RuleUnderTest], result: dict[str, Any]) -> list[Job]:
    """Prepares the grids that [fidelity] lists.

    Args:
      rules: one config under several rules.
      result: the content of fidelity.json. Its `grid` gets the rows when the jobs run. Its `notes`
        get the names of the rules that a grid leaves out, because they lack the setting that the
        grid varies.

    Returns:
      The measurements.

    Raises:
      ConfigError: the system does not allow a nudging.
    """
    by_name = {rule.name: rule for rule in rules}

    @functools.cache
    def exact(name: str, precision: str) -> Estimate:
        """The exact gradient of the rule's own objective, or of its function without one."""
        rule = by_name[name].problem.rule
        with by_name[name].point.cast(precision) as (params, _, batch, key):
            aim = rule.info.objective or rule.info.reference
            return exact_gradient(rule, params, batch, key=key, reference=aim)

    jobs: list[Job] = []
    asked, own = rules[0].config.fidelity, rules[0].config.precision
    for grid in (grid for grid in GRIDS if getattr(asked, grid)):
        variants = {rule.name: list(_variants(rule, grid)) for rule in rules}
        without = ", ".join(name for name, each in variants.items() if not each)
        if without:
            note = f"Without {GRIDS[grid]}, not in the grid over it: {without}."
            result["notes"].append(note)
        included = [rule for rule in rules if variants[rule.name]]
        for precision, rule in itertools.product(asked.precisions or (own,), included):
            args = (result["grid"], rule, grid, variants[rule.name], precision, exact)
            label = f"{grid}, {rule.name}, {precision}"
            jobs.append((label, functools.partial(_add_rows, *args)))
    return jobs


def _add_rows(
    rows: list[dict[str, Any]],
    rule: RuleUnderTest,
    grid: str,
    variants: Sequence[Variant],
    precision: str,
    exact: Callable[[str, str], Estimate],
) -> None:
    """Adds one row for every variant and β: the estimate against the exact gradient."""
    varied = {"precision": precision, "varied": "beta" if grid == "betas" else grid}
    if rule.info.objective is not None:
        varied["against"] = rule.info.objective.name
    with rule.point.cast(precision) as (params, state, batch, key):
        for variant in variants:
            estimate = jax.jit(variant.rule.estimate)
            for beta in variant.betas:
                if beta is not None:
                    state = {**state, rule.info.beta: jnp.asarray(beta, jnp.result_type(float))}
                gradients, _ = estimate(params, batch, state, key)
                fidelity = judge(gradients, exact(rule.name, precision), rule.problem.network)
                order = variant.rule.info.order or None
                setting = {"rule": rule.name, **variant.setting, "beta": beta, "order": order}
                rows.append({**fidelity_entry(fidelity), **setting, **varied})


def _variants(rule: RuleUnderTest, grid: str) -> Iterator[Variant]:
    """Yields the rule under every setting of a grid, or nothing if the rule lacks the setting."""
    info, asked, data = rule.info, rule.config.fidelity, rule.problem.data
    missing = {"betas": not info.beta, "points": not info.nudgings, "sweeps": False}[grid]
    if info.reference is None or missing:
        return
    # The values of all settings: those of the grid, else the rule's own.
    betas: list[float | None] = [rule.own_beta]
    names = list(asked.nudgings or info.nudgings) if info.nudgings else [""]
    if grid == "points":
        names = [f"holomorphic-{n}" for n in asked.points or ()]
    elif grid == "betas":
        betas = [beta for beta in asked.betas or () if beta <= info.beta_max]
    counts = asked.sweeps or () if grid == "sweeps" else [None]
    # Build the rule under every combination of a nudging and a count of sweeps.
    for name, sweeps in itertools.product(names, counts):
        config = rule.config if sweeps is None else _with_sweeps(rule, sweeps)
        if config is None:
            return
        built = rule.problem.rule
        word, _, number = name.rpartition("-")
        points = int(number) if number.isdecimal() else None
        try:
            if name:
                nudging = (
                    {"nudging": name} if points is None else {"nudging": word, "points": points}
                )
                config = config.changed(rule={**nudging, info.beta: rule.own_beta})
            if config is not rule.config:
                built = build(config, data).rule
        except ConfigError as error:
            if not name:
                raise
            reason = str(error.__cause__ or error)
            raise rule.config.error("fidelity.nudgings", name, reason) from error
        setting = {"estimator": name, "points": points, "phase_sweeps": sweeps}
        yield Variant(built, betas, setting)


def _with_sweeps(rule: RuleUnderTest, sweeps: int) -> Config | None:
    """The config in which every phase runs `sweeps` sweeps; None if the rule has no phases."""
    phases = [name for name, word in wires(rule.config.rule.factory).items() if word is Solver]
    solvers = {n: {"name": "fixed_steps", "steps": sweeps} for n in phases if n != "evaluation"}
    counts = rule.info.sweep_settings(sweeps) if rule.info.sweep_settings else {}
    return rule.config.changed(solvers=solvers, rule=counts) if solvers or counts else None
