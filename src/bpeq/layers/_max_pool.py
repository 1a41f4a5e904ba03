"""Max-pooling: the winner of every window passes, and gets the whole error back."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from bpeq.layers._windows import FEW, pooled_shape, spread, views
from bpeq.settings import Count, checked
from bpeq.types import Key, Layer, Params, Shape


@checked
def max_pool(window: Count, stride: Count | None = None) -> Layer:
    """y = max of x over square windows, channel by channel; dx is δ at each window's winner.

    Of equal pixels the first in window order (row by row) wins and gets the whole δ, as in
    `lax.reduce_window`; where windows overlap a pixel collects the δ of all that it won. NaN wins.

    Shapes: x `[batch, height, width, n]`, y `[batch, height', width', n]` with height' =
    (height − window) // stride + 1; rows and columns left over belong to no window, and their error
    is zero. No parameters. Keeps the number of each winner, one byte an output (four past
    window = 16), and the input's shape as an empty array.

    As a connection in an energy it is a choice that depends on the state: alternating sweeps
    minimise the energy only while the states are non-negative, and not at an argmax switch.

    Args:
      window: side of a window in pixels, >= 1.
      stride: pixels between windows, >= 1; None is `window`, windows side by side.

    Raises:
      ValueError: a setting is out of range, the window is larger than the image, or the input is
        complex, where there is no maximum (use `soft_pool` or `avg_pool`).

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.array([[3.0, 1.0], [3.0, 2.0]]).reshape(1, 2, 2, 1)
      >>> layer = max_pool(2)
      >>> y, kept = layer.forward((), x)
      >>> y.item(), layer.backward((), (), kept, jnp.ones_like(y))[1].reshape(2, 2).tolist()
      (3.0, [[1.0, 0.0], [0.0, 0.0]])

    Source: Riesenhuber & Poggio 1999, Hierarchical models of object recognition in cortex.
    """
    step = window if stride is None else stride
    small = jnp.uint8 if window <= 16 else jnp.int32

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        return (), pooled_shape("max_pool", shape, window, step)

    def forward(params: Params, x: Array, key: Key | None = None) -> tuple[Array, Any]:
        if jnp.iscomplexobj(x):
            raise ValueError("max_pool: a complex input has no maximum; use soft_pool or avg_pool")
        best, winner = _winner(views(x, window, step))
        return best, (winner.astype(small), jnp.empty((0, *x.shape[1:]), x.dtype))

    def backward(params: Params, feedback: Params, kept: Any, delta: Array) -> tuple[Params, Array]:
        winner, like = kept
        offsets = jnp.arange(window * window, dtype=small).reshape(-1, 1, 1, 1, 1)
        won = jnp.where(winner == offsets, delta, jnp.zeros((), delta.dtype))
        return (), spread(won, window, step, like.shape[1:])

    why = "takes a maximum, which complex numbers do not have; use soft_pool or avg_pool"
    return Layer("max_pool", init, forward, backward, not_holomorphic=why)


def _winner(pixels: Array) -> tuple[Array, Array]:
    """(max, argmax) along axis 0; few are written out, on CPU ten times as fast as a reduction."""
    if pixels.shape[0] > FEW * FEW:
        return jnp.max(pixels, axis=0), jnp.argmax(pixels, axis=0)
    best, winner = pixels[0], jnp.zeros(pixels.shape[1:], jnp.uint8)
    for offset, candidate in enumerate(pixels[1:], start=1):
        better = (candidate > best) | jnp.isnan(candidate)
        best = jnp.where(better, candidate, best)
        winner = jnp.where(better, jnp.uint8(offset), winner)
    return best, winner
