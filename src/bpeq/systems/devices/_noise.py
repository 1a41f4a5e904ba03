"""Noise from a key and a counter: each example, phase and sweep has its own random numbers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bpeq.core import sharding
from bpeq.types import Key, State


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
        draw = jax.vmap(
            lambda key, leaf=leaf, real=real: jax.random.normal(key, leaf.shape[1:], real)
        )
        drawn.append(draw(folded(keys, i)).astype(leaf.dtype))
    return jax.tree.unflatten(structure, drawn)
