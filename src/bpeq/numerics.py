"""Stable elementary functions that also take complex arguments."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array


def logsumexp(z: Array, axis: int = -1, keepdims: bool = False) -> Array:
    """log Σ exp(z) along `axis`, with the largest real part taken out first.

    >>> import jax.numpy as jnp
    >>> round(float(logsumexp(jnp.array([1000.0, 1000.0]))), 2)
    1000.69
    """
    top = lax.stop_gradient(jnp.max(z.real, axis=axis, keepdims=True))
    top = jnp.where(jnp.isfinite(top), top, 0.0).astype(z.dtype)
    total = jnp.log(jnp.sum(jnp.exp(z - top), axis=axis, keepdims=True)) + top
    return total if keepdims else jnp.squeeze(total, axis)


def softmax(z: Array, axis: int = -1) -> Array:
    """exp(z) / Σ exp(z) along `axis`, with the largest real part taken out first.

    >>> import jax.numpy as jnp
    >>> softmax(jnp.array([-1e4, 0.0, 0.0])).tolist()
    [0.0, 0.5, 0.5]
    """
    top = lax.stop_gradient(jnp.max(z.real, axis=axis, keepdims=True)).astype(z.dtype)
    weight = jnp.exp(z - top)
    return weight / jnp.sum(weight, axis=axis, keepdims=True)


def log_softmax(z: Array, axis: int = -1) -> Array:
    """z − log Σ exp(z) along `axis`."""
    return z - logsumexp(z, axis=axis, keepdims=True)


def xlogy(x: Array, y: Array) -> Array:
    """x log y, and 0 where x = 0."""
    zero = x == 0
    return jnp.where(zero, 0.0, x * jnp.log(jnp.where(zero, 1.0, y)))
