"""Noise that needs no counter: random numbers that a state's own bits choose."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt

from bpeq.types import Key, State


def noise_of(key: Key, before: State, after: State) -> State:
    """Standard normal numbers in the shape of `after`, one stream for each example's two states.

    A function of (key, before, after), so that what it is added to stays a pure function. A state
    that a push, another sweep or its own noise has moved by one bit draws other numbers.

    Example:
      >>> s = (jnp.zeros((2, 3)),)
      >>> a, b = noise_of(jax.random.key(0), s, s)[0], noise_of(jax.random.key(0), s, s)[0]
      >>> bool((a == b).all()), a.shape
      (True, (2, 3))
    """
    words = _hash((before, after))
    keys = jax.vmap(lambda a, b: jax.random.fold_in(jax.random.fold_in(key, a), b))(*words)
    leaves, structure = jax.tree.flatten(after)
    drawn = []
    for i, leaf in enumerate(leaves):
        shape, dtype = leaf.shape[1:], jnp.finfo(leaf.dtype).dtype

        def one(key: Key, i: int = i, shape: tuple = shape, dtype: np.dtype = dtype) -> Array:
            return jax.random.normal(jax.random.fold_in(key, i), shape, dtype)

        drawn.append(jax.vmap(one)(keys).astype(leaf.dtype))
    return jax.tree.unflatten(structure, drawn)


def _hash(state: State) -> tuple[UInt[Array, " batch"], UInt[Array, " batch"]]:
    """Two words an example: sums of the state's bits, modulo 2^32, by fixed odd multipliers."""
    bits = []
    for leaf in jax.tree.leaves(jax.lax.stop_gradient(state)):
        for part in (leaf.real, leaf.imag) if jnp.iscomplexobj(leaf) else (leaf,):
            whole = part if part.dtype.itemsize >= 4 else part.astype(jnp.float32)
            word = jax.lax.bitcast_convert_type(whole, jnp.uint32)
            bits.append(word.reshape(leaf.shape[0], -1))
    flat = jnp.concatenate(bits, axis=1)
    flat = flat ^ (flat >> 16)  # else two signs turned round would cancel
    odd = np.random.default_rng(0).integers(0, 2**31, (2, flat.shape[1]), np.uint32) * 2 + 1
    a, b = (jnp.sum(flat * jnp.asarray(row), axis=1, dtype=jnp.uint32) for row in odd)
    return a, b
