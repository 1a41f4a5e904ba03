"""Sweeps and seconds to a residual: plain sweeps against accelerated ones, example by example."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import nets
from benchmarks.timing import Effort, Found, Program, compiled, row, said
from bpeq import solvers
from bpeq.core import trees
from bpeq.rules import free_phase, nudged_phases
from bpeq.types import Batch, SolveInfo, Solver, System

RATIOS = ("sweeps_saved_mlp1", "sweeps_saved_mlp3", "sweeps_saved_cnn")
TOLERANCE, EXACT, SHARE = 1e-5, 1e-12, 0.99
SAME = 1e-8
"""Two equilibria in float64 further apart than this are counted as different ones."""


class Net(NamedTuple):
    """A task, how it is accelerated, and the sweeps and float64 examples that it is given."""

    task: Callable[[bool], nets.Task]
    window: int
    most: int
    checked: int
    reference: int
    near: float = 0.1

    def anderson(self, tolerance: float, most: int) -> Solver:
        """The solver that serves it."""
        return solvers.anderson(tolerance, most, window=self.window, near=self.near)


NETS = {
    "mlp1": Net(nets.reference, 2, 1000, 512, 20_000),
    "mlp3": Net(nets.deep, 3, 400, 64, 2000),
    "cnn": Net(nets.convolutional, 3, 400, 32, 3000, 0.05),
}


def run(effort: Effort) -> Found:
    """A row for every net and solver; how many examples ended elsewhere stands in it."""
    rows: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}
    skipped = {}
    for name, net in NETS.items():
        if effort.quick and name != "mlp1":
            skipped[f"sweeps_saved_{name}"] = "quick"
            continue
        task = net.task(effort.quick)
        found = measured(task, plain_and(net), effort.examples, 3 if name == "mlp1" else 1)
        rows += [{**r, "name": f"{name} {r['name']}", "net": task.name} for r in found]
        rows.append({"name": f"{name} equilibria", **different(task, net)})
        if name == "cnn":
            far = different(task, net._replace(near=99.0))
            rows.append({"name": f"{name} equilibria, accelerated from the start", **far})
        plain, ours = (r["sweeps_99"] for r in found)
        said(f"  {name}: sweeps {plain} plain, {ours} accelerated")
        if None in ours:
            skipped[f"sweeps_saved_{name}"] = f"less than 99 % settle in {net.most} sweeps"
        else:  # where plain sweeps do not get there, what they take at least
            ratios[f"sweeps_saved_{name}"] = sum(n or net.most for n in plain) / sum(ours)
    return Found(rows + tolerances(effort), ratios, skipped)


def tolerances(effort: Effort) -> list[dict[str, Any]]:
    """Solvers of the reference net at several tolerances: what the plot shows."""
    if effort.quick:
        return []
    task, rows = nets.reference(effort.quick), []
    for tolerance in (1e-3, 1e-4, 1e-5, 1e-6):
        made = {"plain": solvers.fixed_point(tolerance)}
        made |= {f"anderson, window {m}": solvers.anderson(tolerance, window=m) for m in (1, 2, 5)}
        found = measured(task, made, effort.examples, 3)
        rows += [{**r, "series": r["name"], "tolerance": tolerance} for r in found]
    return rows


def plain_and(net: Net) -> dict[str, Solver]:
    """Alternating sweeps as they are, and accelerated."""
    return {
        "plain": solvers.fixed_point(TOLERANCE, net.most),
        "anderson": net.anderson(TOLERANCE, net.most),
    }


def phases(system: System, solver: Solver, params: Any, batch: Batch) -> tuple[Any, SolveInfo]:
    """States and info of the free phase and of both nudged ones, phases on axis 0."""
    rest = free_phase(system, solver, params, batch.x)
    betas = jnp.asarray([nets.BETA, -nets.BETA], rest.output.dtype)
    nudged, info = nudged_phases(system, nets.COST, solver, params, rest, batch.y, betas)
    both = (rest.state, rest.info), (nudged, info)
    return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), *both)


def solve(task: nets.Task, solver: Solver, batch: Batch) -> Program:
    """Three phases of a batch, as one program."""
    return compiled(lambda p, b: phases(task.system, solver, p, b), task.params, batch)


def measured(
    task: nets.Task, made: dict[str, Solver], count: int, rounds: int
) -> list[dict[str, Any]]:
    """A row a solver: sweeps until 99 % of the examples have settled, by phase; and seconds."""
    batch = nets.examples(task, count)
    programs = {name: solve(task, solver, batch) for name, solver in made.items()}
    infos: dict[str, SolveInfo] = {}
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            start = time.perf_counter()
            infos[name] = jax.device_get(program.call()[1])
            seconds[name].append(time.perf_counter() - start)
    rows = []
    for name, info in infos.items():
        counts = np.where(info.converged, info.steps, np.inf)
        rank = math.ceil(SHARE * counts.shape[1]) - 1
        how = {
            "examples": count,
            "sweeps_99": [int(n) if n < np.inf else None for n in np.sort(counts)[:, rank]],
            "sweeps_mean": info.steps.mean(axis=1).tolist(),
            "sweeps_most": info.steps.max(axis=1).tolist(),
            "unsettled": int((~info.converged).sum()),
        }
        rows.append(row(name, seconds[name], **how))
    return rows


def different(task: nets.Task, net: Net) -> dict[str, Any]:
    """In float64, settled to 1e-12: how many accelerated phases end elsewhere than plain ones."""
    with jax.enable_x64(True):
        params, batch = trees.cast((task.params, nets.examples(task, net.checked)), jnp.float64)
        states, infos = zip(
            *(
                jax.device_get(jax.jit(partial(phases, task.system, solver))(params, batch))
                for solver in (
                    solvers.fixed_point(EXACT, net.reference),
                    net.anderson(EXACT, net.reference),
                )
            ),
            strict=True,
        )
        gaps = np.zeros(infos[0].steps.shape)
        for a, b in zip(*map(jax.tree.leaves, states), strict=True):
            gaps = np.maximum(gaps, np.abs(a - b).reshape(*gaps.shape, -1).max(axis=-1))
    both = infos[0].converged & infos[1].converged
    return {
        "examples": net.checked,
        "precision": "float64",
        "phases_settled_by_both": int(both.sum()),
        "phases": int(both.size),
        "phases_elsewhere": int((gaps[both] > SAME).sum()),
        "largest_gap": float(gaps[both].max(initial=0.0)),
        "unsettled_plain": int((~infos[0].converged).sum()),
        "unsettled_anderson": int((~infos[1].converged).sum()),
    }
