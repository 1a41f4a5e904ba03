"""Dropout: in training a random share of the units is silent."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bpeq.core import sharding
from bpeq.settings import Fraction, checked
from bpeq.types import Key, Layer, Params, Shape


@checked
def dropout(rate: Fraction) -> Layer:
    """y = m ⊙ x / (1 − rate), each m independently 0 with probability `rate`, else 1; dx likewise.

    In evaluation (no key) it is the identity: what was left in was scaled up in training, so that
    E[y] = x ("inverted" dropout).

    Shapes: x, y any, `[batch, ...]`. No parameters. Keeps m as booleans in training, nothing in
    evaluation or at rate 0.

    Args:
      rate: the share of units to silence, in [0, 1).

    Raises:
      ValueError: the rate is out of range.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> layer, x = dropout(0.5), jnp.ones((1, 1000))
      >>> sorted(set(layer.forward((), x, jax.random.key(0))[0].ravel().tolist()))
      [0.0, 2.0]

    Source: Srivastava et al. 2014, Dropout: a simple way to prevent networks from overfitting.
    """

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        return (), shape

    def forward(params: Params, x: Array, key: Key | None = None) -> tuple[Array, Any]:
        if key is None or rate == 0.0:
            return x, None
        mask = sharding.drawn(partial(jax.random.bernoulli, key, 1.0 - rate), x.shape)
        return masked(mask, x), mask

    def backward(
        params: Params, feedback: Params, mask: Array | None, dy: Array
    ) -> tuple[Params, Array]:
        return (), dy if mask is None else masked(mask, dy)

    def masked(mask: Array, x: Array) -> Array:
        return jnp.where(mask, x / (1.0 - rate), jnp.zeros((), x.dtype))

    return Layer(
        "dropout",
        init,
        forward,
        backward,
        no_energy="draws a new mask at every pass, so that no energy stays the same; leave it out",
    )
