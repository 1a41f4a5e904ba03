"""The grids of the microscope: every rule's error over β, N, sweeps and precision."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bpeq.analysis.gradient_fidelity import exact_gradient, judge
from bpeq.config.loading import Config
from bpeq.config.problem import Problem, build
from bpeq.config.registry import resolve
from bpeq.config.schema import ConfigError, fields, wires
from bpeq.core import trees
from bpeq.core.compat import enable_x64
from bpeq.experiment.rule_fidelity import entry
from bpeq.types import Batch, Estimate, Key, LearningRule, Params, Solver, State

Job = Callable[[], dict[str, Any]]
KEYS = ("betas", "points", "sweeps")
_WHAT = {"betas": "a β", "points": "points on a circle", "sweeps": "a count of sweeps"}


class At(NamedTuple):
    """Where everything is measured: one network's weights, one batch, one key."""

    params: Params
    state: State
    batch: Batch
    key: Key


class Look(NamedTuple):
    """One rule's config, its parts, and where it is looked at."""

    config: Config
    problem: Problem
    at: At

    @property
    def name(self) -> str:
        return str(self.config.tree["rule"]["name"])

    @property
    def knob(self) -> str:
        """The traced setting that a grid over β varies: coupled learning's is called eta."""
        known = self.at.state if isinstance(self.at.state, dict) else {}
        return next((name for name in ("beta", "eta") if name in known), "")


class Variant(NamedTuple):
    """A rule in one of the settings of a grid, with the β to try, its N and its phases' sweeps.

    estimator: which of eqprop's nudgings; empty for other rules. betas: None: the rule's own.
    """

    estimator: str
    rule: LearningRule
    betas: list[float | None]
    points: int | None = None
    sweeps: int | None = None


def grid_jobs(looks: Sequence[Look]) -> tuple[list[tuple[str, Job]], list[str]]:
    """What to run for the grids that [fidelity] asks for, and what there is to note.

    Args:
      looks: of one config under several rules; those that have nothing to vary are noted.

    Raises:
      ConfigError: a nudging that the system does not allow.
    """
    settings = looks[0].config.tree.get("fidelity", {})
    known = [look for look in looks if look.problem.rule.info.reference is not None]
    exacts = {look.name: functools.cache(functools.partial(_exact, look)) for look in known}
    jobs: list[tuple[str, Job]] = []
    notes: list[str] = []
    for key in (key for key in KEYS if settings.get(key)):
        found = {look.name: (look, list(_variants(look, key))) for look in known}
        without = [look.name for look in looks if not found.get(look.name, (look, []))[1]]
        if without:
            notes.append(f"Without {_WHAT[key]}, not in the grid over it: {', '.join(without)}.")
        for precision in precisions(looks[0].config):
            for name, (look, variants) in found.items():
                if variants:
                    job = functools.partial(_grid, look, key, variants, precision, exacts[name])
                    jobs.append((f"{key}, {name}, {precision}", job))
    return jobs, notes


def precisions(config: Config) -> list[str]:
    """Those that [fidelity] asks for; the config's own without."""
    return list(config.tree.get("fidelity", {}).get("precisions") or [config.tree["precision"]])


def _exact(look: Look, precision: str) -> Estimate:
    """The exact gradient that the rule is after: of its own objective, if it has one."""
    rule = look.problem.rule
    with enable_x64(precision == "float64"):
        at = trees.cast(look.at, jnp.result_type(float))
        aim = rule.info.objective or rule.info.reference
        return exact_gradient(rule, at.params, at.batch, key=at.key, reference=aim)


