"""Equilibrium propagation against a backprop step of the same network, at three batch sizes."""

from __future__ import annotations

from typing import Any

import jax

from benchmarks import nets
from benchmarks.timing import (
    Effort,
    Found,
    Program,
    Ratio,
    compiled,
    interleaved,
    ratio,
    row,
    timed_rows,
)
from bpeq import rules, solvers
from bpeq.analysis.gradient_fidelity import exact_gradient, judge
from bpeq.types import LearningRule

RATIOS = (
    "eqprop_fixed_b128",
    "eqprop_certified_b128",
    "eqprop_fixed_b20",
    "eqprop_fixed_b1024",
    "centered_over_one_sided",
    "roofline_b1024",
)
COUNTS = {20: 100, 128: 20, 1024: 4}
"""Updates a call, by batch: some 50 ms."""
TOLERANCE = 1e-5
SQUARE = 1024


def certified(task: nets.Task, **settings: Any) -> LearningRule:
    """Both phases until each example's residual is 1e-5; the others are counted."""
    settle = solvers.anderson(TOLERANCE, window=2)
    return nets.eqprop(task.system, settle, settle, **settings)


def run(effort: Effort) -> Found:
    """Rows a batch size, and the ratios."""
    task = nets.reference(effort.quick)
    rows: list[dict[str, Any]] = []
    ratios: dict[str, float | Ratio] = {}
    for batch, count in COUNTS.items():
        made = {
            "backprop": rules.autodiff(task.network, nets.COST),
            "eqprop fixed 30 + 10": nets.fixed(task.system),
        }
        if batch != 20:
            made["eqprop certified"] = certified(task)
        if batch == 128:
            made["eqprop one-sided"] = nets.fixed(task.system, nudging="one-sided")
        programs = {name: nets.steps(task, rule, batch, count) for name, rule in made.items()}
        if batch == 1024:
            programs |= products(task, batch)
        seconds = interleaved(programs, effort.rounds)
        rows += timed_rows(seconds, programs, batch=batch, net=task.name)
        ratios[f"eqprop_fixed_b{batch}"] = ratio(seconds, "eqprop fixed 30 + 10", "backprop")
        if batch == 128:
            ratios["eqprop_certified_b128"] = ratio(seconds, "eqprop certified", "backprop")
            ratios["centered_over_one_sided"] = ratio(
                seconds, "eqprop fixed 30 + 10", "eqprop one-sided"
            )
        if batch == 1024:
            seconds["floor"] = floor(seconds, batch)
            rows.append(row("floor of a step's two products", seconds["floor"], batch=batch))
            ratios["roofline_b1024"] = ratio(seconds, "eqprop certified", "floor")
    rows += fidelity(task, judged(task, effort.quick), effort.examples)
    return Found(rows, ratios)


def products(task: nets.Task, batch: int) -> dict[str, Program]:
    """The two products that no rule can do without, and a square one that shows the GEMM rate."""
    key = jax.random.key(3)
    x, w = task.x[:batch], task.params[0]["w"]
    delta = jax.random.normal(key, (batch, w.shape[1]))
    square = jax.random.normal(key, (SQUARE, SQUARE))
    return {
        "product x·W": compiled(lambda x, w: x @ w, x, w),
        "product xᵀ·δ": compiled(lambda x, d: x.T @ d, x, delta),
        "product of squares": compiled(lambda a: a @ a, square),
    }


def floor(seconds: dict[str, list[float]], batch: int) -> list[float]:
    """Seconds of the drive and the weight gradient at the best GEMM rate of each round."""
    flops = 2.0 * batch * 784 * 512
    rates = zip(
        [2.0 * SQUARE**3 / s for s in seconds["product of squares"]],
        [flops / s for s in seconds["product x·W"]],
        [flops / s for s in seconds["product xᵀ·δ"]],
        strict=True,
    )
    return [2 * flops / max(rate) for rate in rates]


def judged(task: nets.Task, quick: bool) -> dict[str, LearningRule]:
    """The estimates that are timed, and certified ones at other β, to tell bias from the solver."""
    made = {
        "eqprop fixed 30 + 10": nets.fixed(task.system),
        "eqprop certified": certified(task),
        "eqprop one-sided": nets.fixed(task.system, nudging="one-sided"),
    }
    others: tuple[Any, ...] = () if quick else (0.03, 0.01, "auto")
    return made | {f"eqprop certified, β {b}": certified(task, beta=b) for b in others}


def fidelity(
    task: nets.Task, estimates: dict[str, LearningRule], count: int
) -> list[dict[str, Any]]:
    """Settled phases, sweeps, and each layer's cosine to implicit differentiation in float64."""
    batch, key = nets.examples(task, count), jax.random.key(4)
    exact, rows = None, []
    for name, rule in estimates.items():
        params, state = rule.init(key, task.params)
        estimate = jax.jit(rule.estimate)(params, batch, state, key)[0]
        exact = exact_gradient(rule, params, batch, key=key) if exact is None else exact
        found = judge(estimate, exact, task.network)
        rows.append(
            {
                "name": f"gradient of {name}",
                "net": task.name,
                "examples": count,
                "settled": found.settled,
                "sweeps": found.sweeps,
                "cosine": {layer: close.cosine for layer, close in found.layers.items()},
                "relative_error": {k: close.relative_error for k, close in found.layers.items()},
                "reference_settled": found.reference_settled,
                "reference_residual": found.reference_residual,
            }
        )
    return rows
