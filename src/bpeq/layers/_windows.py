"""What pooling layers share: the windows of an image, one array per offset, and the way back.

An image `[batch, height, width, n]` is seen as window² arrays `[batch, height', width', n]`, the
i-th of which holds the pixel at offset i (row by row, this is *window order*) of every window. Rows
and columns left over at the far sides belong to no window.

Small or overlapping windows are strided slices, which XLA fuses into one loop, and their transposes
are pads: the program grows with window². Large ones side by side (past `FEW` a side) are a reshape.
"""

from __future__ import annotations

import functools

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from bpeq.types import Shape

FEW = 4


def pooled_shape(name: str, shape: Shape, window: int, stride: int) -> Shape:
    """The shape of one pooled example.

    Raises:
      ValueError: one example is no `[height, width, channels]` image, or smaller than a window.
    """
    if len(shape) != 3:
        raise ValueError(f"{name}: one example has shape {shape}, needs (height, width, channels)")
    height, width, n = shape
    if window > min(height, width):
        raise ValueError(
            f"{name}: window = {window} is larger than the image; images are {height} x {width}"
        )
    return (height - window) // stride + 1, (width - window) // stride + 1, n


def views(x: Array, window: int, stride: int) -> Array:
    """The pixels of all windows, offset by offset: `[window², batch, height', width', n]`."""
    batch, n = x.shape[0], x.shape[3]
    rows, columns, _ = pooled_shape("pool", x.shape[1:], window, stride)
    if window == stride > FEW:
        x = x[:, : rows * window, : columns * window]
        x = x.reshape(batch, rows, window, columns, window, n).transpose(2, 4, 0, 1, 3, 5)
        return x.reshape(-1, batch, rows, columns, n)
    down, right = (rows - 1) * stride + 1, (columns - 1) * stride + 1
    return jnp.stack(
        [
            lax.slice(x, (0, i, j, 0), (batch, i + down, j + right, n), (1, stride, stride, 1))
            for i in range(window)
            for j in range(window)
        ]
    )


def spread(parts: Array, window: int, stride: int, image: Shape) -> Array:
    """The transpose of `views`: every part's pixels added up where they were read from."""
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


def total(parts: Array) -> Array:
    """The sum over axis 0; few terms are written out, on CPU ten times as fast as a reduction."""
    few = parts.shape[0] <= FEW * FEW
    return functools.reduce(jnp.add, parts) if few else jnp.sum(parts, axis=0)


def largest(parts: Array) -> Array:
    """The maximum over axis 0, likewise."""
    few = parts.shape[0] <= FEW * FEW
    return functools.reduce(jnp.maximum, parts) if few else jnp.max(parts, axis=0)
