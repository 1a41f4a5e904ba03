"""Average pooling: the one pooling that is linear."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from bpeq.layers._windows import pooled_shape
from bpeq.settings import Count, checked
from bpeq.types import Key, Layer, Params, Shape


@checked
def avg_pool(window: Count, stride: Count | None = None) -> Layer:
    """y = mean of x over square windows, channel by channel; dx = δ / window² on all their pixels.

    Shapes: x `[batch, height, width, n]`, y `[batch, height', width', n]` with height' =
    (height − window) // stride + 1; rows and columns left over belong to no window, and their error
    is zero. No parameters. Complex x works. Keeps the input's shape only, as an empty array.

    Args:
      window: side of a window in pixels, >= 1.
      stride: pixels between windows, >= 1; None is `window`, windows side by side.

    Raises:
      ValueError: a setting is out of range, or the window is larger than the image.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.array([[4.0, 1.0], [3.0, 2.0]]).reshape(1, 2, 2, 1)
      >>> avg_pool(2).forward((), x)[0].item()
      2.5

    Source: LeCun et al. 1990, Handwritten digit recognition with a back-propagation network.
    """
    step = window if stride is None else stride

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        return (), pooled_shape("avg_pool", shape, window, step)

    def forward(params: Params, x: Array, key: Key | None = None) -> tuple[Array, Any]:
        pooled_shape("avg_pool", x.shape[1:], window, step)
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            raise ValueError(f"avg_pool: needs floating-point images, got {x.dtype}")
        total = _box_sum(x, window, step)
        return total / window**2, jnp.empty((0, *x.shape[1:]), x.dtype)

    def backward(
        params: Params, feedback: Params, like: Array, delta: Array
    ) -> tuple[Params, Array]:
        sizes, zero = like.shape[1:3], jnp.zeros((), delta.dtype)
        share = delta / window**2
        if step == window:  # each pixel has one window: copy its δ, then the rows left over
            batch, rows, columns, n = share.shape
            copies = jnp.broadcast_to(
                share[:, :, None, :, None], (batch, rows, window, columns, window, n)
            ).reshape(batch, rows * window, columns * window, n)
            left = [
                (0, size - out * window, 0)
                for size, out in zip(sizes, share.shape[1:3], strict=True)
            ]
            return (), lax.pad(copies, zero, ((0, 0, 0), *left, (0, 0, 0)))
        # A pixel's error is the sum over the windows that it is in: lay δ out `stride` apart, with
        # room for a window around it, and sum the same boxes, one pixel apart.
        around = [
            (window - 1, size - (out - 1) * step - 1, step - 1)
            for size, out in zip(sizes, share.shape[1:3], strict=True)
        ]
        return (), _box_sum(lax.pad(share, zero, ((0, 0, 0), *around, (0, 0, 0))), window, 1)

    return Layer("avg_pool", init, forward, backward)


def _box_sum(x: Array, window: int, stride: int) -> Array:
    zero = np.zeros((), x.dtype)[()]  # known at trace time: else JAX sees no sum to differentiate
    box, steps = (1, window, window, 1), (1, stride, stride, 1)
    return lax.reduce_window(x, zero, lax.add, box, steps, "VALID")
