"""`bpeq fidelity`: what each rule of a config estimates, at which β, N, sweeps and precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bpeq.analysis.bias_order import fit_grid
from bpeq.analysis.equilibrium import curvature, jumped
from bpeq.analysis.gdu import gdu_mismatch
from bpeq.config.loading import Config
from bpeq.config.problem import build
from bpeq.core.compat import enable_x64
from bpeq.experiment.fidelity_grids import RuleUnderTest, grid_jobs
from bpeq.experiment.rule_fidelity import estimate_row, fidelity_row, initial_point, state_names
from bpeq.experiment.saved_run import weights_like
from bpeq.runs import run_folder

Progress = Callable[[int, int, dict[str, Any]], None]
CURVED = 8
"""The number of examples whose curvature is computed."""
GDU: Any = {
    "one-sided": (1, [1e-2, 1e-3, 1e-4, 1e-5]),
    "centered": (2, [1e-1, 3e-2, 1e-2, 3e-3]),
}
"""The order of the mismatch in β that theory gives, and the β over which it is fitted."""


def measure_fidelity(
    config: Config,
    rules: Sequence[str],
    folder: Path,
    trained: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compares rules with the exact gradient of their own function, and writes fidelity.json.

    Args:
      config: the config. Its [fidelity] asks for the grids.
      rules: names or dotted paths, each with its own [rules.NAME] settings.
      folder: a new folder for fidelity.json.
      trained: a run folder. The weights of its first seed are used instead of the initial ones.
      progress: called with the measurements that have ended, their number, and a label.

    Returns:
      The content of fidelity.json.

    Raises:
      ConfigError, DataError, FileExistsError: before anything is measured.
    """
    tested = [_rule_under_test(config.with_rule(name), trained) for name in rules]
    grids, notes = grid_jobs(tested)
    result: dict[str, Any] = {"rules": {}, "grid": [], "notes": notes}
    jobs: list[tuple[str, Callable[[], None]]] = []
    for rule in tested:
        jobs.append((rule.name, partial(_measure_rule, result, rule)))
    for label, rows in grids:
        jobs.append((label, lambda rows=rows: result["grid"].extend(rows())))  # type: ignore[misc]
    settled = [rule for rule in tested if rule.problem.system is not None]
    if settled:
        # Equilibria are those of the system, but a rule that compares nudgings knows most of them.
        rule = next((rule for rule in settled if rule.info.nudgings), settled[0])
        jobs.append(("equilibrium", partial(_measure_equilibrium, result, rule)))
        if rule.config.fidelity.gdu:
            _check_gdu(rule)
            jobs.append(("GDU", partial(_measure_gdu, result, rule)))
    run_folder.create_folder(folder)
    for i, (label, job) in enumerate([*jobs, ("", lambda: None)]):
        if progress is not None:
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
    """The rule of a config at the first seed's weights, initial or those of a run."""
    problem = build(config)
    with enable_x64(config.double):
        point = initial_point(config, problem)
        if trained is not None:
            owner = f"{config.path} under the rule {config.rule.name!r}"
            point = point._replace(params=weights_like(trained, point.params, owner))
    return RuleUnderTest(config, problem, point)


def _measure_rule(result: dict[str, Any], rule: RuleUnderTest) -> None:
    """Adds the row of the rule as configured, and in each precision that [fidelity] asks for."""
    own = rule.config.precision
    with rule.point.cast(own) as point:
        row = fidelity_row(rule.problem, point)
    if rule.config.fidelity.precisions and "relative_error" in row:
        row["precisions"] = {own: {key: part for key, part in row.items() if key != "nudge"}}
        for precision in (name for name in rule.precisions if name != own):
            with rule.point.cast(precision) as point:
                row["precisions"][precision] = estimate_row(rule.problem, point)
    result["rules"][rule.name] = row


def _measure_equilibrium(result: dict[str, Any], rule: RuleUnderTest) -> None:
    """Adds curvature, saturation and jumps at the equilibria of the batch's first examples."""
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
        # The rule's own row knows the β that `beta = "auto"` has chosen.
        own = float(result["rules"][rule.name].get("beta", point.state["beta"]))
        betas = rule.config.fidelity.betas or []
        args = (problem.system, problem.cost, point.params, point.batch, [own, *betas])
        shares = jumped(*args, rule.info.nudged_system).mean(axis=1).tolist()
        entry["jumped"] = {"beta": own, "share": shares[0]}
        if betas:
            entry["jumped_along"] = {"betas": betas, "shares": shares[1:]}
    result["equilibrium"] = entry


def _check_gdu(rule: RuleUnderTest) -> None:
    system = rule.problem.system
    assert system is not None
    if system.energy is None or system.denergy is None:
        remedy = f"asks what eqprop does, which needs an energy; {system.name!r} has none"
        raise rule.config.error("fidelity.gdu", True, remedy)


def _measure_gdu(result: dict[str, Any], rule: RuleUnderTest) -> None:
    """Adds EP's updates, sweep by sweep, against BPTT's, with a note if they are not the same."""
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
        entry[nudging] = {"slope": gdu.slope, "betas": betas, "mismatch": gdu.total.tolist()}
        slope = "unknown" if math.isnan(gdu.slope) else f"{gdu.slope:.2f}"
        if not abs(gdu.slope - order) < 0.25 and np.max(gdu.total) > 1e-6:
            notes.append(
                f"GDU, {nudging}: the mismatch has slope {slope} in β, not {order}: EP's updates "
                "are not BPTT's, sweep by sweep, in this system."
            )
    if system.ideal.traits.reverse is not None:
        notes.append("GDU: sweeps alternate here; the nudged ones ran their halves in reverse.")
    result["gdu"] = entry


def _spread(values: np.ndarray) -> dict[str, float]:
    return {"smallest": float(values.min()), "median": float(np.median(values))}