def _grid(
    look: Look,
    key: str,
    variants: Sequence[Variant],
    precision: str,
    exact: Callable[[str], Estimate],
) -> dict[str, Any]:
    """A row for every variant and β: the estimate against one exact gradient."""
    rows: list[dict[str, Any]] = []
    objective = look.problem.rule.info.objective
    with enable_x64(precision == "float64"):
        at = trees.cast(look.at, jnp.result_type(float))
        for each in variants:
            estimate = jax.jit(each.rule.estimate)
            for beta in each.betas:
                state = at.state
                if beta is not None:
                    state = {**state, look.knob: jnp.asarray(beta, jnp.result_type(float))}
                elif look.knob:  # as the config's own precision has it, in every precision
                    beta = float(look.at.state[look.knob])
                made, _ = estimate(at.params, at.batch, state, at.key)
                rows.append(
                    {
                        **entry(judge(made, exact(precision), look.problem.network)),
                        "rule": look.name,
                        "estimator": each.estimator,
                        "beta": beta,
                        "points": each.points,
                        "phase_sweeps": each.sweeps,
                        "precision": precision,
                        "varied": "beta" if key == "betas" else key,
                        **({} if objective is None else {"against": objective.name}),
                    }
                )
    return {"grid": rows}


def _variants(look: Look, key: str) -> Iterator[Variant]:
    """The rule in the settings of one of the grids; none where it has nothing to vary."""
    settings, own = look.config.tree["fidelity"], look.config.tree["rule"]
    counts = settings["sweeps"] if key == "sweeps" else [None]
    if own["name"] == "eqprop":
        betas = settings["betas"] if key == "betas" else [_number(own["beta"])]
        for name in _nudgings(look, key):
            for sweeps in counts:
                yield _eqprop(look, name, betas, sweeps)
    elif key == "betas" and look.knob:
        betas = [beta for beta in settings["betas"] if look.knob == "beta" or beta <= 1]
        yield Variant("", look.problem.rule, betas)
    elif key == "sweeps" and _with_sweeps(look.config, 1) is not None:
        for sweeps in settings["sweeps"]:
            changed = _with_sweeps(look.config, sweeps)
            assert changed is not None
            yield Variant("", build(changed, look.problem.data).rule, [None], sweeps=sweeps)


def _nudgings(look: Look, key: str) -> list[str]:
    settings = look.config.tree["fidelity"]
    if key == "points":
        return [f"holomorphic-{n}" for n in settings["points"]]
    assert look.problem.system is not None
    short = look.config.tree["rule"].get("relaxation", "same") != "same"
    smooth = [] if short or look.problem.system.traits.not_holomorphic else ["holomorphic-4"]
    return settings.get("nudgings") or ["one-sided", "centered", *smooth]


def _eqprop(look: Look, name: str, betas: list[float | None], sweeps: int | None) -> Variant:
    circle, _, number = name.rpartition("-")
    points = int(number) if number.isdecimal() else None
    nudging = {"nudging": circle, "points": points} if points else {"nudging": name}
    rule = {**nudging, "beta": _number(look.config.tree["rule"]["beta"])}
    config = look.config if sweeps is None else _with_sweeps(look.config, sweeps)
    assert config is not None
    try:
        made = build(config.changed(rule=rule), look.problem.data).rule
    except ConfigError as error:
        reason = str(error.__cause__ or error)
        raise look.config.fault("fidelity.nudgings", name, reason) from error
    return Variant(name, made, betas, points, sweeps)


def _with_sweeps(config: Config, sweeps: int) -> Config | None:
    """All of the rule's phases, and its own count, run for so many sweeps; None without any."""
    own = config.tree["rule"]
    factory = resolve("rules", own["name"], config.folder)
    phases = [name for name, word in wires(factory).items() if word is Solver]
    solvers = {n: {"name": "fixed_steps", "steps": sweeps} for n in phases if n != "evaluation"}
    counted: dict[str, int] = {key: sweeps for key in ("sweeps", "steps") if key in fields(factory)}
    if own.get("inference") == "timed":  # as many steps as there are blocks
        counted = {}
    if own.get("truncate"):
        counted["truncate"] = min(own["truncate"], sweeps)
    return config.changed(solvers=solvers, rule=counted) if solvers or counted else None


def _number(beta: Any) -> float:
    """ "auto" is no point of a grid."""
    return beta if isinstance(beta, float) else 0.1
