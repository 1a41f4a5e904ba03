"""The affine layer and its backward pass: the four equations of backpropagation live here."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bpeq.core.numerics import by_real_parts
from bpeq.layers._initialisers import Initialiser, initialise
from bpeq.settings import Count, Positive, checked
from bpeq.types import Key, Layer, Params, Shape


@checked
def dense(
    features: Count,
    *,
    init: Initialiser = "glorot_uniform",
    scale: Positive = 1.0,
    bias: bool = True,
    bias_init: Literal["zeros", "normal", "uniform", "fan_in_uniform"] = "zeros",
) -> Layer:
    """z = x·w + b on the last axis.

    With δ = ∂C/∂z the backward pass is

        ∂C/∂w = a δ      ∂C/∂b = δ      ∂C/∂a = wᵀ δ

    summed over the batch, where a is the layer's input. `backward` reads wᵀ from `feedback`.

    Shapes: x `[batch, ..., n]`, z `[batch, ..., features]`; params `{"w": [n, features], "b":
    [features]}` (no "b" without bias). Keeps x for the backward pass, nothing else.

    Args:
      features: outputs, >= 1.
      init: initialiser of w, multiplied by `scale`.
      scale: factor on the initial weights, > 0.
      bias: whether there is a b.
      bias_init: initialiser of b.

    Raises:
      ValueError: a setting is out of range, or an input has no axis to act on.

    Example:
      >>> import jax
      >>> params, shape = dense(3).init(jax.random.key(0), (5,))
      >>> shape, params["w"].shape
      ((3,), (5, 3))

    Source: Rumelhart, Hinton & Williams 1986, Learning representations by back-propagating errors.
    """

    def make(key: Key, shape: Shape) -> tuple[Params, Shape]:
        if not shape:
            raise ValueError("dense: one example has shape (), it needs one axis or more")
        n = shape[-1]
        w_key, b_key = jax.random.split(key)
        params = {"w": initialise(init, w_key, (n, features), n, scale)}
        if bias:
            params["b"] = initialise(bias_init, b_key, (features,), n)
        return params, (*shape[:-1], features)

    def forward(params: Params, x: Array, key: Key | None = None) -> tuple[Array, Any]:
        if x.shape[-1] != params["w"].shape[0]:
            raise ValueError(
                f"dense: input of shape {x.shape} does not fit weights of shape {params['w'].shape}"
            )
        z = by_real_parts(jnp.matmul, x, params["w"])
        return (z + params["b"] if bias else z), x

    def backward(params: Params, feedback: Params, a: Array, delta: Array) -> tuple[Params, Array]:
        rows, deltas = a.reshape(-1, a.shape[-1]), delta.reshape(-1, delta.shape[-1])
        dparams = {"w": by_real_parts(jnp.matmul, rows.T, deltas)}  # ∂C/∂w = a δ
        if bias:
            dparams["b"] = jnp.sum(deltas, axis=0)  # ∂C/∂b = δ
        return dparams, by_real_parts(jnp.matmul, delta, feedback["w"].T)  # ∂C/∂a = wᵀ δ

    return Layer("dense", make, forward, backward)
