"""The same layer many times over, each with its own weights, as one scan."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from bpeq.layers._combine import combined, trained_leaves
from bpeq.layers._shapes import output_shape
from bpeq.settings import Count, checked
from bpeq.types import Key, Layer, Params, Shape


@checked
def repeat(layer: Layer, n: Count) -> Layer:
    """y = f_n(… f_1(x)), n copies of `layer`; forward and backward are one scan each.

    What a chain of n copies computes, but compiled once whatever n is; initial weights differ where
    the layer is a chain itself, which `chain` would flatten.
    Every leaf of params, feedback and residuals is the copies' leaves stacked on axis 0. Copy i
    draws from `fold_in(key, i)`. Keeps what its copies keep.

    Args:
      layer: one whose output has its input's shape and dtype.
      n: how many copies, >= 1.

    Raises:
      ValueError: n is out of range, or the layer changes the shape.

    Example:
      >>> import jax
      >>> from bpeq.layers import chain, dense, tanh
      >>> params, shape = repeat(chain(dense(3), tanh()), 50).init(jax.random.key(0), (3,))
      >>> shape, params[0]["w"].shape
      ((3,), (50, 3, 3))
    """

    def numbers() -> Array:
        return jnp.arange(n, dtype=jnp.uint32)

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        end = output_shape(layer, shape)
        if end != shape:
            raise ValueError(
                f"repeat: {layer.name} turns shape {shape} into {end}; it must keep it"
            )

        def copy(i: Array) -> Params:
            return layer.init(jax.random.fold_in(key, i), shape)[0]

        # One by one the copies would take n times as long to compile.
        return jax.vmap(copy)(numbers()), shape

    def forward(params: Params, x: Array, key: Key | None = None) -> tuple[Array, Any]:
        def copy(x: Array, own: Any) -> tuple[Array, Any]:
            return layer.forward(own[0], x, own[1])

        keys = None if key is None else jax.vmap(lambda i: jax.random.fold_in(key, i))(numbers())
        return lax.scan(copy, x, (params, keys), length=n)

    def backward(
        params: Params, feedback: Params, residuals: Any, delta: Array
    ) -> tuple[Params, Array]:
        def copy(delta: Array, own: Any) -> tuple[Array, Any]:
            own_params, own_feedback, kept = own
            dparams, dx = layer.backward(own_params, own_feedback, kept, delta)
            return dx, dparams

        dx, dparams = lax.scan(copy, delta, (params, feedback, residuals), length=n, reverse=True)
        return dparams, dx

    def absorb(params: Params, residuals: Any) -> Params:
        assert layer.absorb is not None
        return jax.vmap(layer.absorb)(params, residuals)

    def trained(params: Params) -> Any:
        return trained_leaves(layer, params)  # the copies are stacked: one leaf for all of them

    return combined("repeat", (layer,), init, forward, backward, absorb, trained)
