"""`bpeq fidelity`: what each rule of a config estimates, at which β, N, sweeps and precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bpeq import runs, trees
from bpeq._schema import ConfigError
from bpeq.config import Config
from bpeq.equilibrium import curvature, jumped
from bpeq.fidelity import bias_order, exact_gradient, judge
from bpeq.gdu import gdu_mismatch
from bpeq.loading import load_run
from bpeq.probe import entry, first_examples, probe, state_names
from bpeq.problem import Problem, build, seed_keys
from bpeq.rules import eqprop
from bpeq.solvers import fixed_steps
from bpeq.types import Batch, Estimate, Key, LearningRule, Params, Solver, State, System

Progress = Callable[[int, int, dict[str, Any]], None]
Grid = list[dict[str, Any]]
CURVED = 8
"""Examples whose curvature is computed."""


class _At(NamedTuple):
    """Where everything is measured: one network's weights, one batch, one key."""

    params: Params
    state: State
    batch: Batch
    key: Key


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
    configs = {name: config.with_rule(name) for name in rules}
    problems = {name: build(each) for name, each in configs.items()}
    settings = config.tree.get("fidelity", {})
    runs.claim(folder)
    jobs = list(_jobs(configs, problems, settings, trained))
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
        "examples": settings.get("examples", 32),
        "precision": config.tree["precision"],
        **done,
        **_fits(done["grid"]),
        "environment": runs.environment(),
    }
    runs.write_json(folder / "fidelity.json", result)
    return result


def _jobs(
    configs: dict[str, Config],
    problems: dict[str, Problem],
    settings: dict[str, Any],
    trained: Path | None,
) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    for name, problem in problems.items():
        yield name, partial(_rule, configs[name], problem, trained, name)
    name = "eqprop" if "eqprop" in problems else next(iter(problems))
    config, problem = configs[name], problems[name]
    if problem.system is None:
        return
    grids = [key for key in ("betas", "points", "sweeps") if settings.get(key)]
    if grids and problem.system.denergy is None:
        remedy = f"eqprop's grids need an energy, which {problem.system.name!r} has not"
        raise config.fault(f"fidelity.{grids[0]}", settings[grids[0]], remedy)
    for precision in settings.get("precisions", [config.tree["precision"]]):
        for key in grids:
            yield f"{key}, {precision}", partial(_grid, config, problem, trained, key, precision)
    yield "equilibrium", partial(_equilibrium, config, problem, trained)
    if settings.get("gdu"):
        yield "GDU", partial(_gdu, config, problem, trained)


def _lay(done: dict[str, Any], part: dict[str, Any]) -> None:
    for key, value in part.items():
        if isinstance(value, dict):
            done.setdefault(key, {}).update(value)
        else:
            done.setdefault(key, []).extend(value)


def _rule(config: Config, problem: Problem, trained: Path | None, name: str) -> dict[str, Any]:
    with jax.enable_x64(config.tree["precision"] == "float64"):
        at = _at(config, problem, trained)
        return {"rules": {name: probe(problem, at.params, at.state, at.batch, at.key)}}


def _grid(
    config: Config, problem: Problem, trained: Path | None, varied: str, precision: str
) -> dict[str, Grid]:
    """eqprop over one of the grids that [fidelity] asks for."""
    settings, system = config.tree["fidelity"], problem.system
    assert system is not None
    rows: Grid = []
    with jax.enable_x64(precision == "float64"):
        at = trees.cast(_at(config, problem, trained), jnp.result_type(float))
        exact: Estimate | None = None
        own = config.tree["rule"]
        beta = own.get("beta", 0.1) if own.get("beta") != "auto" else 0.1
        asked = settings.get("nudgings") or _nudgings(own, system)
        if varied == "points":
            asked = [f"holomorphic-{n}" for n in settings["points"]]
        elif varied == "sweeps":
            asked = asked[-1:] if "nudgings" not in settings else asked
        for name in asked:
            nudging, _, n = name.partition("-") if name != "one-sided" else (name, "", "")
            for sweeps in settings["sweeps"] if varied == "sweeps" else [None]:
                rule = _eqprop(config, problem, nudging, int(n or 2), sweeps)
                if exact is None:
                    exact = exact_gradient(rule, at.params, at.batch, key=at.key)
                estimate = jax.jit(rule.estimate)
                for b in settings["betas"] if varied == "betas" else [beta]:
                    state = {"beta": jnp.asarray(b, jnp.result_type(float))}
                    found = judge(
                        estimate(at.params, at.batch, state, at.key)[0], exact, problem.network
                    )
                    rows.append({
                        "rule": "eqprop", "estimator": name, "beta": b, "sweeps": sweeps,
                        "points": int(n) if n else None, "precision": precision,
                        "varied": {"betas": "beta"}.get(varied, varied),
                    } | entry(found))  # fmt: skip
    return {"grid": rows}


