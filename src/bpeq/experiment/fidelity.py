"""`bpeq fidelity`: the error of each rule's gradient over β, N, sweeps and precision."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bpeq.analysis.bias_order import fit_grid
from bpeq.analysis.equilibrium import curvature, jumped
from bpeq.analysis.gdu import gdu_mismatch
from bpeq.config.loading import Config
from bpeq.config.problem import build
from bpeq.core.paths import user_path
from bpeq.experiment.fidelity_grids import Job, RuleUnderTest, grid_jobs
from bpeq.experiment.rule_fidelity import estimate_row, fidelity_row, initial_point, state_names
from bpeq.experiment.runner import Progress, silent
from bpeq.experiment.saved_run import weights_like
from bpeq.runs import run_folder

CURVED = 8
"""The number of examples for which the curvature is computed."""
GDU: Any = {
    "one-sided": (1, [1e-2, 1e-3, 1e-4, 1e-5]),
    "centered": (2, [1e-1, 3e-2, 1e-2, 3e-3]),
}
"""The expected order of the mismatch in β, and the values of β for the fit, by nudging."""


def measure_fidelity(
    config: Config,
    rules: Sequence[str],
    folder: Path,
    trained: Path | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Compares rules with the exact gradient of their own function, and writes fidelity.json.

    Args:
      config: the config. Its [fidelity] section lists the grids.
      rules: names or dotted paths. Each rule takes its own [rules.NAME] settings.
      folder: a new folder for fidelity.json.
      trained: a run folder, whose first seed gives the weights; None: the initial weights.
      progress: called with the number of finished measurements, their total number, and a label.
        The default shows nothing.

    Returns:
      The content of fidelity.json.

    Raises:
      ConfigError: a setting is wrong. Nothing was measured.
      DataError: the data or the run folder are at fault. Nothing was measured.
      FileExistsError: the folder is not empty. Nothing was measured.
    """
    folder, trained = user_path(folder), None if trained is None else user_path(trained)
    tested = [_rule_under_test(config.with_rule(name), trained) for name in rules]
    result: dict[str, Any] = {"rules": {}, "grid": [], "notes": []}
    jobs: list[Job] = [(rule.name, partial(_measure_rule, result, rule)) for rule in tested]
    jobs += grid_jobs(tested, result)
    settled = [rule for rule in tested if rule.problem.system is not None]
    if settled:
        # The equilibria are those of the system under any rule. A rule with nudgings also has a β.
        rule = next((rule for rule in settled if rule.info.nudgings), settled[0])
        jobs.append(("equilibrium", partial(_measure_equilibrium, result, rule)))
        if rule.config.fidelity.gdu:
            system = rule.problem.system
            assert system is not None
            if system.energy is None or system.denergy is None:
                remedy = f"asks what eqprop does, which needs an energy; {system.name!r} has none"
                raise rule.config.error("fidelity.gdu", True, remedy)
            jobs.append(("GDU", partial(_measure_gdu, result, rule)))
    run_folder.create_folder(folder)
    for i, (label, job) in enumerate([*jobs, ("", lambda: None)]):
        progress(i, len(jobs), {"said": label})
        job()
    result = {
        "name": config.name,
        "config": config.as_dict(),
        "params": "initial" if trained is None else str(trained),
        "examples": len(tested[0].point.batch.x),
        "precision": config.precision,
        **result,
        **fit_grid(result["grid"]),
        "environment": run_folder.environment(),
    }
    run_folder.write_json(folder / "fidelity.json", result)
    return result


def _rule_under_test(config: Config, trained: Path | None) -> RuleUnderTest:
    """Builds the rule of a config, with the first seed's weights, initial or from a run."""
    problem = build(config)
    with jax.enable_x64(config.double):
        point = initial_point(config, problem)
        if trained is not None:
            owner = f"{config.path} under the rule {config.rule.name!r}"
            point = point._replace(params=weights_like(trained, point.params, owner))
    return RuleUnderTest(config, problem, point)


def _measure_rule(result: dict[str, Any], rule: RuleUnderTest) -> None:
    """Adds the row of a rule in its own precision, and in each precision of [fidelity]."""
    own = rule.config.precision
    with rule.point.cast(own) as point:
        row = fidelity_row(rule.problem, point)
    if rule.config.fidelity.precisions and "relative_error" in row:
        row["precisions"] = {own: {key: part for key, part in row.items() if key != "nudge"}}
        for precision in (p for p in rule.config.fidelity.precisions if p != own):
            with rule.point.cast(precision) as point:
                row["precisions"][precision] = estimate_row(rule.problem, point)
    result["rules"][rule.name] = row


def _measure_equilibrium(result: dict[str, Any], rule: RuleUnderTest) -> None:
    """Adds curvature, saturated units and jumps at the equilibria of the first examples."""
    problem, point = rule.problem, rule.point
    assert problem.system is not None
    entry: dict[str, Any] = {}
    try:
        bent = curvature(problem.system, point.params, point.batch.x[:CURVED])
    except ValueError as error:
        result["notes"].append(str(error))
    else:
        names = state_names(problem, bent.saturated)
        entry = {
            "curvature": _spread(bent.smallest),
            "output_curvature": _spread(bent.output),
            "asymmetry": float(bent.asymmetry.max()),
            "saturated": dict(zip(names, bent.saturated, strict=True)),
            "settled": float(bent.settled.mean()),
            "examples": len(bent.smallest),
            "units": bent.units,
        }
    if rule.info.beta == "beta":
        # With `beta = "auto"` only the row of the rule holds the chosen β.
        own = float(result["rules"][rule.name].get("beta", point.state["beta"]))
        betas = rule.config.fidelity.betas or []
        args = (problem.system, problem.cost, point.params, point.batch, [own, *betas])
        shares = jumped(*args, rule.info.nudged_system).mean(axis=1).tolist()
        entry["jumped"] = {"beta": own, "share": shares[0]}
        if betas:
            entry["jumped_along"] = {"betas": betas, "shares": shares[1:]}
    result["equilibrium"] = entry


def _measure_gdu(result: dict[str, Any], rule: RuleUnderTest) -> None:
    """Adds the difference between EP's updates and BPTT's gradients in each sweep.

    A note says so if the slope of the difference in β is not the expected one.
    """
    system, notes = rule.problem.system, result["notes"]
    assert system is not None
    entry = {}
    for nudging, (order, betas) in GDU.items():
        args = (system.ideal, rule.problem.cost, rule.point.params, rule.point.batch)
        try:
            gdu = gdu_mismatch(*args, sweeps=10, betas=betas, nudging=nudging)
        except ValueError as error:
            notes.append(f"The GDU check is left out: {error}.")
            return
        fit = {**gdu.fit._asdict(), "theory": order}
        slope, mismatch = fit.pop("order"), gdu.total.tolist()
        entry[nudging] = {"slope": slope, "betas": betas, "mismatch": mismatch, "fit": fit}
        if slope is not None and not abs(slope - order) < 0.25 and max(mismatch) > 1e-6:
            notes.append(
                f"GDU, {nudging}: the mismatch has slope {slope:.2f} in β, not {order}: EP's "
                "updates are not BPTT's, sweep by sweep, in this system."
            )
    if system.ideal.traits.reverse is not None:
        notes.append("GDU: sweeps alternate here; the nudged ones ran their halves in reverse.")
    result["gdu"] = entry


def _spread(values: np.ndarray) -> dict[str, float]:
    """The smallest and the median value."""
    return {"smallest": float(values.min()), "median": float(np.median(values))}
