"""Pooling by the mean, the maximum and the softmax of windows.

An image `[batch, height, width, n]` is seen as window² arrays `[batch, height', width', n]`, the
i-th of which holds the pixel at offset i (row by row, this is *window order*) of every window. Rows
and columns left over at the far sides belong to no window.

Small or overlapping windows are strided slices, which XLA fuses into one loop, and their transposes
are pads: the program grows with window². Large ones side by side (past `FEW` a side) are a reshape.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from bpeq.settings import Count, Positive, SettingError, checked
from bpeq.types import Key, Layer, Params, Shape

FEW = 4


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

    def forward(params: Params, x: Array, key: Key | None = None) -> tuple[Array, Any]:
        pooled_shape("avg_pool", x.shape[1:], window, step)
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            raise ValueError(f"avg_pool: needs floating-point images, got {x.dtype}")
        total = _box_sum(x, window, step)
        return total / window**2, jnp.empty((0, *x.shape[1:]), x.dtype)

    def backward(params: Params, feedback: Params, like: Any, delta: Array) -> tuple[Params, Array]:
        share, zero = delta / window**2, jnp.zeros((), delta.dtype)
        sizes = zip(like.shape[1:3], share.shape[1:3], strict=True)
        if step == window:  # each pixel has one window: copy its δ, then the rows left over
            batch, rows, columns, n = share.shape
            copies = jnp.broadcast_to(
                share[:, :, None, :, None], (batch, rows, window, columns, window, n)
            ).reshape(batch, rows * window, columns * window, n)
            left = [(0, size - out * window, 0) for size, out in sizes]
            return (), lax.pad(copies, zero, ((0, 0, 0), *left, (0, 0, 0)))
        # A pixel's error is the sum over the windows that it is in: lay δ out `stride` apart, with
        # room for a window around it, and sum the same boxes, one pixel apart.
        around = [(window - 1, size - (out - 1) * step - 1, step - 1) for size, out in sizes]
        return (), _box_sum(lax.pad(share, zero, ((0, 0, 0), *around, (0, 0, 0))), window, 1)

    return Layer("avg_pool", _init("avg_pool", window, step), forward, backward)


def _box_sum(x: Array, window: int, stride: int) -> Array:
    zero = np.zeros((), x.dtype)[()]  # known at trace time: else JAX sees no sum to differentiate
    box, steps = (1, window, window, 1), (1, stride, stride, 1)
    return lax.reduce_window(x, zero, lax.add, box, steps, "VALID")


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
    init = _init("max_pool", window, step)
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

    def forward(params: Params, x: Array, key: Key | None = None) -> tuple[Array, Any]:
        pixels = views(x, window, step)
        top = lax.stop_gradient(_reduce(jnp.maximum, jnp.max, pixels.real)).astype(x.dtype)
        weight = jnp.exp((pixels - top) / temperature)
        norm = _reduce(jnp.add, jnp.sum, weight)
        # A pixel without weight may be −∞; 0 times it would be NaN.
        pixels = jnp.where(weight == 0, 0.0, pixels)
        y = _reduce(jnp.add, jnp.sum, weight * pixels) / norm
        slope = weight / norm * (1.0 + (pixels - y) / temperature)
        return y, (slope, jnp.empty((0, *x.shape[1:]), x.dtype))

    def backward(params: Params, feedback: Params, kept: Any, delta: Array) -> tuple[Params, Array]:
        slope, like = kept
        return (), spread(delta * slope, window, step, like.shape[1:])

    return Layer("soft_pool", _init("soft_pool", window, step), forward, backward)


def _init(name: str, window: int, stride: int) -> Callable[[Key, Shape], tuple[Params, Shape]]:
    """A pooling layer's `init`: no parameters."""
    return lambda key, shape: ((), pooled_shape(name, shape, window, stride))


def pooled_shape(name: str, shape: Shape, window: int, stride: int) -> Shape:
    """The shape of one pooled example.

    Args:
      name: the layer's name, for errors.
      shape: of one image.
      window: side of a window in pixels.
      stride: pixels between windows.

    Raises:
      ValueError: one example is no `[height, width, channels]` image, or smaller than a window.
    """
    if len(shape) != 3:
        raise ValueError(f"{name}: one example has shape {shape}, needs (height, width, channels)")
    height, width, n = shape
    if window > min(height, width):
        raise SettingError(
            name, "window", window, f"is larger than the image; images are {height} x {width}"
        )
    return (height - window) // stride + 1, (width - window) // stride + 1, n


def views(x: Array, window: int, stride: int) -> Array:
    """The pixels of all windows, offset by offset: `[window², batch, height', width', n]`.

    Args:
      x: `[batch, height, width, n]`.
      window: side of a window in pixels.
      stride: pixels between windows.
    """
    batch, n = x.shape[0], x.shape[3]
    rows, columns, _ = pooled_shape("pool", x.shape[1:], window, stride)
    if window == stride > FEW:
        x = x[:, : rows * window, : columns * window]
        x = x.reshape(batch, rows, window, columns, window, n).transpose(2, 4, 0, 1, 3, 5)
        return x.reshape(-1, batch, rows, columns, n)
    down, right = (rows - 1) * stride + 1, (columns - 1) * stride + 1
    parts = []
    for i, j in itertools.product(range(window), repeat=2):
        end = (batch, i + down, j + right, n)
        parts.append(lax.slice(x, (0, i, j, 0), end, (1, stride, stride, 1)))
    return jnp.stack(parts)


def spread(parts: Array, window: int, stride: int, image: Shape) -> Array:
    """The transpose of `views`: every part's pixels added up where they were read from.

    Args:
      parts: as `views` gives them.
      window: side of a window in pixels.
      stride: pixels between windows.
      image: the shape of one image.
    """
    _, batch, rows, columns, n = parts.shape
    zero = jnp.zeros((), parts.dtype)
    if window == stride > FEW:
        left = [(0, image[0] - rows * window, 0), (0, image[1] - columns * window, 0)]
        x = parts.reshape(window, window, batch, rows, columns, n).transpose(2, 3, 0, 4, 1, 5)
        x = x.reshape(batch, rows * window, columns * window, n)
        return lax.pad(x, zero, ((0, 0, 0), *left, (0, 0, 0)))
    below, beside = image[0] - (rows - 1) * stride - 1, image[1] - (columns - 1) * stride - 1
    total = jnp.zeros((batch, *image), parts.dtype)
    for offset in range(window * window):
        i, j = divmod(offset, window)
        config = ((0, 0, 0), (i, below - i, stride - 1), (j, beside - j, stride - 1), (0, 0, 0))
        total = total + lax.pad(parts[offset], zero, config)
    return total


def _reduce(combine: Callable[..., Array], whole: Callable[..., Array], parts: Array) -> Array:
    """A reduction of axis 0; few parts are written out, on CPU ten times as fast."""
    few = parts.shape[0] <= FEW * FEW
    return functools.reduce(combine, parts) if few else whole(parts, axis=0)