def _nudgings(own: dict[str, Any], system: System) -> list[str]:
    smooth = [] if system.not_holomorphic else ["holomorphic-4"]
    return ["one-sided", "centered", *smooth]


def _eqprop(
    config: Config, problem: Problem, nudging: str, points: int, sweeps: int | None
) -> LearningRule:
    assert problem.system is not None
    free: Solver | None = problem.solvers.get("free")
    nudged: Solver | None = problem.solvers.get("nudged")
    if sweeps is not None:
        free = nudged = fixed_steps(sweeps)
    named: Any = nudging
    try:
        return eqprop(problem.system, problem.cost, free, nudged, nudging=named, points=points)
    except ValueError as error:
        name = f"{nudging}-{points}"
        raise config.fault("fidelity.nudgings", name, str(error)) from error


def _equilibrium(config: Config, problem: Problem, trained: Path | None) -> dict[str, Any]:
    """Curvature, saturation and jumps at the equilibria of the batch's first examples."""
    assert problem.system is not None
    at = _at(config, problem, trained)
    few = Batch(at.batch.x[:CURVED], at.batch.y[:CURVED])
    params, state = at.params, at.state
    found: dict[str, Any] = {}
    notes = []
    try:
        bent = curvature(problem.system, params, few.x)
    except ValueError as error:
        notes.append(str(error))
    else:
        names = state_names(problem, bent.saturated)
        found |= {
            "curvature": _spread(bent.smallest),
            "output_curvature": _spread(bent.output),
            "asymmetry": float(bent.asymmetry.max()),
            "saturated": dict(zip(names, bent.saturated, strict=True)),
            "settled": float(bent.settled.mean()),
            "examples": len(few.x),
        }
    if isinstance(state, dict) and "beta" in state:
        beta = float(state["beta"])
        away = jumped(problem.system, problem.cost, params, at.batch, beta)
        found["jumped"] = {"beta": beta, "share": float(away.mean())}
    return {"equilibrium": found, "notes": notes}


def _gdu(config: Config, problem: Problem, trained: Path | None) -> dict[str, Any]:
    assert problem.system is not None
    found = {}
    with jax.enable_x64(True):
        at = _at(config, problem, trained)
        params, batch = trees.cast((at.params, at.batch), jnp.float64)
        for nudging in ("one-sided", "centered"):
            betas = [1e-2, 1e-3, 1e-4, 1e-5] if nudging == "one-sided" else [1e-1, 3e-2, 1e-2, 3e-3]
            args = (problem.system, problem.cost, params, batch)
            gdu = gdu_mismatch(*args, sweeps=10, betas=betas, nudging=nudging)
            found[nudging] = {"slope": gdu.slope, "betas": betas, "mismatch": gdu.total.tolist()}
    return {"gdu": found}


def _fits(grid: Grid) -> dict[str, Any]:
    """Orders of the bias in β, one a nudging, and the radius that the N-point errors fall by."""
    found: dict[str, Any] = {"bias_order": {}, "fit": {}, "radius": None}
    rows = [row for row in grid if row["varied"] == "beta"]
    best = max((row["precision"] for row in rows), default="")  # float64 where there are both
    for name in dict.fromkeys(row["estimator"] for row in rows):
        own = [r for r in rows if r["estimator"] == name and r["precision"] == best]
        fit = bias_order([r["beta"] for r in own], [r["relative_error"] for r in own])
        found["bias_order"][name] = fit["order"]
        found["fit"][name] = {"betas": fit["betas"], "intercept": fit["intercept"]}
    rows = [row for row in grid if row["varied"] == "points" and row["precision"] == "float64"]
    usable = [r for r in rows if 1e-11 < r["relative_error"] < 0.1]
    if len(usable) >= 2:
        n, error = ([r[key] for r in usable] for key in ("points", "relative_error"))
        slope = np.polyfit(n, np.log(error), 1)[0]
        found["radius"] = float(usable[0]["beta"] * np.exp(-slope))
    return found


def _at(config: Config, problem: Problem, trained: Path | None) -> _At:
    """The first seed's weights, initial or of a run, and the first examples that it trains on."""
    keys = seed_keys(config.tree["seed"], 1)[0]
    with jax.enable_x64(config.tree["precision"] == "float64"):
        params, state = problem.rule.init(keys[1], problem.init(keys[0]))
        if trained is not None:
            loaded = load_run(trained).params
            if jax.tree.map(jnp.shape, loaded) != jax.tree.map(jnp.shape, params):
                raise ConfigError(f"--run = {trained}: its parameters do not fit {config.path}")
            params = loaded
        return _At(params, state, first_examples(config, problem), keys[1])


def _spread(values: np.ndarray) -> dict[str, float]:
    return {"smallest": float(values.min()), "median": float(np.median(values))}
