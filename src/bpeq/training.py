"""Training as one scan an epoch, with every seed's run side by side, and evaluation to match."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int

from bpeq.data import Task
from bpeq.types import Batch, Cost, Key, LearningRule, Params, SolveInfo, Step

Metrics = dict[str, Array]


class Carry(NamedTuple):
    """What a supervised step hands to the next: weights, optimizer state, the rule's own state."""

    params: Params
    optimizer: Any
    rule: Any


def supervised(rule: LearningRule, optimizer: optax.GradientTransformation) -> Step:
    """One update: the rule's estimate, through the optimizer, into the weights.

    Its metrics, scalars of the batch: `loss` (before the update); and for a rule that relaxes
    `sweeps`, the mean over examples summed over phases, `sweeps_NAME`
    for each solve, and `unsettled`, the share of phases that ended above their solver's tolerance.
    """

    def step(carry: Carry, batch: Batch, key: Key) -> tuple[Carry, Metrics]:
        estimate, state = rule.estimate(carry.params, batch, carry.rule, key)
        updates, optimizer_state = optimizer.update(estimate.grads, carry.optimizer, carry.params)
        params = optax.apply_updates(carry.params, updates)
        if rule.absorb is not None:
            params = rule.absorb(params, estimate.info)
        return Carry(params, optimizer_state, state), {
            "loss": estimate.loss,
            **_settling(estimate.info),
        }

    return step


def start(
    rule: LearningRule,
    optimizer: optax.GradientTransformation,
    params: Params,
    key: Key,
    x: Array | None = None,
    batch_size: int = 1,
) -> Carry:
    """The first carry of `supervised`: the rule's init on `params`, then the optimizer's.

    Given the whole data set x and the batch size, a rule that remembers gets room for it.
    """
    params, state = rule.init(key, params)
    if x is not None and rule.prepare is not None:
        state = rule.prepare(params, state, x, batch_size)
    return Carry(params, optimizer.init(params), state)


def epoch_scan(step: Step, batch_size: int) -> Callable[..., tuple[Any, Metrics]]:
    """A pure function that runs `count` epochs of `step` on a data set that lives on the device.

    The function is (carry, x, y, rows, key, first, count) -> (carry, metrics `[count]`), metrics
    averaged over an epoch's steps. `rows` `[m]` are the training examples; epoch e visits them in
    an order that depends on (key, e) alone, in m // batch_size batches. What is left over and
    fills no batch is left out of that epoch, another remainder each time. With one batch of all
    rows there is no shuffling. `count` is static.
    """

    def run(
        carry: Any, x: Array, y: Array, rows: Int[Array, " m"], key: Key, first: Array, count: int
    ) -> tuple[Any, Metrics]:
        per_epoch = rows.shape[0] // batch_size

        def epoch(carry: Any, number: Array) -> tuple[Any, Metrics]:
            order_key, step_key = jax.random.split(jax.random.fold_in(key, number))
            order = rows
            if rows.shape[0] != batch_size:
                order = jax.random.permutation(order_key, rows)[: per_epoch * batch_size]

            def one(carry: Any, inputs: tuple[Array, Array]) -> tuple[Any, Metrics]:
                chosen, i = inputs
                batch = Batch(x[chosen], y[chosen], chosen)
                return step(carry, batch, jax.random.fold_in(step_key, i))

            batches = order.reshape(per_epoch, batch_size)
            carry, metrics = jax.lax.scan(one, carry, (batches, jnp.arange(per_epoch)))
            return carry, jax.tree.map(lambda m: m.mean(axis=0), metrics)

        return jax.lax.scan(epoch, carry, first + jnp.arange(count))

    return run


def over_seeds(run: Callable[..., tuple[Any, Metrics]]) -> Any:
    """`epoch_scan`'s function, jitted for S seeds: carry, rows and keys get a leading axis S."""
    axes = (0, None, None, 0, 0, None)

    @partial(jax.jit, static_argnums=6, donate_argnums=0)
    def all_seeds(
        carry: Any, x: Array, y: Array, rows: Array, keys: Key, first: Array, count: int
    ) -> tuple[Any, Metrics]:
        return jax.vmap(partial(run, count=count), in_axes=axes)(carry, x, y, rows, keys, first)

    return all_seeds


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


class TrainResult(NamedTuple):
    """A finished training: weights, the rule's state, and each epoch's mean metrics `[epochs]`."""

    params: Params
    state: Any
    metrics: Metrics


