"""Softmax-weighted pooling: between average and maximum, and holomorphic."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from bpeq.layers._windows import largest, pooled_shape, spread, total, views
from bpeq.settings import Count, Positive, checked
from bpeq.types import Key, Layer, Params, Shape


@checked
def soft_pool(window: Count, stride: Count | None = None, temperature: Positive = 1.0) -> Layer:
    """y = Σ_i p_i x_i with p = softmax(x / temperature) over a square window, channel by channel.

    ∂y/∂x_i = p_i (1 + (x_i − y) / temperature), which sums to one over a window. Near the maximum
    for a small temperature, near the average for a large one. Complex x works: the largest real
    part, taken out of the exponent, cancels exactly, so y is holomorphic away from Σ exp = 0.

    Shapes: x `[batch, height, width, n]`, y `[batch, height', width', n]` with height' =
    (height − window) // stride + 1; rows and columns left over belong to no window, and their error
    is zero. No parameters. Keeps ∂y/∂x_i, `[window², batch, height', width', n]`, and the input's
    shape as an empty array.

    As a connection in an energy it depends on the state below, so a half of an alternating sweep is
    no exact minimisation: the energy can rise and the sweeps can cycle.

    Args:
      window: side of a window in pixels, >= 1.
      stride: pixels between windows, >= 1; None is `window`, windows side by side.
      temperature: in the units of x, > 0.

    Raises:
      ValueError: a setting is out of range, or the window is larger than the image.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.array([[0.0, 0.0], [0.0, jnp.log(3.0)]]).reshape(1, 2, 2, 1)
      >>> round(soft_pool(2).forward((), x)[0].item(), 4), round(float(jnp.log(3.0)) / 2, 4)
      (0.5493, 0.5493)

    Source: Stergiou, Poppe & Kalliatakis 2021, Refining activation downsampling with SoftPool; in
    holomorphic EP, Laborieux & Zenke 2022.
    """
    step = window if stride is None else stride

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        return (), pooled_shape("soft_pool", shape, window, step)

    def forward(params: Params, x: Array, key: Key | None = None) -> tuple[Array, Any]:
        pixels = views(x, window, step)
        top = lax.stop_gradient(largest(pixels.real)).astype(x.dtype)
        weight = jnp.exp((pixels - top) / temperature)
        norm = total(weight)
        y = total(weight * pixels) / norm
        slope = weight / norm * (1.0 + (pixels - y) / temperature)
        return y, (slope, jnp.empty((0, *x.shape[1:]), x.dtype))

    def backward(params: Params, feedback: Params, kept: Any, delta: Array) -> tuple[Params, Array]:
        slope, like = kept
        return (), spread(delta * slope, window, step, like.shape[1:])

    return Layer("soft_pool", init, forward, backward)
