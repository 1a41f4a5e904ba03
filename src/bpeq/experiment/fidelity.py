"""`bpeq fidelity`: what each rule of a config estimates, at which β, N, sweeps and precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from bpeq.analysis.bias_order import fits
from bpeq.analysis.equilibrium import curvature, jumped
from bpeq.analysis.gdu import gdu_mismatch
from bpeq.config.loading import Config
from bpeq.config.problem import Problem, build, seed_keys
from bpeq.core import trees
from bpeq.core.compat import enable_x64
from bpeq.experiment.fidelity_grids import At, Look, grid_jobs, precisions
from bpeq.experiment.rule_fidelity import estimated, first_examples, probe, state_names
from bpeq.experiment.saved_run import weights_like
from bpeq.runs import run_folder

Progress = Callable[[int, int, dict[str, Any]], None]
Job = Callable[[], dict[str, Any]]
CURVED = 8  # examples whose curvature is computed
GDU: Any = {
    "one-sided": (1, [1e-2, 1e-3, 1e-4, 1e-5]),
    "centered": (2, [1e-1, 3e-2, 1e-2, 3e-3]),
}
"""The orders of the mismatch that theory gives, and the β over which it is fitted."""


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
    done: dict[str, Any] = {"rules": {}, "grid": [], "notes": []}
    jobs, examples = _jobs({name: config.with_rule(name) for name in rules}, trained, done)
    run_folder.create_folder(folder)
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
        "environment": run_folder.environment(),
    }
    run_folder.write_json(folder / "fidelity.json", result)
    return result


def _jobs(
    configs: dict[str, Config], trained: Path | None, done: dict[str, Any]
) -> tuple[list[tuple[str, Job]], int]:
    """What is to be measured, all built so that bad input is found first; on how many examples.

    Args:
      done: what the jobs before have measured, as it grows.
    """
    jobs: list[tuple[str, Job]] = []
    looks: dict[str, Look] = {}
    for name, config in configs.items():
        problem = build(config)
        looks[name] = Look(config, problem, _at(config, problem, trained))
        jobs.append((name, partial(_rule, name, looks[name])))
    grids, done["notes"] = grid_jobs([*looks.values()])
    jobs += grids
    settled = [look for look in looks.values() if look.problem.system is not None]
    if settled:
        look = looks.get("eqprop", settled[0])
        jobs.append(("equilibrium", partial(_equilibrium, look, done["rules"])))
        if look.config.tree.get("fidelity", {}).get("gdu"):
            system = look.problem.system
            assert system is not None
            if system.energy is None or system.denergy is None:
                remedy = f"asks what eqprop does, which needs an energy; {system.name!r} has none"
                raise look.config.fault("fidelity.gdu", True, remedy)
            jobs.append(("GDU", partial(_gdu, look)))
    return jobs, len(next(iter(looks.values())).at.batch.x)


def _lay(done: dict[str, Any], part: dict[str, Any]) -> None:
    for key, value in part.items():
        if isinstance(value, dict):
            done.setdefault(key, {}).update(value)
        else:
            done.setdefault(key, []).extend(value)


def _rule(name: str, look: Look) -> dict[str, Any]:
    """The rule as configured; and, where [fidelity] asks for precisions, in each of them."""
    own, asked = look.config.tree["precision"], look.config.tree.get("fidelity", {})
    with enable_x64(own == "float64"):
        row = probe(look.problem, look.at.params, look.at.state, look.at.batch, look.at.key)
    if asked.get("precisions") and "relative_error" in row:
        row["precisions"] = {own: {key: part for key, part in row.items() if key != "nudge"}}
        for precision in precisions(look.config):
            if precision != own:
                with enable_x64(precision == "float64"):
                    at = trees.cast(look.at, jnp.result_type(float))
                    row["precisions"][precision] = estimated(look.problem, *at)
    return {"rules": {name: row}}


def _equilibrium(look: Look, rows: dict[str, Any]) -> dict[str, Any]:
    """Curvature, saturation and jumps at the equilibria of the batch's first examples.

    Args:
      rows: the rules' own, which know the β that `beta = "auto"` has chosen.
    """
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
    if look.knob == "beta":
        own = float(rows[look.name].get("beta", at.state["beta"]))
        grid = look.config.tree.get("fidelity", {}).get("betas") or []
        args = (problem.system, problem.cost, at.params, at.batch, [own, *grid])
        shares = jumped(*args, problem.rule.info.nudged_system).mean(axis=1).tolist()
        found["jumped"] = {"beta": own, "share": shares[0]}
        if grid:
            found["jumped_along"] = {"betas": grid, "shares": shares[1:]}
    return {"equilibrium": found, "notes": notes}


def _gdu(look: Look) -> dict[str, Any]:
    """EP's updates sweep by sweep against BPTT's, and a note where they are not the same."""
    found, notes, system = {}, [], look.problem.system
    assert system is not None
    for nudging, (order, betas) in GDU.items():
        args = (system.ideal, look.problem.cost, look.at.params, look.at.batch)
        try:
            gdu = gdu_mismatch(*args, sweeps=10, betas=betas, nudging=nudging)
        except ValueError as error:
            return {"notes": [f"The GDU check is left out: {error}."]}
        found[nudging] = {"slope": gdu.slope, "betas": betas, "mismatch": gdu.total.tolist()}
        slope = "unknown" if math.isnan(gdu.slope) else f"{gdu.slope:.2f}"
        if not abs(gdu.slope - order) < 0.25 and np.max(gdu.total) > 1e-6:
            notes.append(
                f"GDU, {nudging}: the mismatch has slope {slope} in β, not {order}: EP's updates "
                "are not BPTT's, sweep by sweep, in this system."
            )
    if system.ideal.traits.reverse is not None:
        notes.append("GDU: sweeps alternate here; the nudged ones ran their halves in reverse.")
    return {"gdu": found, "notes": notes}


def _at(config: Config, problem: Problem, trained: Path | None) -> At:
    """The first seed's weights, initial or of a run, and the first examples that it trains on."""
    keys = seed_keys(config.tree["seed"], 1)[0]
    with enable_x64(config.tree["precision"] == "float64"):
        params, state = problem.rule.init(keys[1], problem.init(keys[0]))
        if trained is not None:
            rule = config.tree["rule"]["name"]
            params = weights_like(trained, params, f"{config.path} under the rule {rule!r}")
        return At(params, state, first_examples(config, problem), keys[1])


def _spread(values: np.ndarray) -> dict[str, float]:
    return {"smallest": float(values.min()), "median": float(np.median(values))}
