"""What it takes to compute one gradient: sweeps, multiply-accumulates, seconds, bytes."""

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
    """What it takes to compute one gradient of one batch, on the machine at hand.

    sweeps:  the mean over the examples, all phases together; 0 for rules that do not relax.
    macs:    multiply-accumulates of the products and convolutions. A solve to a residual runs until
        the slowest example of the batch has settled.
    seconds: the median wall time of the compiled estimate, warm.
    bytes:   memory beside its arguments and results; 0 if unknown.
    """

    sweeps: float
    macs: float
    seconds: float
    bytes: int


class CompiledGradient(NamedTuple):
    """One gradient, compiled and counted, ready to be timed: `call()` computes it.

    sweeps, macs, bytes: as in `GradientResources`.
    """

    call: Callable[[], Any]
    sweeps: float
    macs: float
    bytes: int


def compiled_gradient(
    rule: LearningRule, params: Params, batch: Batch, state: State, key: Key
) -> CompiledGradient:
    """Compiles `rule.estimate(params, batch, state, key)` for these weights, and counts it.

    Args:
      rule: the learning rule.
      params, state: as the rule's `init` gives them, or as training left them. The sweeps of a
        solve to a residual depend on the weights.
      batch: x `[batch, ...]` and y.
      key: of the estimate.

    Returns:
      The gradient, to be given to `measure_gradients`.
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
    """Times gradients in turn, under the same load of the machine.

    Args:
      gradients: by the names of their rules.

    Returns:
      What each of them takes, by the same names.

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
    """The median wall time of each call in seconds, with its results awaited.

    Calls take turns, so that all of them share the load of the machine. The first turn, which may
    compile, does not count.

    Args:
      calls: of compiled or jitted functions.
      budget: seconds for each call. Turns repeat until all of it is spent, at least 5 and at most
        200 times.
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
