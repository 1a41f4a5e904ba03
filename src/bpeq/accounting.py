"""What one gradient costs: sweeps, multiply-accumulates, seconds and bytes of memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from bpeq.counting import count_macs
from bpeq.fidelity import sweeps_of
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


def gradient_cost(
    rule: LearningRule, params: Params, batch: Batch, state: State, key: Key
) -> GradientCost:
    """The cost of `rule.estimate` at these weights, on this batch.

    Args:
      params, state: as the rule's `init` gives them, or as training left them: how many sweeps a
        solve to a residual takes depends on the weights.
    """
    args = (params, batch, state, key)
    compiled = jax.jit(rule.estimate).lower(*args).compile()
    analysis = compiled.memory_analysis()
    return GradientCost(
        sweeps=sweeps_of(compiled(*args)[0]),
        macs=count_macs(rule.estimate, *args),
        seconds=seconds_of(compiled, *args),
        bytes=int(analysis.temp_size_in_bytes) if analysis is not None else 0,
    )


def seconds_of(fn: Callable[..., Any], *args: Any, budget: float = 0.5) -> float:
    """The median wall time of `fn(*args)`, its results awaited; a first call goes uncounted.

    Args:
      fn: compiled, or jitted: what the first call compiles is not measured.
      budget: seconds; calls are repeated until it is spent, at least 5 and at most 200 times.
    """
    jax.block_until_ready(fn(*args))
    spent: list[float] = []
    while len(spent) < 5 or (sum(spent) < budget and len(spent) < 200):
        began = time.perf_counter()
        jax.block_until_ready(fn(*args))
        spent.append(time.perf_counter() - began)
    return float(np.median(spent))
