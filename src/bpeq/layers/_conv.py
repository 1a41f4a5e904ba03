"""Two-dimensional convolution; its two gradients are convolutions again, written out as such."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from bpeq.core.numerics import by_real_parts
from bpeq.layers import _row_products
from bpeq.layers._initialisers import Initialiser, initialise
from bpeq.settings import Count, Positive, SettingError, Whole, checked
from bpeq.types import Key, Layer, Params, Shape

Pads = tuple[tuple[int, int], tuple[int, int]]


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
        if any(size + sum(pad) < kernel for size, pad in zip(shape[:2], around, strict=True)):
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
        height, width = (
            (size + sum(pad) - kernel) // stride + 1
            for size, pad in zip(shape[:2], around, strict=True)
        )
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
        lows = [low for low, _ in pads(x.shape[1:])]
        sizes = x.shape[1:3]
        spans = [(out - 1) * stride + 1 for out in delta.shape[1:3]]  # δ's extent over the image
        # Every offset q of w meets δ laid over the image from q on: x's channels are the batch of
        # this convolution, its batch is what is summed over, and δ is the kernel.
        dw = _convolve(
            x.transpose(3, 1, 2, 0),
            delta.transpose(1, 2, 0, 3),
            tuple(
                (low, kernel - 1 + span - size - low)
                for low, span, size in zip(lows, spans, sizes, strict=True)
            ),
            apart=stride,
        ).transpose(1, 2, 0, 3)
        dx = _convolve(
            delta,
            lax.rev(feedback["w"], (0, 1)).transpose(0, 1, 3, 2),
            tuple(
                (kernel - 1 - low, size + low - span)
                for low, span, size in zip(lows, spans, sizes, strict=True)
            ),
            spread=stride,
        )
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
    x: Array,
    w: Array,
    padding: _row_products.Pads,
    stride: int = 1,
    *,
    spread: int = 1,
    apart: int = 1,
) -> Array:
    """A convolution by XLA, or by products where they are faster.

    spread: pixels from one of x to the next. apart: the same of w.
    """
    plain = stride == spread == apart == 1

    def real(x: Array, w: Array) -> Array:
        if plain and _row_products.pay(x, w, padding):
            return _row_products.convolve(x, w, padding)
        return lax.conv_general_dilated(
            x,
            w,
            (stride, stride),
            padding,
            lhs_dilation=(spread, spread),
            rhs_dilation=(apart, apart),
            dimension_numbers=_row_products.DIMENSIONS,
        )

    return by_real_parts(real, x, w)
