"""The real weights of a device, from those that it should have, and their limits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bpeq.systems.devices._levels import Levels
from bpeq.types import Params

Trained = Callable[[Params], Any] | None
"""Tells which leaves are weights, as a layer's `trained` does; None: all."""


def device(weights: Levels, mismatch: float, seed: int, trained: Trained) -> Callable[..., Params]:
    """The map from stored weights to the real weights of a device.

        θ′ = Q(θ) ⊙ max(0, 1 + mismatch · n),      n ~ N(0, 1)

    Args:
      weights: limits and levels Q.
      mismatch: relative standard deviation, >= 0.
      seed: seed of n, >= 0.
      trained: which leaves are weights; None: all.

    Returns:
      (stored weights, index of the device = 0) -> real weights.
    """

    def see(params: Params, device: Any = 0) -> Params:
        key = jax.random.fold_in(jax.random.key(seed), device)

        def one(leaf: Array, i: int) -> Array:
            real = jnp.real(leaf)
            real = real if weights.change is None else weights.change(real)
            if mismatch > 0:  # draw in float32: the same device in any precision
                n = jax.random.normal(jax.random.fold_in(key, i), leaf.shape, jnp.float32)
                real = real * jnp.maximum(1.0 + mismatch * n, 0.0).astype(real.dtype)
            return real.astype(leaf.dtype)

        return _each_weight(one, params, trained)

    return see


def within(weights: Levels, own: Callable[[Params], Params] | None, trained: Trained) -> Any:
    """A projection of the stored weights onto their limits.

    Args:
      weights: the limits.
      own: the projection that the system already has; it runs first. None: none.
      trained: which leaves are weights; None: all.

    Returns:
      params -> params; `own` if there are no limits.
    """
    clip = weights.clip
    if clip is None:
        return own
    return lambda params: _each_weight(
        lambda leaf, i: clip(leaf), params if own is None else own(params), trained
    )


def _each_weight(change: Callable[[Array, int], Array], params: Params, trained: Trained) -> Params:
    """`change(leaf, index)` for each leaf that is trained; running statistics stay as they are."""
    leaves, structure = jax.tree.flatten(params)
    weights = [True] * len(leaves) if trained is None else jax.tree.leaves(trained(params))
    pairs = zip(leaves, weights, strict=True)
    changed = [change(leaf, i) if is_weight else leaf for i, (leaf, is_weight) in enumerate(pairs)]
    return jax.tree.unflatten(structure, changed)
