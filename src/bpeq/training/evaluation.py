"""Metrics of a training run: how good the model is at its task, and how its phases settled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from bpeq.data import Task
from bpeq.types import Cost, LearningRule, Params, SolveInfo

Metrics = dict[str, Array]


def evaluator(
    rule: LearningRule, cost: Cost, task: Task, *, unit: float = 1.0, chunk: int = 1000
) -> Callable[[Params, Array, Array, Array], Metrics]:
    """A pure function (params, x, y, rows) -> metrics over those rows.

    All tasks: `loss`, the mean cost. Classification: `error`, the fraction of examples whose
    largest output is wrong. Binary: `error`, the fraction of examples with an output on the wrong
    side of ½, and `solved`, 1 if the error is 0. Regression: `rmse` in the unit of the data, and
    `r2` = 1 − Σ(o−y)²/Σ(y−ȳ)².

    Args:
      rule: its `apply` gives the outputs.
      cost: compares an output with its y.
      task: the task of the data set.
      unit: value of one unit of y, for regression; the default leaves rmse in units of y.
      chunk: examples at a time, >= 1. It limits the memory and does not change the result.

    Returns:
      The function.
    """

    def evaluate(params: Params, x: Array, y: Array, rows: Int[Array, " m"]) -> Metrics:
        m = rows.shape[0]
        size = min(chunk, m)
        padded = jnp.concatenate([rows, jnp.broadcast_to(rows[:1], (-m % size,))]).reshape(-1, size)
        target = y[rows]

        def one(chosen: Array) -> tuple[Array, Array]:
            output = rule.apply(params, x[chosen])
            return cost.value(output, y[chosen]), output

        values, outputs = jax.lax.map(one, padded)
        values = values.reshape(-1)[:m]
        output = outputs.reshape(-1, *outputs.shape[2:])[:m]
        return {"loss": values.mean(), **_scores(task, output, target, unit)}

    return evaluate


def _scores(task: Task, output: Array, target: Array, unit: float) -> Metrics:
    """The metrics of a task besides the loss."""
    if task == "classification":
        return {"error": jnp.mean(jnp.argmax(output, axis=-1) != target)}
    if task == "binary":
        error = jnp.mean(jnp.any((output > 0.5) != (target > 0.5), axis=-1))
        return {"error": error, "solved": (error == 0).astype(error.dtype)}
    gap = jnp.sum((output - target) ** 2)
    spread = jnp.sum((target - target.mean(axis=0)) ** 2)
    return {"rmse": unit * jnp.sqrt(gap / target.size), "r2": 1.0 - gap / spread}


def settling(info: dict[str, Any]) -> Metrics:
    """How an estimate's phases settled, as scalars of the batch.

    Args:
      info: the info of an estimate.

    Returns:
      Empty without a `SolveInfo`. Otherwise `sweeps`, the mean over examples, summed over phases;
      `sweeps_NAME`, the mean of each solve; `unsettled`, the fraction of phases that ended above
      their solver's tolerance; and `beta` and `error_bar` if the estimate chose them.
    """
    solves = {name: part for name, part in info.items() if isinstance(part, SolveInfo)}
    if not solves:
        return {}
    metrics = {f"sweeps_{name}": s.steps.mean() for name, s in solves.items()}
    phases = [s.steps.size // s.steps.shape[-1] * s.steps.mean() for s in solves.values()]
    unsettled = jnp.concatenate([~s.converged.reshape(-1) for s in solves.values()])
    measured = {name: info[name] for name in ("beta", "error_bar") if name in info}
    return {"sweeps": jnp.stack(phases).sum(), **metrics, "unsettled": unsettled.mean()} | measured
