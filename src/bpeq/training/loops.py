"""Training: one scan per epoch, for all seeds of a run at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int

from bpeq.settings import SettingError
from bpeq.training.evaluation import Metrics, settling
from bpeq.training.optimizers import apply_updates
from bpeq.types import Batch, Estimate, Key, Layer, LearningRule, Params, Step


class Carry(NamedTuple):
    """What a supervised step passes to the next one.

    params: the weights. optimizer: the optimizer's state. rule: the rule's state.
    """

    params: Params
    optimizer: Any
    rule: Any


def supervised(rule: LearningRule, optimizer: optax.GradientTransformation) -> Step:
    """A training step: the rule's estimate, through the optimizer, into the weights.

    Args:
      rule: makes the estimates. No optimizer changes the leaves that it declares as not trained.
      optimizer: any optax optimizer.

    Returns:
      A Step, (carry, batch, key) -> (carry, metrics), with a `Carry`. Metrics are scalars of the
      batch: the `loss` before the update, and for a relaxing rule the metrics of
      `evaluation.settling`.
    """

    def step(carry: Carry, batch: Batch, key: Key) -> tuple[Carry, Metrics]:
        estimate, state = rule.estimate(carry.params, batch, carry.rule, key)
        old = carry.optimizer
        params, optimizer_state = apply_estimate(rule, optimizer, carry.params, old, estimate)
        metrics = {"loss": estimate.loss, **settling(estimate.info)}
        return Carry(params, optimizer_state, state), metrics

    return step


def apply_estimate(
    rule: LearningRule,
    optimizer: optax.GradientTransformation,
    params: Params,
    optimizer_state: Any,
    estimate: Estimate,
) -> tuple[Params, Any]:
    """Update the weights by one estimate: first the optimizer's update, then the rule's `absorb`.

    The optimizer changes no leaf that the rule declares as not trained, also with weight decay or
    momentum. So the statistics of batch norm stay as `absorb` writes them.

    Args:
      rule: the rule of the estimate; this function reads its `trained` and `absorb`.
      optimizer: any optax optimizer.
      params: the weights of the estimate.
      optimizer_state: the optimizer's state before the update.
      estimate: the estimate of one batch.

    Returns:
      (weights, optimizer's state), both after the update.
    """
    updates, optimizer_state = optimizer.update(estimate.grads, optimizer_state, params)
    moved = apply_updates(params, updates, rule.trained)
    if rule.absorb is not None:
        moved = rule.absorb(moved, estimate.info)
    return moved, optimizer_state


def start(
    rule: LearningRule,
    optimizer: optax.GradientTransformation,
    params: Params,
    key: Key,
    x: Array | None = None,
    batch_size: int = 1,
) -> Carry:
    """The first carry of `supervised`: the rule's init on `params`, then the optimizer's.

    Args:
      rule: as for `supervised`.
      optimizer: as for `supervised`.
      params: as the init of the network or system gives them.
      key: key of the rule's init.
      x: the whole data set, `[n, ...]`, so that a rule that remembers examples makes room for them;
        None: the rule remembers nothing.
      batch_size: examples per update, >= 1.

    Returns:
      A Carry.
    """
    params, state = rule.init(key, params)
    if x is not None and rule.prepare is not None:
        state = rule.prepare(params, state, x, batch_size)
    return Carry(params, optimizer.init(params), state)


@dataclass(frozen=True)
class Loop:
    """A pure function that runs a step many times, and which of its arguments differ between seeds.

    run: (carry, ..., count) -> (carry, metrics), with a static `count` as its last argument.
    seed_axes: for each argument before `count`: 0 if every seed has its own value, stacked on axis
        0; None if the seeds share one value.
    """

    run: Callable[..., tuple[Any, Metrics]]
    seed_axes: tuple[int | None, ...]

    def __call__(self, *args: Any, **named: Any) -> tuple[Any, Metrics]:
        return self.run(*args, **named)


def epoch_scan(step: Step, batch_size: int) -> Loop:
    """A loop that runs `count` epochs of `step` on a data set that lives on the device.

    The loop is (carry, x, y, rows, key, first, count) -> (carry, metrics `[count]`), with metrics
    averaged over the steps of an epoch. `rows` `[m]` are the indices of the training examples.
    Epoch e visits them in m // batch_size batches, in an order that depends on (key, e) alone. The
    examples that do not fill a batch are left out in that epoch; they differ from epoch to epoch.
    If one batch holds all rows, there is no shuffling. `first` is the index of the first epoch.
    `count` is static.

    Args:
      step: one update, such as that of `supervised`.
      batch_size: examples per update, 1 to m.

    Returns:
      The Loop.
    """

    def run(
        carry: Any, x: Array, y: Array, rows: Int[Array, " m"], key: Key, first: Array, count: int
    ) -> tuple[Any, Metrics]:
        per_epoch = rows.shape[0] // batch_size

        def epoch(carry: Any, number: Array) -> tuple[Any, Metrics]:
            order_key, step_key = jax.random.split(jax.random.fold_in(key, number))
            # One batch of all rows needs no shuffling.
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

    return Loop(run, (0, None, None, 0, 0, None))


def step_scan(step: Step, sample: Callable[[Key], Any] = lambda key: None) -> Loop:
    """A loop that runs `count` steps, each on its own batch from `sample(key)`.

    The loop is (carry, key, first, count) -> (carry, metrics `[1]`), with metrics averaged over the
    steps. The batch and the random numbers of step i depend on (key, i) alone. `count` is static.
    This loop serves environments, and tasks that generate their data.

    Args:
      step: one update.
      sample: key -> the batch of one step; the default gives None, for tasks without data.

    Returns:
      The Loop.
    """

    def run(carry: Any, key: Key, first: Array, count: int) -> tuple[Any, Metrics]:
        def one(carry: Any, i: Array) -> tuple[Any, Metrics]:
            batch_key, step_key = jax.random.split(jax.random.fold_in(key, i))
            return step(carry, sample(batch_key), step_key)

        carry, metrics = jax.lax.scan(one, carry, first + jnp.arange(count))
        return carry, jax.tree.map(lambda m: m.mean(axis=0, keepdims=True), metrics)

    return Loop(run, (0, 0, None))


def over_seeds(
    loop: Loop, network: Layer | None = None, placing: jax.sharding.Sharding | None = None
) -> Callable[..., tuple[Any, Metrics]]:
    """A loop for S seeds at once, jitted.

    Args:
      loop: a Loop of `epoch_scan` or `step_scan`, or your own. Arguments whose `seed_axes` are 0
        get a leading axis S. The seeds share the others.
      network: as in `each_seed`.
      placing: the sharding of the results; None: JAX chooses.

    Returns:
      A function of the loop's arguments. It donates the carry; its last argument is static.
    """

    @partial(
        jax.jit,
        static_argnums=len(loop.seed_axes),
        donate_argnums=0,
        out_shardings=placing,
        compiler_options=compiling(),
    )
    def all_seeds(*args: Any) -> tuple[Any, Metrics]:
        run = partial(loop.run, count=args[-1])
        return each_seed(run, loop.seed_axes, network)(*args[:-1])

    return all_seeds


def compiling() -> dict[str, Any]:
    """XLA's compiler options for a training loop.

    On a CPU with AVX-512 XLA then uses whole vectors, where it would use half of them. Sweeps
    consist mostly of elementwise work and take about a fifth less time. Results do not change.

    Returns:
      The options, for `jax.jit`; empty on other devices.
    """
    return {"xla_cpu_prefer_vector_width": 512} if jax.default_backend() == "cpu" else {}


def each_seed(
    f: Callable[..., Any], axes: tuple[int | None, ...], network: Layer | None = None
) -> Callable[..., Any]:
    """`jax.vmap(f, axes)`; on a CPU one seed after the other if `network` has convolutions.

    vmap turns convolutions with different kernels into one grouped convolution. XLA's CPU compiler
    takes several times as long for it as for all of them one by one.

    Args:
      f: a function of one seed.
      axes: for each of its arguments 0 if every seed has its own value on axis 0; otherwise None.
      network: the network that `f` trains or evaluates; None: it has no convolutions.

    Returns:
      The function of all seeds.
    """
    if network is None or jax.default_backend() != "cpu" or not _convolves(network):
        return jax.vmap(f, in_axes=axes)

    def in_turn(*args: Any) -> Any:
        def one(own: list[Any]) -> Any:
            given = iter(own)
            mixed = [next(given) if axis == 0 else a for a, axis in zip(args, axes, strict=True)]
            return f(*mixed)

        return jax.lax.map(one, [a for a, axis in zip(args, axes, strict=True) if axis == 0])

    return in_turn


def _convolves(layer: Layer) -> bool:
    """Whether a layer is or contains a convolution."""
    return layer.name == "conv" or any(map(_convolves, layer.parts))


class TrainResult(NamedTuple):
    """A finished training.

    params: the weights. state: the rule's state. metrics: means per epoch, `[epochs]`.
    """

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
    """Train `params` on all examples of `batch` by a rule, as one compiled program.

    Args:
      rule: makes the gradients.
      optimizer: turns gradients into updates; any optax optimizer. It changes no leaf that the rule
        declares as not trained.
      params: as `network.init` gives them. The function copies them and does not change them.
      batch: the whole training set, x `[n, ...]` and y `[n, ...]`.
      epochs: number of passes over the set, >= 1.
      batch_size: examples per update, 1 to n.
      key: determines the rule's init, the order of the examples and all random numbers.

    Returns:
      A TrainResult.

    Raises:
      ValueError: `epochs` or `batch_size` is out of range, x and y have different lengths, or an
        integer label is not a class of the outputs.

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
        raise SettingError("train", "batch_size", batch_size, f"must be 1 to {n}, the examples")
    if epochs < 1:
        raise SettingError("train", "epochs", epochs, "must be >= 1")
    _check_labels(rule, params, batch)
    start_key, run_key = jax.random.split(key)
    x, y = jnp.asarray(batch.x), jnp.asarray(batch.y)
    carry = start(rule, optimizer, params, start_key, x, batch_size)
    scanned = partial(epoch_scan(supervised(rule, optimizer), batch_size).run, count=epochs)
    run = jax.jit(scanned, compiler_options=compiling())
    carry, metrics = run(carry, x, y, jnp.arange(n), run_key, jnp.asarray(0))
    return TrainResult(carry.params, carry.rule, metrics)


def _check_labels(rule: LearningRule, params: Params, batch: Batch) -> None:
    """Refuse integer labels that are not a class; inside jit they would silently match no class."""
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
