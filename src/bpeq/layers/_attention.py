"""Multi-head self-attention: four affine maps around one softmax."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bpeq.core.numerics import softmax
from bpeq.layers._dense import dense
from bpeq.layers._initialisers import Initialiser
from bpeq.settings import Count, Positive, SettingError, checked
from bpeq.types import Key, Layer, Params, Shape


@checked
def attention(
    heads: Count,
    causal: bool = False,
    *,
    init: Initialiser = "glorot_uniform",
    scale: Positive = 1.0,
) -> Layer:
    """y = o(concat over heads of p v), p = softmax(q kᵀ/√d) along the keys; d = n / heads.

    q, k, v and o are affine maps, `dense(n)` each; q, k and v of x are split into heads of d
    features. With γ = the error on p v, back through o,

        dv = pᵀ γ    dp = γ vᵀ    ds = p ⊙ (dp − Σ_keys dp ⊙ p)    dq = ds k/√d    dk = dsᵀ q/√d

    The four maps are pulled back by `dense`, which reads their transposes from `feedback`; q, k, v
    and p are activity and never come from there. The bias of k shifts all scores of a query alike:
    its gradient is zero.

    Shapes: x, y `[batch, steps, n]`; params `{"q", "k", "v", "o"}`, each `{"w": [n, n], "b": [n]}`.
    Complex x works, without a conjugate. Keeps x, q, k, v and p v, of x's size each, and p
    `[batch, heads, steps, steps]`.

    Args:
      heads: >= 1, a divisor of n.
      causal: whether a step sees itself and earlier steps only.
      init: initialiser of the four w, multiplied by `scale`.
      scale: factor on the initial weights, > 0.

    Raises:
      ValueError: a setting is out of range, one example is no `[steps, n]` sequence, or n is not
        divisible by `heads`.

    Example:
      >>> import jax
      >>> params, shape = attention(heads=2).init(jax.random.key(0), (7, 4))
      >>> shape, sorted(params)
      ((7, 4), ['k', 'o', 'q', 'v'])

    Source: Vaswani et al. 2017, Attention is all you need.
    """

    def make(key: Key, shape: Shape) -> tuple[Params, Shape]:
        if len(shape) != 2:
            raise ValueError(f"attention: one example has shape {shape}, needs (steps, features)")
        n = shape[1]
        if n % heads:
            raise SettingError("attention", "heads", heads, f"must divide the {n} features")
        affine = dense(n, init=init, scale=scale)
        keys = zip("qkvo", jax.random.split(key, 4), strict=True)
        return {name: affine.init(own, shape)[0] for name, own in keys}, shape

    def forward(params: Params, x: Array, key: Key | None = None) -> tuple[Array, Any]:
        q, k, v = (split(_AFFINE.forward(params[name], x)[0]) for name in "qkv")
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
        if causal:
            past = jnp.tril(jnp.ones(scores.shape[-2:], bool))
            scores = jnp.where(past, scores, -jnp.inf)
        p = softmax(scores)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", p, v)
        return _AFFINE.forward(params["o"], mixed.reshape(x.shape))[0], (x, q, k, v, p, mixed)

    def backward(params: Params, feedback: Params, kept: Any, delta: Array) -> tuple[Params, Array]:
        x, q, k, v, p, mixed = kept
        dparams = {}
        dparams["o"], gamma = _AFFINE.backward(
            params["o"], feedback["o"], mixed.reshape(x.shape), delta
        )
        gamma = split(gamma)
        dv = jnp.einsum("bhqk,bqhd->bkhd", p, gamma)
        dp = jnp.einsum("bqhd,bkhd->bhqk", gamma, v)
        ds = p * (dp - jnp.sum(dp * p, axis=-1, keepdims=True)) / math.sqrt(q.shape[-1])
        dq, dk = jnp.einsum("bhqk,bkhd->bqhd", ds, k), jnp.einsum("bhqk,bqhd->bkhd", ds, q)
        errors = []
        for name, error in (("q", dq), ("k", dk), ("v", dv)):
            dparams[name], dx = _AFFINE.backward(
                params[name], feedback[name], x, error.reshape(x.shape)
            )
            errors.append(dx)
        return dparams, errors[0] + errors[1] + errors[2]

    def split(x: Array) -> Array:
        batch, steps, n = x.shape
        return x.reshape(batch, steps, heads, n // heads)

    return Layer("attention", make, forward, backward)


_AFFINE = dense(1)  # its forward and backward take their sizes from the weights
