"""Reshaping one example to a vector."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from bpeq.types import Key, Layer, Params, Shape


def flatten() -> Layer:
    """y = x as `[batch, n]`, with n the product of the example's axes.

    The pull-back is the reshape back. Keeps the input's shape only, as an empty array.

    Example:
      >>> import jax
      >>> flatten().init(jax.random.key(0), (8, 8, 1))[1]
      (64,)
    """

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        return (), (math.prod(shape),)

    def forward(params: Params, x: Array, key: Key | None = None) -> tuple[Array, Any]:
        return x.reshape(x.shape[0], -1), jnp.empty((0, *x.shape[1:]), x.dtype)

    def backward(params: Params, feedback: Params, like: Array, dy: Array) -> tuple[Params, Array]:
        return (), dy.reshape(dy.shape[0], *like.shape[1:])

    return Layer("flatten", init, forward, backward)