def train(
    rule: LearningRule,
    optimizer: optax.GradientTransformation,
    params: Params,
    batch: Batch,
    *,
    epochs: int,
    batch_size: int,
    key: Key,
) -> TrainResult:
    """Trains `params` on all examples of `batch` by a rule, as one compiled program.

    Args:
      rule, optimizer: where gradients come from, and what optax makes of them.
      params: as `network.init` gives them; they are copied, not changed.
      batch: the whole training set, x `[n, ...]` and y `[n, ...]`.
      epochs: passes over it, >= 1. batch_size: examples an update, 1 to n.
      key: fixes the rule's init, the order of the examples and all random numbers.

    Raises:
      ValueError: `epochs` or `batch_size` out of range, x and y of different lengths, or integer
        labels that are no class of the outputs.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from bpeq.costs import squared_error
      >>> from bpeq.layers import chain, dense
      >>> from bpeq.rules import backprop
      >>> network = chain(dense(1))
      >>> params, _ = network.init(jax.random.key(0), (1,))
      >>> x = jnp.linspace(-1.0, 1.0, 8)[:, None]
      >>> result = train(backprop(network, squared_error()), optax.sgd(0.5), params,
      ...                Batch(x, 3 * x), epochs=50, batch_size=4, key=jax.random.key(1))
      >>> round(float(result.params[0]["w"][0, 0]), 3)
      3.0
    """
    n = len(batch.x)
    if len(batch.y) != n:
        raise ValueError(f"train: {n} inputs but {len(batch.y)} targets")
    if not 1 <= batch_size <= n:
        raise ValueError(f"train: batch_size = {batch_size}: must be 1 to {n}, the examples given")
    if epochs < 1:
        raise ValueError(f"train: epochs = {epochs}: must be >= 1")
    _check_labels(rule, params, batch)
    start_key, run_key = jax.random.split(key)
    x, y = jnp.asarray(batch.x), jnp.asarray(batch.y)
    carry = start(rule, optimizer, params, start_key, x, batch_size)
    run = partial(epoch_scan(supervised(rule, optimizer), batch_size), count=epochs)
    carry, metrics = jax.jit(run)(carry, x, y, jnp.arange(n), run_key, jnp.asarray(0))
    return TrainResult(carry.params, carry.rule, metrics)


def _check_labels(rule: LearningRule, params: Params, batch: Batch) -> None:
    """At the door: inside jit a label out of range would silently be no class at all."""
    y = np.asarray(batch.y)
    if not np.issubdtype(y.dtype, np.integer):
        return
    trained = jax.eval_shape(lambda p: rule.init(jax.random.key(0), p)[0], params)
    x = jax.ShapeDtypeStruct((1, *batch.x.shape[1:]), batch.x.dtype)
    output = jax.eval_shape(rule.apply, trained, x)
    if output.ndim == y.ndim + 1 and not ((y >= 0) & (y < output.shape[-1])).all():
        raise ValueError(
            f"train: labels from {y.min()} to {y.max()}: must be 0 to {output.shape[-1] - 1}, the "
            f"network has {output.shape[-1]} outputs"
        )


def _settling(info: dict[str, Any]) -> Metrics:
    solves = {name: part for name, part in info.items() if isinstance(part, SolveInfo)}
    if not solves:
        return {}
    metrics = {f"sweeps_{name}": s.steps.mean() for name, s in solves.items()}
    phases = [s.steps.size // s.steps.shape[-1] * s.steps.mean() for s in solves.values()]
    unsettled = jnp.concatenate([~s.converged.reshape(-1) for s in solves.values()])
    measured = {name: info[name] for name in ("beta", "error_bar") if name in info}
    return {"sweeps": jnp.stack(phases).sum(), **metrics, "unsettled": unsettled.mean()} | measured


def _scores(task: Task, output: Array, target: Array, unit: float) -> Metrics:
    if task == "classification":
        return {"error": jnp.mean(jnp.argmax(output, axis=-1) != target)}
    if task == "binary":
        error = jnp.mean(jnp.any((output > 0.5) != (target > 0.5), axis=-1))
        return {"error": error, "solved": (error == 0).astype(error.dtype)}
    gap = jnp.sum((output - target) ** 2)
    spread = jnp.sum((target - target.mean(axis=0)) ** 2)
    return {"rmse": unit * jnp.sqrt(gap / target.size), "r2": 1.0 - gap / spread}
