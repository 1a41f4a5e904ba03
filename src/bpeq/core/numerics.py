"""Stable elementary functions that also accept complex arguments."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array


def logsumexp(z: Array, axis: int = -1, keepdims: bool = False) -> Array:
    """log Σ exp(z) along `axis`. The largest real part is subtracted first, against overflow.

    Args:
      z: real or complex, any shape.
      axis: the axis of the sum; the last one by default.
      keepdims: whether that axis stays, with size 1.

    Returns:
      An array without that axis, or with size 1 there.

    >>> import jax.numpy as jnp
    >>> round(float(logsumexp(jnp.array([1000.0, 1000.0]))), 2)
    1000.69
    """
    top = _top(z, axis)
    total = jnp.sum(jnp.exp(z - top), axis=axis, keepdims=True)
    # Without a term the sum is zero. The inner `where` keeps NaN out of the derivative of its log.
    none = total == 0
    total = jnp.where(none, -jnp.inf, jnp.log(jnp.where(none, 1.0, total))) + top
    return total if keepdims else jnp.squeeze(total, axis)


def softmax(z: Array, axis: int = -1) -> Array:
    """exp(z) / Σ exp(z) along `axis`. The largest real part is subtracted first, against overflow.

    Args:
      z: real or complex, any shape.
      axis: the axis along which the result sums to 1; the last one by default.

    Returns:
      An array in the shape of z.

    >>> import jax.numpy as jnp
    >>> softmax(jnp.array([-1e4, 0.0, 0.0])).tolist()
    [0.0, 0.5, 0.5]
    """
    top = lax.stop_gradient(jnp.max(z.real, axis=axis, keepdims=True)).astype(z.dtype)
    weight = jnp.exp(z - top)
    return weight / jnp.sum(weight, axis=axis, keepdims=True)


def log_softmax(z: Array, axis: int = -1) -> Array:
    """z − log Σ exp(z) along `axis`. The largest real part is subtracted from z first.

    So the result is right where the sum's logarithm is small against z.

    Args:
      z: real or complex, any shape.
      axis: the axis along which exp of the result sums to 1; the last one by default.

    Returns:
      An array in the shape of z.

    >>> import jax.numpy as jnp
    >>> [round(float(p), 3) for p in log_softmax(jnp.array([1e30, 1e30]))]
    [-0.693, -0.693]
    """
    shifted = z - _top(z, axis)
    return shifted - jnp.log(jnp.sum(jnp.exp(shifted), axis=axis, keepdims=True))


def _top(z: Array, axis: int) -> Array:
    """The largest real part along `axis`, in the dtype of z; 0 if it is not finite."""
    top = lax.stop_gradient(jnp.max(z.real, axis=axis, keepdims=True))
    return jnp.where(jnp.isfinite(top), top, 0.0).astype(z.dtype)


def xlogy(x: Array, y: Array) -> Array:
    """x log y, and 0 for x = 0.

    Args:
      x: any array.
      y: an array of the same shape, > 0 wherever x is not 0.

    Returns:
      An array in the shape of x.
    """
    zero = x == 0
    return jnp.where(zero, 0.0, x * jnp.log(jnp.where(zero, 1.0, y)))


def by_real_parts(product: Callable[[Array, Array], Array], x: Array, w: Array) -> Array:
    """A bilinear `product` of real or complex x and w, computed by two or four real products.

    JAX's convolution of two complex arrays uses three real ones. A small imaginary part then
    disappears in the round-off of the real part. JAX's complex matrix product is several times
    slower on a CPU than four real ones.

    Args:
      product: (x, w) -> array, linear in each.
      x: real or complex.
      w: real or complex.

    Returns:
      product(x, w).

    >>> import jax.numpy as jnp
    >>> by_real_parts(jnp.matmul, jnp.array([1.0 + 2.0j]), jnp.array([3.0 - 1.0j])).item()
    (5+5j)
    """
    if jnp.iscomplexobj(x) and jnp.iscomplexobj(w):
        real = product(x.real, w.real) - product(x.imag, w.imag)
        return lax.complex(real, product(x.real, w.imag) + product(x.imag, w.real))
    if jnp.iscomplexobj(x):
        return lax.complex(product(x.real, w), product(x.imag, w))
    if jnp.iscomplexobj(w):
        return lax.complex(product(x, w.real), product(x, w.imag))
    return product(x, w)
