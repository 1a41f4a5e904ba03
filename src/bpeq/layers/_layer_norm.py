"""Layer normalisation: each example's features brought to mean 0 and variance 1."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from bpeq.settings import Positive, checked
from bpeq.types import Key, Layer, Params, Shape


@checked
def layer_norm(epsilon: Positive = 1e-5) -> Layer:
    """y = gain ⊙ x̂ + bias, x̂ = (x − μ)/√(v + ε), μ and v the mean and variance of the last axis.

    With δ̂ = gain ⊙ δ, and means over the last axis,

        dx = (δ̂ − mean(δ̂) − x̂ mean(δ̂ x̂)) / √(v + ε)      dgain = Σ δ x̂      dbias = Σ δ

    summed over all other axes. `backward` reads the gain of δ̂ from `feedback`. Complex x works: v
    is the mean of (x − μ)², not of its modulus.

    As a connection in an energy it depends on the state below, so a half of an alternating sweep is
    no exact minimisation: the energy can rise and the sweeps can cycle.

    Shapes: x, y `[batch, ..., n]`; params `{"gain", "bias"}`, each `[n]`. Keeps x̂, and
    1/√(v + ε) `[batch, ..., 1]`.

    Args:
      epsilon: added to the variance, in the units of x squared, > 0.

    Raises:
      ValueError: a setting is out of range, or an input has no axis to act on.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> params, _ = layer_norm().init(jax.random.key(0), (2,))
      >>> layer_norm().forward(params, jnp.array([[1.0, 3.0]]))[0].round(3).tolist()
      [[-1.0, 1.0]]

    Source: Ba, Kiros & Hinton 2016, Layer normalization.
    """

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        if not shape:
            raise ValueError("layer_norm: one example has shape (), it needs one axis or more")
        return {"gain": jnp.ones(shape[-1:]), "bias": jnp.zeros(shape[-1:])}, shape

    def forward(params: Params, x: Array, key: Key | None = None) -> tuple[Array, Any]:
        if x.shape[-1] != params["gain"].shape[0]:
            raise ValueError(
                f"layer_norm: input of shape {x.shape} does not fit {params['gain'].shape[0]} "
                "features"
            )
        centered = x - jnp.mean(x, axis=-1, keepdims=True)
        inverse = lax.rsqrt(jnp.mean(centered * centered, axis=-1, keepdims=True) + epsilon)
        normal = centered * inverse
        return params["gain"] * normal + params["bias"], (normal, inverse)

    def backward(params: Params, feedback: Params, kept: Any, delta: Array) -> tuple[Params, Array]:
        normal, inverse = kept
        others = tuple(range(delta.ndim - 1))
        dparams = {
            "gain": jnp.sum(delta * normal, axis=others),
            "bias": jnp.sum(delta, axis=others),
        }
        inner = delta * feedback["gain"]
        mean = jnp.mean(inner, axis=-1, keepdims=True)
        along = jnp.mean(inner * normal, axis=-1, keepdims=True)
        return dparams, (inner - mean - normal * along) * inverse

    return Layer("layer_norm", init, forward, backward)
