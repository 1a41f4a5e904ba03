"""Two-dimensional convolution; its two gradients are convolutions again, written out as such.

On a CPU wide kernels are products over rows of pixels, which are faster there.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from bpeq.core.numerics import by_real_parts
from bpeq.core.tracing import disable_fast_paths
from bpeq.layers._initialisers import Initialiser, initialise
from bpeq.settings import Count, Positive, SettingError, Whole, checked
from bpeq.types import Key, Layer, Params, Shape

Pads = tuple[tuple[int, int], ...]
WIDE, DEEP = 5, 64
"""The kernel's side, and its rows times channels, from which on products are the faster way."""

DIMENSIONS = ("NHWC", "HWIO", "NHWC")
"""The one layout that XLA's CPU compiler is fast at inside a loop; others cost 30×."""


@checked
def conv(
    features: Count,
    kernel: Count,
    stride: Count = 1,
    padding: Literal["SAME", "VALID"] | Whole = "SAME",
    *,
    init: Initialiser = "glorot_uniform",
    scale: Positive = 1.0,
    bias: bool = True,
    bias_init: Literal["zeros", "normal", "uniform", "fan_in_uniform"] = "zeros",
) -> Layer:
    """z[p] = b + Σ_q x[p·stride + q − pad]·w[q] over the offsets q of a square kernel.

    No kernel is flipped going forward (a cross-correlation, as in every library). With δ = ∂C/∂z

        ∂C/∂x = δ, its pixels `stride` apart, convolved with the flipped kernel wᵀ
        ∂C/∂w[q] = Σ_p x[p·stride + q − pad] δ[p]        ∂C/∂b = Σ_p δ[p]

    summed over the batch. `backward` reads the flipped kernel from `feedback`.

    Shapes: x `[batch, height, width, n]`, z `[batch, height', width', features]`; params
    `{"w": [kernel, kernel, n, features], "b": [features]}` (no "b" without bias). Complex x, δ or w
    work, without a conjugate. Keeps x for the backward pass, nothing else.

    Args:
      features: output channels, >= 1.
      kernel: side of the kernel in pixels, >= 1.
      stride: pixels between two outputs, >= 1.
      padding: zeros around the image: "SAME" gives ceil(size / stride) outputs (an odd zero goes to
        the far side), "VALID" none, a whole number that many pixels on every side.
      init: initialiser of w, multiplied by `scale`; fan-in kernel²·n, fan-out kernel²·features.
      scale: factor on the initial weights, > 0.
      bias: whether there is a b.
      bias_init: initialiser of b.

    Raises:
      ValueError: a setting is out of range, one example is no `[height, width, channels]` image, or
        the kernel is larger than the padded image.

    Example:
      >>> import jax
      >>> params, shape = conv(32, kernel=5).init(jax.random.key(0), (28, 28, 1))
      >>> shape, params["w"].shape
      ((28, 28, 32), (5, 5, 1, 32))

    Source: LeCun et al. 1998, Gradient-based learning applied to document recognition.
    """

    def pads(x: Shape) -> Pads:
        return _pads(x[0], kernel, stride, padding), _pads(x[1], kernel, stride, padding)

    def make(key: Key, shape: Shape) -> tuple[Params, Shape]:
        if len(shape) != 3:
            raise ValueError(
                f"conv: one example has shape {shape}, needs (height, width, channels)"
            )
        n, around = shape[2], pads(shape)
        padded = [size + sum(pad) for size, pad in zip(shape[:2], around, strict=True)]
        if min(padded) < kernel:
            remedy = (
                f"is larger than the padded image; images are {shape[0]} x {shape[1]} with "
                f"padding = {padding!r}"
            )
            raise SettingError("conv", "kernel", kernel, remedy)
        w_key, b_key = jax.random.split(key)
        fan_in = kernel * kernel * n
        params = {"w": initialise(init, w_key, (kernel, kernel, n, features), fan_in, scale)}
        if bias:
            params["b"] = initialise(bias_init, b_key, (features,), fan_in)
        height, width = ((size - kernel) // stride + 1 for size in padded)
        return params, (height, width, features)

    def forward(params: Params, x: Array, key: Key | None = None) -> tuple[Array, Any]:
        if x.ndim != 4 or x.shape[3] != params["w"].shape[2]:
            raise ValueError(
                f"conv: input of shape {x.shape} does not fit weights of shape {params['w'].shape}"
            )
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            raise ValueError(f"conv: needs floating-point images, got {x.dtype}")
        z = _convolve(x, params["w"], pads(x.shape[1:]), stride)
        return (z + params["b"] if bias else z), x

    def backward(params: Params, feedback: Params, x: Array, delta: Array) -> tuple[Params, Array]:
        w_pads, x_pads = [], []
        sides = zip(pads(x.shape[1:]), delta.shape[1:3], x.shape[1:3], strict=True)
        for (low, _), out, size in sides:
            span = (out - 1) * stride + 1  # δ's extent over the image
            w_pads.append((low, kernel - 1 + span - size - low))
            x_pads.append((kernel - 1 - low, size + low - span))
        # Every offset q of w meets δ laid over the image from q on: x's channels are the batch of
        # this convolution, its batch is what is summed over, and δ is the kernel.
        images, kernels = x.transpose(3, 1, 2, 0), delta.transpose(1, 2, 0, 3)
        dw = _convolve(images, kernels, tuple(w_pads), apart=stride).transpose(1, 2, 0, 3)
        flipped = lax.rev(feedback["w"], (0, 1)).transpose(0, 1, 3, 2)
        dx = _convolve(delta, flipped, tuple(x_pads), spread=stride)
        dparams = {"w": dw}
        if bias:
            dparams["b"] = jnp.sum(delta, axis=(0, 1, 2))
        return dparams, dx

    return Layer("conv", make, forward, backward)


def _pads(size: int, kernel: int, stride: int, padding: str | int) -> tuple[int, int]:
    """Zeros before and after an image of `size` pixels."""
    if padding == "SAME":
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        return total // 2, total - total // 2
    return (0, 0) if padding == "VALID" else (int(padding), int(padding))


def _convolve(
    x: Array, w: Array, padding: Pads, stride: int = 1, *, spread: int = 1, apart: int = 1
) -> Array:
    """A convolution by XLA, or by products where they are faster.

    spread: pixels from one of x to the next. apart: the same of w.
    """
    plain = stride == spread == apart == 1

    def real(x: Array, w: Array) -> Array:
        if plain and rows_pay(x, w, padding):
            return convolve_rows(x, w, padding)
        strides, apart_x, apart_w = ((pixels, pixels) for pixels in (stride, spread, apart))
        return lax.conv_general_dilated(x, w, strides, padding, apart_x, apart_w, DIMENSIONS)

    return by_real_parts(real, x, w)


def rows_pay(x: Array, w: Array, pads: Pads) -> bool:
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
def convolve_rows(x: Array, w: Array, pads: Pads) -> Array:
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


@convolve_rows.defjvp
def _derivative(
    pads: Pads, primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    def own(x: Array, w: Array) -> Array:
        return lax.conv_general_dilated(x, w, (1, 1), pads, dimension_numbers=DIMENSIONS)

    return jax.jvp(own, primals, tangents)
