"""Normalisation over a batch and over one example's features."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from bpeq.core import sharding
from bpeq.settings import Fraction, Positive, SettingError, checked
from bpeq.types import Key, Layer, Params, Shape


@checked
def batch_norm(epsilon: Positive = 1e-5, decay: Fraction = 0.9) -> Layer:
    """y = gain ⊙ x̂ + bias, x̂ = (x − μ)/√(v + ε), with one μ and one v a channel (the last axis).

    In training (a key is given) μ and v are the mean and the biased variance over all other axes,
    and the error flows through them: with δ̂ = gain ⊙ δ, and means over those axes,

        dx = (δ̂ − mean(δ̂) − x̂ mean(δ̂ x̂)) / √(v + ε)      dgain = Σ δ x̂      dbias = Σ δ

    In evaluation they are the population's, constants held in `params` with zero gradient, and
    dx = δ̂ / √(v + ε). `backward` reads the gain of δ̂ from `feedback`.

    No optimizer changes mean and variance. `absorb` writes them: from a training pass as running
    averages, new = decay·old + (1 − decay)·batch; from an evaluation pass as that pass's own (see
    `calibrate`).

    Shapes: x, y `[batch, ..., n]`, so `[batch, n]` and NHWC; params `{"gain", "bias", "mean",
    "variance"}`, each `[n]`; mean and variance start at 0 and 1. Keeps in training x̂, and μ and v
    `[n]` for `absorb`; in evaluation x.

    Args:
      epsilon: added to the variance, in the units of x squared, > 0.
      decay: what a running average keeps of itself at each `absorb`, in [0, 1).

    Raises:
      SettingError: a setting is out of range, or in training a channel has a single value (its
        `setting` is then "batch_size").

    Example:
      >>> import jax, jax.numpy as jnp
      >>> layer = batch_norm()
      >>> params, _ = layer.init(jax.random.key(0), (1,))
      >>> y, kept = layer.forward(params, jnp.array([[1.0], [3.0]]), jax.random.key(1))
      >>> y.round(3).tolist(), round(float(layer.absorb(params, kept)["mean"][0]), 3)
      ([[-1.0], [1.0]], 0.2)

    Source: Ioffe & Szegedy 2015, Batch normalization. (They correct the population variance by
    m/(m − 1), as PyTorch does; here it stays the biased one that training normalises with.)
    """

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        if not shape:
            raise ValueError("batch_norm: one example has shape (), it needs one axis or more")
        zeros, ones = jnp.zeros(shape[-1:]), jnp.ones(shape[-1:])
        return {"gain": ones, "bias": zeros, "mean": zeros, "variance": ones}, shape

    def forward(params: Params, x: Array, key: Key | None = None) -> tuple[Array, Any]:
        if x.shape[-1] != params["gain"].shape[0]:
            raise ValueError(
                f"batch_norm: input of shape {x.shape} does not fit {params['gain'].shape[0]} "
                "channels"
            )
        if key is None:
            normal = _normalise(x, params["mean"], params["variance"], epsilon)
            return params["gain"] * normal + params["bias"], (x, None)
        if x.size * sharding.count() == x.shape[-1]:
            remedy = "one value for each channel has no variance; use two or more examples"
            raise SettingError("batch_norm", "batch_size", x.shape[0] * sharding.count(), remedy)
        mean, variance = _statistics(x)
        normal = (x - mean) * lax.rsqrt(variance + epsilon)
        return params["gain"] * normal + params["bias"], (normal, (mean, variance))

    def backward(params: Params, feedback: Params, kept: Any, delta: Array) -> tuple[Params, Array]:
        normal, statistics = kept
        if statistics is None:
            x, variance = normal, params["variance"]
            normal = _normalise(x, params["mean"], variance, epsilon)
        else:
            variance = statistics[1]
        others = tuple(range(delta.ndim - 1))
        dbias, dgain = jnp.sum(delta, axis=others), jnp.sum(delta * normal, axis=others)
        dx = delta
        if statistics is not None:
            count = delta.size // delta.shape[-1]
            along, across = sharding.mean((dbias / count, dgain / count))
            dx = delta - along - normal * across
        zeros = jnp.zeros_like(params["mean"])
        dparams = {"gain": dgain, "bias": dbias, "mean": zeros, "variance": zeros}
        return dparams, dx * (feedback["gain"] * lax.rsqrt(variance + epsilon))

    def absorb(params: Params, kept: Any) -> Params:
        x, statistics = kept
        if statistics is None:
            mean, variance = _statistics(x)
        else:
            mean, variance = statistics
            mean = decay * params["mean"] + (1.0 - decay) * mean
            variance = decay * params["variance"] + (1.0 - decay) * variance
        return {**params, "mean": mean, "variance": variance}

    def trained(params: Params) -> dict[str, bool]:
        return {name: name in ("gain", "bias") for name in params}

    why = "mixes the examples of a batch, so that none has an energy; layer_norm does not"
    shared: dict[str, Any] = {"absorb": absorb, "no_energy": why, "trained": trained}
    return Layer("batch_norm", init, forward, backward, **shared)


def _statistics(x: Array) -> tuple[Array, Array]:
    """Mean and biased variance of each channel, over the whole batch if devices share it."""
    others = tuple(range(x.ndim - 1))
    mean = sharding.mean(jnp.mean(x, axis=others))
    return mean, sharding.mean(jnp.mean(jnp.square(x - mean), axis=others))


def _normalise(x: Array, mean: Array, variance: Array, epsilon: float) -> Array:
    """With the population's statistics, which no gradient reaches."""
    return (x - lax.stop_gradient(mean)) * lax.rsqrt(lax.stop_gradient(variance) + epsilon)


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
        dgain, dbias = jnp.sum(delta * normal, axis=others), jnp.sum(delta, axis=others)
        inner = delta * feedback["gain"]
        mean = jnp.mean(inner, axis=-1, keepdims=True)
        along = jnp.mean(inner * normal, axis=-1, keepdims=True)
        return {"gain": dgain, "bias": dbias}, (inner - mean - normal * along) * inverse

    return Layer("layer_norm", init, forward, backward)
