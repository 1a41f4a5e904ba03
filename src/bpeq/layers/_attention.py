"""Multi-head self-attention, and the tables of vectors that stand before it."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from bpeq.core.numerics import softmax
from bpeq.layers._dense import dense
from bpeq.layers._initialisers import Initialiser, initialise
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
        own, back = params["o"], feedback["o"]
        dparams["o"], gamma = _AFFINE.backward(own, back, mixed.reshape(x.shape), delta)
        gamma = split(gamma)
        dv = jnp.einsum("bhqk,bqhd->bkhd", p, gamma)
        dp = jnp.einsum("bqhd,bkhd->bhqk", gamma, v)
        ds = p * (dp - jnp.sum(dp * p, axis=-1, keepdims=True)) / math.sqrt(q.shape[-1])
        dq, dk = jnp.einsum("bhqk,bkhd->bqhd", ds, k), jnp.einsum("bhqk,bqhd->bkhd", ds, q)
        errors = []
        for name, error in (("q", dq), ("k", dk), ("v", dv)):
            own, back = params[name], feedback[name]
            dparams[name], dx = _AFFINE.backward(own, back, x, error.reshape(x.shape))
            errors.append(dx)
        return dparams, errors[0] + errors[1] + errors[2]

    def split(x: Array) -> Array:
        batch, steps, n = x.shape
        return x.reshape(batch, steps, heads, n // heads)

    return Layer("attention", make, forward, backward)


_AFFINE = dense(1)  # its forward and backward take their sizes from the weights


@checked
def embedding(
    vocabulary: Count, features: Count, *, init: Initialiser = "normal", scale: Positive = 1.0
) -> Layer:
    """y = table[x] for integer x; dtable[i] = Σ of δ where x = i; dx is None, integers have none.

    `backward` reads nothing from `feedback`: no error goes on below.

    Shapes: x integers `[batch, ...]` in [0, vocabulary), y `[batch, ..., features]`; params
    `{"table": [vocabulary, features]}`. Keeps x.

    Args:
      vocabulary: how many different ids there are, >= 1.
      features: length of a vector, >= 1.
      init: initialiser of the table, multiplied by `scale`.
      scale: factor on the initial weights, > 0.

    Raises:
      ValueError: a setting is out of range, x is not of integers, or an id is out of range. Inside
        jit ids cannot be looked at, and JAX itself would be silent: such an id's vector is NaN.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> layer = embedding(10, 4)
      >>> params, shape = layer.init(jax.random.key(0), (7,))
      >>> shape, layer.forward(params, jnp.zeros((2, 7), int))[0].shape
      ((7, 4), (2, 7, 4))

    Source: Bengio et al. 2003, A neural probabilistic language model.
    """

    def make(key: Key, shape: Shape) -> tuple[Params, Shape]:
        table = initialise(init, key, (vocabulary, features), vocabulary, scale)
        return {"table": table}, (*shape, features)

    def forward(params: Params, x: Array, key: Key | None = None) -> tuple[Array, Any]:
        if not jnp.issubdtype(x.dtype, jnp.integer):
            raise ValueError(f"embedding: ids must be integers, got {x.dtype}")
        if not isinstance(x, jax.core.Tracer) and x.size:
            ids = np.asarray(x)  # of ids that a jit closes over jnp's own min would be traced
            low, high = ids.min(), ids.max()
            if low < 0 or high >= vocabulary:
                raise ValueError(
                    f"embedding: id {low if low < 0 else high} is out of range: allowed 0 to "
                    f"{vocabulary - 1}"
                )
        rows = params["table"].at[x]
        return rows.get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False), x

    def backward(params: Params, feedback: Params, x: Array, delta: Array) -> tuple[Params, None]:
        empty = jnp.zeros((vocabulary, features), delta.dtype)
        return {"table": empty.at[x].add(delta, mode="drop", wrap_negative_indices=False)}, None

    return Layer("embedding", make, forward, backward)


@checked
def position_embedding(
    length: Count, *, init: Initialiser = "normal", scale: Positive = 0.02
) -> Layer:
    """y_t = x_t + table_t, a learned vector for each position; dx = δ, dtable_t = Σ_batch δ_t.

    Shapes: x, y `[batch, steps, n]` with steps <= length; params `{"table": [length, n]}`, whose
    gradient is zero past the last step. Keeps nothing.

    Args:
      length: the most steps that a sequence may have, >= 1.
      init: initialiser of the table, multiplied by `scale`.
      scale: factor on the initial weights, > 0.

    Raises:
      ValueError: a setting is out of range, one example is no `[steps, n]` sequence, or a sequence
        is longer than `length`.

    Example:
      >>> import jax
      >>> params, shape = position_embedding(16).init(jax.random.key(0), (7, 4))
      >>> shape, params["table"].shape
      ((7, 4), (16, 4))

    Source: Vaswani et al. 2017, Attention is all you need.
    """

    def make(key: Key, shape: Shape) -> tuple[Params, Shape]:
        if len(shape) != 2:
            raise ValueError(
                f"position_embedding: one example has shape {shape}, needs (steps, features)"
            )
        fits(shape[0])
        return {"table": initialise(init, key, (length, shape[1]), length, scale)}, shape

    def forward(params: Params, x: Array, key: Key | None = None) -> tuple[Array, Any]:
        fits(x.shape[1])
        return x + params["table"][: x.shape[1]], ()

    def backward(params: Params, feedback: Params, kept: Any, delta: Array) -> tuple[Params, Array]:
        table = jnp.sum(delta, axis=0)
        return {"table": jnp.pad(table, ((0, length - table.shape[0]), (0, 0)))}, delta

    def fits(steps: int) -> None:
        if steps > length:
            remedy = f"must be at least the {steps} steps of a sequence"
            raise SettingError("position_embedding", "length", length, remedy)

    return Layer("position_embedding", make, forward, backward)
