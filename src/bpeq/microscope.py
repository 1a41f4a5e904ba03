"""`bpeq fidelity`: what each rule of a config estimates, at which β, N, sweeps and precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bpeq import runs, trees
from bpeq.config import Config
from bpeq.equilibrium import curvature, jumped
from bpeq.fidelity import exact_gradient, judge
from bpeq.gdu import gdu_mismatch
from bpeq.loading import weights_like
from bpeq.orders import fits
from bpeq.probe import entry, first_examples, probe, state_names
from bpeq.problem import Problem, build, seed_keys
from bpeq.rules import eqprop
from bpeq.solvers import fixed_steps
from bpeq.types import Batch, Key, LearningRule, Params, Solver, State, System

Progress = Callable[[int, int, dict[str, Any]], None]
Job = Callable[[], dict[str, Any]]
CURVED = 8  # examples whose curvature is computed
GDU_BETAS: Any = {"one-sided": [1e-2, 1e-3, 1e-4, 1e-5], "centered": [1e-1, 3e-2, 1e-2, 3e-3]}


class _At(NamedTuple):
    """Where everything is measured: one network's weights, one batch, one key."""

    params: Params
    state: State
    batch: Batch
    key: Key


class _Look(NamedTuple):
    """One rule's config, its parts, and where it is looked at."""

    config: Config
    problem: Problem
    at: _At


class _Estimator(NamedTuple):
    """One of eqprop's nudgings, with the β to try, its N and the sweeps of each of its phases."""

    name: str
    rule: LearningRule
    betas: list[float]
    points: int | None
    sweeps: int | None


