"""Measures the resources of one gradient: sweeps, multiply-accumulates, seconds, bytes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from bpeq.analysis.gradient_fidelity import sweeps_of
from bpeq.analysis.mac_count import count_macs
from bpeq.types import Batch, Key, LearningRule, Params, State


class GradientResources(NamedTuple):
    """The resources of one gradient of one batch, on this machine.

    Args:
      sweeps: the mean number of sweeps over the examples, all phases together; 0 for rules that do
        not relax.
      macs: the multiply-accumulates of matrix products and convolutions. A solve to a residual runs
        until the slowest example of the batch has settled.
      seconds: the median wall time of the compiled estimate, without compilation.
      bytes: the memory for intermediate results; 0 if unknown.
    """

    sweeps: float
    macs: float
    seconds: float
    bytes: int


class CompiledGradient(NamedTuple):
    """A compiled gradient with its counts, for timing.

    Args:
      call: computes the gradient.
      sweeps: as in `GradientResources`.
      macs: as in `GradientResources`.
      bytes: as in `GradientResources`.
    """

    call: Callable[[], Any]
    sweeps: float
    macs: float
    bytes: int


def compiled_gradient(
    rule: LearningRule, params: Params, batch: Batch, state: State, key: Key
) -> CompiledGradient:
    """Compiles `rule.estimate(params, batch, state, key)` and counts its operations.

    Args:
      rule: the learning rule.
      params: the parameters, from the rule's `init` or after training. The sweeps of a solve to a
        residual depend on them.
      batch: x `[batch, ...]` and y.
      state: the rule's state, from its `init` or after training.
      key: the random key of the estimate.

    Returns:
      The gradient, for `measure_gradients`.
    """
    args = (params, batch, state, key)
    compiled = jax.jit(rule.estimate).lower(*args).compile()
    analysis = compiled.memory_analysis()
    return CompiledGradient(
        call=partial(compiled, *args),
        sweeps=sweeps_of(compiled(*args)[0]),
        macs=count_macs(rule.estimate, *args),
        bytes=int(analysis.temp_size_in_bytes) if analysis is not None else 0,
    )


def measure_gradients(gradients: Mapping[str, CompiledGradient]) -> dict[str, GradientResources]:
    """Times gradients in turn, so that all of them have the same load of the machine.

    Args:
      gradients: compiled gradients by the names of their rules.

    Returns:
      The resources of each gradient, by the same names.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from bpeq import costs, layers, rules
      >>> network = layers.chain(layers.dense(3))
      >>> params, _ = network.init(jax.random.key(0), (4,))
      >>> batch = Batch(jnp.ones((2, 4)), jnp.ones((2, 3)))
      >>> rule = rules.backprop(network, costs.squared_error())
      >>> gradient = compiled_gradient(rule, params, batch, (), jax.random.key(1))
      >>> measure_gradients({"BP": gradient})["BP"].macs
      48.0
    """
    seconds = seconds_of([gradient.call for gradient in gradients.values()])
    return {
        name: GradientResources(g.sweeps, g.macs, s, g.bytes)
        for (name, g), s in zip(gradients.items(), seconds, strict=True)
    }


def seconds_of(calls: Sequence[Callable[[], Any]], budget: float = 0.5) -> list[float]:
    """Measures the median wall time of each call, until its results are ready.

    The calls take turns, so that all of them have the same load of the machine. The first turn may
    compile, and does not count.

    Args:
      calls: functions without arguments, compiled or jitted.
      budget: seconds for each call. The turns repeat until the sum is spent, at least 5 and at most
        200 times.

    Returns:
      Seconds for each call.
    """
    for call in calls:
        jax.block_until_ready(call())
    spent = np.empty((0, len(calls)))
    while len(spent) < 5 or (spent.sum() < budget * len(calls) and len(spent) < 200):
        turn = []
        for call in calls:
            began = time.perf_counter()
            jax.block_until_ready(call())
            turn.append(time.perf_counter() - began)
        spent = np.vstack([spent, turn])
    return np.median(spent, axis=0).tolist()
