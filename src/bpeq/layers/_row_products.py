"""A convolution as products over rows of pixels: what a CPU is faster at for wide kernels."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from bpeq.core.tracing import disable_fast_paths

WIDE, DEEP = 5, 64
"""The kernel's side, and its rows times channels, from which on products are the faster way."""

Pads = tuple[tuple[int, int], ...]


def pay(x: Array, w: Array, pads: Pads) -> bool:
    """Whether products over rows are faster than XLA's own convolution: on a CPU.

    Of 3 × 3 kernels they are not, nor where the result is much narrower than the image, nor on
    other devices, whose libraries have kernels of their own.

    Args:
      x: images `[n, height, width, channels]`.
      w: kernels `[rows, columns, channels, features]`.
      pads: zeros before and after the rows, and the columns.
    """
    rows, columns, channels, _ = w.shape
    wide = min(rows, columns) >= WIDE and rows * channels >= DEEP
    narrow = 2 * (x.shape[2] + sum(pads[1]) - columns + 1) < x.shape[2]
    real = x.dtype in (jnp.float32, jnp.float64)
    return (
        wide and not narrow and real and not disable_fast_paths() and jax.default_backend() == "cpu"
    )


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def convolve(x: Array, w: Array, pads: Pads) -> Array:
    """Σ_ij x[n, h+i−top, v+j−left, c] w[i, j, c, f], zero outside of the image.

    One product for each column j of the kernel, over all its rows i and channels c at once; then
    the products of all columns, each moved by its j, are added. Derivatives are XLA's.

    x `[n, height, width, channels]`, w `[rows, columns, channels, features]`.
    """
    (top, bottom), (left, right) = pads
    rows, columns, channels, features = w.shape
    height, width = x.shape[1] + top + bottom - rows + 1, x.shape[2]
    wider = left + right - columns + 1  # the result than the image
    zero = jnp.zeros((), x.dtype)
    padded = lax.pad(x, zero, ((0, 0, 0), (top, bottom, 0), (0, 0, 0), (0, 0, 0)))
    patches = jnp.concatenate([padded[:, i : i + height] for i in range(rows)], axis=-1)
    flat, total = patches.reshape(-1, rows * channels), zero
    for j in range(columns):
        part = flat @ w[:, j].reshape(rows * channels, features)
        part = part.reshape(-1, height, width, features)
        moved = (left - j, wider - left + j, 0)  # what is negative cuts off
        total = total + lax.pad(part, zero, ((0, 0, 0), (0, 0, 0), moved, (0, 0, 0)))
    return total


@convolve.defjvp
def _derivative(
    pads: Pads, primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    def own(x: Array, w: Array) -> Array:
        return lax.conv_general_dilated(x, w, (1, 1), pads, dimension_numbers=DIMENSIONS)

    return jax.jvp(own, primals, tangents)


DIMENSIONS = ("NHWC", "HWIO", "NHWC")
"""The one layout that XLA's CPU compiler is fast at inside a loop; others cost 30×."""
