"""How good a rule's model is on some rows of a data set, in the terms of its task."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from bpeq.data import Task
from bpeq.types import Cost, LearningRule, Params

Metrics = dict[str, Array]


def evaluator(
    rule: LearningRule, cost: Cost, task: Task, *, unit: float = 1.0, chunk: int = 1000
) -> Callable[[Params, Array, Array, Array], Metrics]:
    """A pure function (params, x, y, rows) -> metrics over those rows, evaluated `chunk` at a time.

    `loss`, the mean cost. Classification and binary tasks: `error`, the share of examples with a
    wrong largest output, or with an output on the wrong side of ½; binary also `solved`, 1 where
    error is 0. Regression: `rmse` in the data's own unit, and `r2` = 1 − Σ(o−y)²/Σ(y−ȳ)².
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
