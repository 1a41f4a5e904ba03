"""The data, and the networks that are timed, each after a first epoch of training."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.timing import Program, compiled, said
from bpeq import costs, data, layers, rules, solvers, systems
from bpeq.layers import chain, conv, dense, hard_sigmoid, max_pool, shifted_sigmoid
from bpeq.training import loops
from bpeq.types import Batch, Cost, Layer, LearningRule, Params, System

COST: Cost = costs.squared_error()
BETA, RATE = 0.1, 0.1


class Images(NamedTuple):
    """28 × 28 pictures `[n, 28, 28, 1]` and labels; which rows train, which test."""

    name: str
    x: jax.Array
    y: jax.Array
    rows: jax.Array
    test: jax.Array


class Task(NamedTuple):
    """A network, its Hopfield system, weights after training, and how they were trained."""

    name: str
    network: Layer
    system: System
    params: Params
    x: jax.Array
    images: Images
    trained: str
    error: float


@functools.cache
def images() -> Images:
    """MNIST where $BPEQ_DATA has it; else the built-in 8 × 8 digits, each pixel 3 × 3 of them."""
    root = os.environ.get("BPEQ_DATA", "")
    if root and (Path(root).expanduser() / "mnist").is_dir():
        found, name = data.mnist(root=root), "MNIST"
        x, rows = found.x, found.train[0]
    else:
        found, name = data.digits(), "digits, 8 × 8 enlarged to 28 × 28"
        x = np.pad(found.x.repeat(3, 1).repeat(3, 2), ((0, 0), (2, 2), (2, 2), (0, 0)))
        rows = np.resize(found.train[0], 20_000)
    return Images(name, *map(jnp.asarray, (x, found.y, rows, found.test[0])))


def mlp(*hidden: int) -> Layer:
    """784-hidden-10 with σ(4s − 2) on every state."""
    widths = (*hidden, 10)
    return chain(*(part for n in widths for part in (dense(n), shifted_sigmoid())))


def cnn() -> Layer:
    """32 and 64 channels of 5 × 5, each max-pooled; a linear output."""
    start: Any = {"init": "fan_in_uniform", "bias_init": "fan_in_uniform"}
    blocks = [(conv(n, 5, padding="VALID", **start), max_pool(2), hard_sigmoid()) for n in (32, 64)]
    return chain(*blocks[0], *blocks[1], layers.flatten(), dense(10, **start))


def eqprop(system: System, free: Any, nudged: Any, **settings: Any) -> LearningRule:
    """Centered at β = 0.1 unless said otherwise."""
    return rules.eqprop(system, COST, free, nudged, **{"beta": BETA, **settings})


def fixed(system: System, free: int = 30, nudged: int = 10, **settings: Any) -> LearningRule:
    """Equilibrium propagation with a fixed number of sweeps."""
    made = solvers.fixed_steps(free), solvers.fixed_steps(nudged)
    return eqprop(system, *made, **settings)


def epoch(
    rule: LearningRule,
    params: Params,
    x: jax.Array,
    y: jax.Array,
    rows: jax.Array,
    batch: int,
    optimizer: optax.GradientTransformation | None = None,
) -> Program:
    """One epoch over `rows`, as `bpeq.train` runs it; it gives (carry, metrics)."""
    optimizer = optax.sgd(RATE) if optimizer is None else optimizer
    run = loops.epoch_scan(loops.supervised(rule, optimizer), batch)
    carry = loops.start(rule, optimizer, params, jax.random.key(1), x, batch)
    args = carry, x, y, rows, jax.random.key(2), jnp.asarray(0)
    return compiled(partial(run, count=1), *args, steps=len(rows) // batch)


def steps(task: Task, rule: LearningRule, batch: int, count: int, **more: Any) -> Program:
    """`count` updates from the task's trained weights, the same ones in every call."""
    rows = jnp.resize(task.images.rows, (batch * count,))
    return epoch(rule, task.params, task.x, task.images.y, rows, batch, **more)


def examples(task: Task, count: int) -> Batch:
    """The first `count` training examples."""
    rows = task.images.rows[:count]
    return Batch(task.x[rows], task.images.y[rows])


@functools.cache
def reference(quick: bool = False) -> Task:
    """784-512-10 after an epoch of SGD as in Ernoult et al. 2019: rate 0.1, batch 20."""
    return _trained("784-512-10", mlp(512), (784,), fixed, optax.sgd(RATE), 20, quick)


@functools.cache
def deep(quick: bool = False) -> Task:
    """784-512-512-512-10 after an epoch of Adam, rate 1e-4, β 0.5: SGD kills its outputs."""
    rule = partial(fixed, free=20, nudged=8, beta=0.5)
    network = mlp(512, 512, 512)
    return _trained("784-512-512-512-10", network, (784,), rule, optax.adam(1e-4), 20, quick)


@functools.cache
def convolutional(quick: bool = False) -> Task:
    """The convolutional network after an epoch of Adam, which takes three minutes."""
    rule = partial(fixed, free=12, nudged=6)
    return _trained("cnn", cnn(), (28, 28, 1), rule, optax.adam(1e-3), 20, quick)


def _trained(
    name: str,
    network: Layer,
    shape: tuple[int, ...],
    rule: Callable[[System], LearningRule],
    optimizer: optax.GradientTransformation,
    batch: int,
    quick: bool,
) -> Task:
    found = images()
    system, x = systems.hopfield(network), found.x.reshape(-1, *shape)
    count = min(len(found.rows) // batch, 100) if quick else len(found.rows) // batch
    params, _ = network.init(jax.random.key(0), shape)
    made = rule(system)
    program = epoch(made, params, x, found.y, found.rows[: count * batch], batch, optimizer)
    params = program.call()[0].params
    error = _error(made, params, x, found)
    said(f"  {name}: {count} updates of {batch}, test error {error:.1%}")
    whole = "an epoch" if count == len(found.rows) // batch else f"{count} updates"
    return Task(name, network, system, params, x, found, f"{whole}, batch {batch}", error)


def _error(rule: LearningRule, params: Params, x: jax.Array, found: Images) -> float:
    apply = jax.jit(rule.apply)
    test: Sequence[int] = found.test[:1000]
    outputs = apply(params, x[test])
    return float(jnp.mean(jnp.argmax(outputs, -1) != found.y[test]))
