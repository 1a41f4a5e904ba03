"""The errors of a device: few levels, limits, mismatch of weights, noise."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bpeq.core import sharding
from bpeq.settings import SettingError
from bpeq.types import Key, Params, State


class Levels:
    """Limits and levels of one kind of quantity, weights or states.

        Q(a) = min + Δ round((clip(a) − min) / Δ),   Δ = (max − min) / (2^bits − 1)

    Derivatives pass straight through the steps of the levels. They are zero beyond the limits.

    Args:
      what: "weight" or "state", for messages.
      bits: number of bits; None: no levels.
      low: lower limit; None: none.
      high: upper limit; None: none.

    `given` holds the settings by name. `clip` applies the limits; None if there are none. `change`
    applies limits and levels; None if there are none.

    Raises:
      SettingError: bits without both limits, or limits in the wrong order.
    """

    def __init__(self, what: str, bits: int | None, low: float | None, high: float | None) -> None:
        self.given = {f"{what}_bits": bits, f"{what}_min": low, f"{what}_max": high}
        if bits is not None and (low is None or high is None):
            remedy = f"needs {what}_min and {what}_max to lay its levels between"
            raise SettingError("imperfect", f"{what}_bits", bits, remedy)
        if low is not None and high is not None and low >= high:
            raise SettingError("imperfect", f"{what}_max", high, f"must be > {what}_min = {low!r}")
        self._low, self._high = low, high
        limited = low is not None or high is not None
        self.clip = self._clip if limited else None
        self.change = self.clip
        if bits is not None:
            assert low is not None
            assert high is not None
            start, step = low, (high - low) / (2**bits - 1)
            self.change = lambda a: start + step * _nearest((self._clip(a) - start) / step)

    def _clip(self, a: Array) -> Array:
        return jnp.clip(a, self._low, self._high)


@jax.custom_jvp
def _nearest(a: Array) -> Array:
    """Round to the nearest integer, with derivative 1."""
    return jnp.round(a)


_nearest.defjvp(lambda primals, tangents: (_nearest(*primals), *tangents))


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

    def project(params: Params) -> Params:
        projected = params if own is None else own(params)
        return _each_weight(lambda leaf, i: clip(leaf), projected, trained)

    return project


def _each_weight(change: Callable[[Array, int], Array], params: Params, trained: Trained) -> Params:
    """`change(leaf, index)` for each leaf that is trained; running statistics stay as they are."""
    leaves, structure = jax.tree.flatten(params)
    weights = [True] * len(leaves) if trained is None else jax.tree.leaves(trained(params))
    pairs = zip(leaves, weights, strict=True)
    changed = [change(leaf, i) if is_weight else leaf for i, (leaf, is_weight) in enumerate(pairs)]
    return jax.tree.unflatten(structure, changed)


def example_keys(key: Key, examples: int) -> Array:
    """A key for each example, by its place in the whole batch.

    Args:
      key: the key of the estimate's noise.
      examples: number of examples that this device has.

    Returns:
      Keys `[examples]`.
    """
    return jax.vmap(jax.random.fold_in, (None, 0))(key, sharding.places(examples))


def folded(keys: Array, n: Array | int) -> Array:
    """Other keys, for sweep or phase n.

    Args:
      keys: `[batch]`.
      n: the index of the sweep or phase; may be traced.

    Returns:
      Keys `[batch]`.
    """
    return jax.vmap(jax.random.fold_in, (0, None))(keys, n)


def normal_like(keys: Array, like: State) -> State:
    """Standard normal numbers in the shapes of `like`, one random stream for each example.

    Args:
      keys: `[batch]`, one for each example.
      like: a state, with `[batch, ...]` leaves.

    Returns:
      A tree like `like`.

    Example:
      >>> keys = example_keys(jax.random.key(0), 2)
      >>> normal_like(keys, (jnp.zeros((2, 3)),))[0].shape
      (2, 3)
    """
    leaves, structure = jax.tree.flatten(like)
    drawn = []
    for i, leaf in enumerate(leaves):
        real = jnp.finfo(leaf.dtype).dtype
        draw = jax.vmap(partial(jax.random.normal, shape=leaf.shape[1:], dtype=real))
        drawn.append(draw(folded(keys, i)).astype(leaf.dtype))
    return jax.tree.unflatten(structure, drawn)