def measure(
    config: Config,
    rules: Sequence[str],
    folder: Path,
    trained: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Sets rules against the exact gradient of their own function, and writes fidelity.json.

    Args:
      rules: names or dotted paths, each with its own [rules.NAME] settings.
      trained: a run folder whose first seed's weights are used, in place of the initial ones.

    Raises:
      ConfigError, DataError, FileExistsError: before anything is measured.
    """
    jobs, examples = _jobs({name: config.with_rule(name) for name in rules}, trained)
    runs.claim(folder)
    done: dict[str, Any] = {"rules": {}, "grid": [], "notes": []}
    for i, (label, job) in enumerate(jobs):
        if progress is not None:
            progress(i, len(jobs), {"said": label})
        _lay(done, job())
    if progress is not None:
        progress(len(jobs), len(jobs), {"said": ""})
    result = {
        "name": config.name,
        "config": config.tree,
        "params": "initial" if trained is None else str(trained),
        "examples": examples,
        "precision": config.tree["precision"],
        **done,
        **fits(done["grid"]),
        "environment": runs.environment(),
    }
    runs.write_json(folder / "fidelity.json", result)
    return result


def _jobs(configs: dict[str, Config], trained: Path | None) -> tuple[list[tuple[str, Job]], int]:
    """What is to be measured, all built so that bad input is found first; on how many examples."""
    jobs: list[tuple[str, Job]] = []
    looks: dict[str, _Look] = {}
    for name, config in configs.items():
        problem = build(config)
        looks[name] = _Look(config, problem, _at(config, problem, trained))
        jobs.append((name, partial(_rule, name, looks[name])))
    look = looks.get("eqprop", next(iter(looks.values())))
    settings, system = look.config.tree.get("fidelity", {}), look.problem.system
    examples = len(look.at.batch.x)
    if system is None:
        return jobs, examples
    grids = [key for key in ("betas", "points", "sweeps") if settings.get(key)]
    needy = grids + ["gdu"] * bool(settings.get("gdu"))
    if needy and (system.energy is None or system.denergy is None):
        remedy = f"asks what eqprop does, which needs an energy; {system.name!r} has none"
        raise look.config.fault(f"fidelity.{needy[0]}", settings[needy[0]], remedy)
    for precision in settings.get("precisions", [look.config.tree["precision"]]):
        for key in grids:
            estimators = _estimators(look, key)
            jobs.append((f"{key}, {precision}", partial(_grid, look, key, estimators, precision)))
    jobs.append(("equilibrium", partial(_equilibrium, look)))
    if settings.get("gdu"):
        jobs.append(("GDU", partial(_gdu, look)))
    return jobs, examples


def _lay(done: dict[str, Any], part: dict[str, Any]) -> None:
    for key, value in part.items():
        if isinstance(value, dict):
            done.setdefault(key, {}).update(value)
        else:
            done.setdefault(key, []).extend(value)


def _rule(name: str, look: _Look) -> dict[str, Any]:
    at = look.at
    with jax.enable_x64(look.config.tree["precision"] == "float64"):
        return {"rules": {name: probe(look.problem, at.params, at.state, at.batch, at.key)}}


def _estimators(look: _Look, varied: str) -> list[_Estimator]:
    """The eqprop rules of one of the grids that [fidelity] asks for."""
    settings, own = look.config.tree["fidelity"], look.config.tree["rule"]
    assert look.problem.system is not None
    beta = own["beta"] if isinstance(own.get("beta"), float) else 0.1
    names = settings.get("nudgings") or _nudgings(look.problem.system)
    if varied == "points":
        names = [f"holomorphic-{n}" for n in settings["points"]]
    return [
        _eqprop(look, name, settings["betas"] if varied == "betas" else [beta], sweeps)
        for name in names
        for sweeps in (settings["sweeps"] if varied == "sweeps" else [None])
    ]


def _grid(
    look: _Look, varied: str, estimators: Sequence[_Estimator], precision: str
) -> dict[str, Any]:
    """A row for every estimator and β: the estimate against one exact gradient."""
    rows: list[dict[str, Any]] = []
    with jax.enable_x64(precision == "float64"):
        at = trees.cast(look.at, jnp.result_type(float))
        exact = exact_gradient(estimators[0].rule, at.params, at.batch, key=at.key)
        for each in estimators:
            estimate = jax.jit(each.rule.estimate)
            for beta in each.betas:
                state = {"beta": jnp.asarray(beta, jnp.result_type(float))}
                made, _ = estimate(at.params, at.batch, state, at.key)
                rows.append(
                    {
                        **entry(judge(made, exact, look.problem.network)),
                        "rule": "eqprop",
                        "estimator": each.name,
                        "beta": beta,
                        "points": each.points,
                        "phase_sweeps": each.sweeps,
                        "precision": precision,
                        "varied": {"betas": "beta"}.get(varied, varied),
                    }
                )
    return {"grid": rows}


def _nudgings(system: System) -> list[str]:
    smooth = [] if system.not_holomorphic else ["holomorphic-4"]
    return ["one-sided", "centered", *smooth]


def _eqprop(look: _Look, name: str, betas: list[float], sweeps: int | None) -> _Estimator:
    assert look.problem.system is not None
    free: Solver | None = look.problem.solvers.get("free")
    nudged: Solver | None = look.problem.solvers.get("nudged")
    if sweeps is not None:
        free = nudged = fixed_steps(sweeps)
    circle, _, number = name.rpartition("-")
    nudging: Any = circle if number.isdecimal() else name
    points = int(number) if number.isdecimal() else None
    args = (look.problem.system, look.problem.cost, free, nudged)
    try:
        rule = eqprop(*args, nudging=nudging, points=points or 2)
    except ValueError as error:
        raise look.config.fault("fidelity.nudgings", name, str(error)) from error
    return _Estimator(name, rule, betas, points, sweeps)


def _equilibrium(look: _Look) -> dict[str, Any]:
    """Curvature, saturation and jumps at the equilibria of the batch's first examples."""
    problem, at = look.problem, look.at
    assert problem.system is not None
    found, notes = {}, []
    try:
        bent = curvature(problem.system, at.params, at.batch.x[:CURVED])
    except ValueError as error:
        notes.append(str(error))
    else:
        names = state_names(problem, bent.saturated)
        found = {
            "curvature": _spread(bent.smallest),
            "output_curvature": _spread(bent.output),
            "asymmetry": float(bent.asymmetry.max()),
            "saturated": dict(zip(names, bent.saturated, strict=True)),
            "settled": float(bent.settled.mean()),
            "examples": len(bent.smallest),
            "units": bent.units,
        }
    if isinstance(at.state, dict) and "beta" in at.state:
        beta = float(at.state["beta"])
        away = jumped(problem.system, problem.cost, at.params, at.batch, beta)
        found["jumped"] = {"beta": beta, "share": float(away.mean())}
    return {"equilibrium": found, "notes": notes}


def _gdu(look: _Look) -> dict[str, Any]:
    found, system = {}, look.problem.system
    assert system is not None
    for nudging, betas in GDU_BETAS.items():
        args = (system.ideal, look.problem.cost, look.at.params, look.at.batch)
        gdu = gdu_mismatch(*args, sweeps=10, betas=betas, nudging=nudging)
        found[nudging] = {"slope": gdu.slope, "betas": betas, "mismatch": gdu.total.tolist()}
    return {"gdu": found}


def _at(config: Config, problem: Problem, trained: Path | None) -> _At:
    """The first seed's weights, initial or of a run, and the first examples that it trains on."""
    keys = seed_keys(config.tree["seed"], 1)[0]
    with jax.enable_x64(config.tree["precision"] == "float64"):
        params, state = problem.rule.init(keys[1], problem.init(keys[0]))
        if trained is not None:
            rule = config.tree["rule"]["name"]
            params = weights_like(trained, params, f"{config.path} under the rule {rule!r}")
        return _At(params, state, first_examples(config, problem), keys[1])


def _spread(values: np.ndarray) -> dict[str, float]:
    return {"smallest": float(values.min()), "median": float(np.median(values))}
