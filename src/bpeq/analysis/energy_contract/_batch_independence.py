"""Checks whether an example's energy and sweep depend on the other examples of its batch."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bpeq.analysis.energy_contract._context import Context, Finding, draw_state
from bpeq.core import trees
from bpeq.types import State

TOLERANCE = 1e-9  # round-off, because a batch may sum in another order


def batch_independence_finding(context: Context, key: jax.Array) -> Finding:
    """Computes max |in a batch − alone| over the largest value, for the energy and for a sweep.

    Args:
      context: the system. Its batch is doubled by copies of the examples in another state.
      key: draws the states.

    Returns:
      The finding "alone".
    """
    system, params = context.system, context.params

    def values(x: Any, state: State) -> dict[str, Any]:
        clamped = system.clamp(params, x)
        sweep = {"sweep": system.sweep(params, clamped, state)}
        if system.energy is None:
            return sweep
        return {**sweep, "energy": system.energy(params, clamped, state)}

    @jax.jit
    def both(x: Any, state: State, others: State) -> tuple[Any, Any]:
        batch = jax.tree.map(lambda *pair: jnp.concatenate(pair), (x, state), (x, others))
        one = jax.vmap(lambda *example: values(*jax.tree.map(lambda a: a[None], example)))
        return values(*batch), jax.tree.map(lambda a: a[:, 0], one(x, state))

    states = (draw_state(context, k) for k in jax.random.split(key))
    together, alone = both(context.x, *states)
    gaps = {}
    for name in alone:
        pairs = zip(jax.tree.leaves(together[name]), jax.tree.leaves(alone[name]), strict=True)
        size = float(jnp.max(trees.max_abs(jax.tree.map(jnp.atleast_1d, alone[name]))))
        gaps[name] = max(float(np.abs(a[: len(b)] - b).max()) for a, b in pairs) / max(size, 1e-300)
    worst = max(gaps, key=lambda name: gaps[name])
    passed = bool(gaps[worst] <= TOLERANCE)
    words = f"an example's {' and '.join(sorted(gaps))} are the same alone and in a batch"
    if not passed:
        words = f"an example's {worst} depends on its batch mates: by {gaps[worst]:.1e} of its size"
    return Finding("alone", passed, gaps[worst], words)
