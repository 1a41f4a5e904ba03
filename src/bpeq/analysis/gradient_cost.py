"""What one gradient costs: sweeps, multiply-accumulates, seconds and bytes of memory."""

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


class GradientCost(NamedTuple):
    """What one gradient of one batch costs, on the machine at hand.

    sweeps:  an example's mean, all phases together; 0 for rules that do not relax.
    macs:    multiply-accumulates of the products and convolutions that were executed. A solve to a
        residual runs until the slowest example of the batch has settled.
    seconds: the median wall time of the compiled estimate, warm.
    bytes:   memory that it takes beside its arguments and results; 0 if unknown.
    """

    sweeps: float
    macs: float
    seconds: float
    bytes: int


class CompiledGradient(NamedTuple):
    """One gradient, compiled and counted, ready to be timed: `call()` computes it."""

    call: Callable[[], Any]
    sweeps: float
    macs: float
    bytes: int


def compiled_gradient(
    rule: LearningRule, params: Params, batch: Batch, state: State, key: Key
) -> CompiledGradient:
    """`rule.estimate(params, batch, state, key)`, compiled for these weights.

    Args:
      params, state: as the rule's `init` gives them, or as training left them: how many sweeps a
        solve to a residual takes depends on the weights.
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


def gradient_costs(gradients: Mapping[str, CompiledGradient]) -> dict[str, GradientCost]:
    """What each gradient costs; all are timed in turn, under the same load of the machine.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from bpeq import costs, layers, rules
      >>> network = layers.chain(layers.dense(3))
      >>> params, _ = network.init(jax.random.key(0), (4,))
      >>> batch = Batch(jnp.ones((2, 4)), jnp.ones((2, 3)))
      >>> rule = rules.backprop(network, costs.squared_error())
      >>> gradient = compiled_gradient(rule, params, batch, (), jax.random.key(1))
      >>> gradient_costs({"BP": gradient})["BP"].macs
      48.0
    """
    seconds = seconds_of([gradient.call for gradient in gradients.values()])
    return {
        name: GradientCost(g.sweeps, g.macs, s, g.bytes)
        for (name, g), s in zip(gradients.items(), seconds, strict=True)
    }


def seconds_of(calls: Sequence[Callable[[], Any]], budget: float = 0.5) -> list[float]:
    """The median wall time of each call, its results awaited; a first one each goes uncounted.

    Calls take turns, so that what else the machine does falls on all of them alike.

    Args:
      calls: of compiled functions, or jitted ones: what the first call compiles is not measured.
      budget: seconds a call; turns are repeated until all is spent, at least 5 and at most 200
        times.
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
