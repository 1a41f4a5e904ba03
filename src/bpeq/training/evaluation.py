"""What a training run measures: how good the model is at its task, and how phases settled."""

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
    """A pure function (params, x, y, rows) -> metrics over those rows, evaluated `chunk` at a time.

    `loss`, the mean cost. Classification and binary tasks: `error`, the share of examples with a
    wrong largest output, or with an output on the wrong side of ½; binary also `solved`, 1 where
    error is 0. Regression: `rmse` in the data's own unit, and `r2` = 1 − Σ(o−y)²/Σ(y−ȳ)².

    Args:
      rule: whose `apply` gives the outputs.
      cost: of an output and its y.
      task: the data set's.
      unit: what one unit of y is, for regression.
      chunk: examples at a time, >= 1; it bounds the memory and changes no result.

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
      info: an estimate's.

    Returns:
      Nothing without a `SolveInfo` in it. Else `sweeps`, the mean over examples summed over phases;
      `sweeps_NAME` of each solve; `unsettled`, the share of phases that ended above their solver's
      tolerance; and the β and the error bar that the estimate chose, if it did.
    """
    solves = {name: part for name, part in info.items() if isinstance(part, SolveInfo)}
    if not solves:
        return {}
    metrics = {f"sweeps_{name}": s.steps.mean() for name, s in solves.items()}
    phases = [s.steps.size // s.steps.shape[-1] * s.steps.mean() for s in solves.values()]
    unsettled = jnp.concatenate([~s.converged.reshape(-1) for s in solves.values()])
    measured = {name: info[name] for name in ("beta", "error_bar") if name in info}
    return {"sweeps": jnp.stack(phases).sum(), **metrics, "unsettled": unsettled.mean()} | measured
