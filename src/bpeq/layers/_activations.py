"""Elementwise nonlinearities σ, each with its slope σ′ written out and its potential A.

Every factory gives a layer with y = σ(z), dz = δ ⊙ σ′(z), any shape, no parameters; it keeps σ′(z),
one array of the shape of z. The potential A satisfies A′ = σ⁻¹, so that a unit with energy
A(s) − s·input rests at s = σ(input).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from bpeq.core.numerics import xlogy
from bpeq.types import Activation, Key, Layer, Params, Shape


def activation_layer(name: str, activation: Activation) -> Layer:
    """The layer of any activation, a user's own too: forward σ(z), backward δ ⊙ σ′(z).

    Args:
      name: the layer's name.
      activation: σ, σ′ and A.

    Example:
      >>> import jax.numpy as jnp
      >>> potential = lambda s: 0.75 * jnp.abs(s) ** (4 / 3)
      >>> cube = Activation(lambda z: z**3, lambda z: 3 * z**2, potential, holomorphic=True)
      >>> activation_layer("cube", cube).forward((), jnp.array([2.0]))[0].tolist()
      [8.0]
    """

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        return (), shape

    def forward(params: Params, z: Array, key: Key | None = None) -> tuple[Array, Any]:
        return activation.value(z), activation.slope(z)

    def backward(params: Params, feedback: Params, slope: Array, dy: Array) -> tuple[Params, Array]:
        return (), dy * slope  # δ = (wᵀ δ above) ⊙ σ′(z)

    return Layer(name, init, forward, backward, activation=activation)


def linear() -> Layer:
    """σ(z) = z; σ′ = 1; A(s) = s²/2."""
    return _layer("linear", lambda z: z, jnp.ones_like, _half_square, holomorphic=True)


def relu() -> Layer:
    """σ(z) = max(z, 0); σ′(0) = 0; A(s) = s²/2 on s >= 0."""

    def slope(z: Array) -> Array:
        return jnp.where(z > 0, jnp.ones_like(z), jnp.zeros_like(z))

    return _layer("relu", lambda z: jnp.where(z <= 0, jnp.zeros_like(z), z), slope, _half_square)


def tanh() -> Layer:
    """σ(z) = tanh z; σ′ = 1 − tanh² z; A(s) = ½[(1+s) log(1+s) + (1−s) log(1−s)] on [−1, 1]."""

    def slope(z: Array) -> Array:
        y = jnp.tanh(z)
        return 1.0 - y * y

    def potential(s: Array) -> Array:
        return 0.5 * (xlogy(1.0 + s, 1.0 + s) + xlogy(1.0 - s, 1.0 - s))

    return _layer("tanh", jnp.tanh, slope, potential, holomorphic=True)


def sigmoid() -> Layer:
    """σ(z) = 1/(1+e^−z); σ′ = σ(1−σ); A(s) = s log s + (1−s) log(1−s) on [0, 1]."""
    return _layer("sigmoid", lax.logistic, _logistic_slope, _binary_entropy, holomorphic=True)


def shifted_sigmoid() -> Layer:
    """y = σ(4z − 2) with the logistic σ, what EP papers call their sigmoid; y′ = 4y(1−y).

    A(s) = ¼[s log s + (1−s) log(1−s) + 2s] on [0, 1]. Slope 1 at z = ½, where y = ½.

    Source: Ernoult et al. 2019, Updates of equilibrium prop match gradients of BPTT.
    """
    return _layer(
        "shifted_sigmoid",
        lambda z: lax.logistic(4.0 * z - 2.0),
        lambda z: 4.0 * _logistic_slope(4.0 * z - 2.0),
        lambda s: 0.25 * (_binary_entropy(s) + 2.0 * s),
        holomorphic=True,
    )


def hard_sigmoid() -> Layer:
    """σ(z) = clip(z, 0, 1); σ′ = 1 inside, 0 outside and at both corners; A(s) = s²/2 on [0, 1].

    The literature has at least three functions of this name; this is Scellier & Bengio 2017's.
    """

    def slope(z: Array) -> Array:
        return jnp.where((z > 0) & (z < 1), jnp.ones_like(z), jnp.zeros_like(z))

    # clamp, unlike jnp.clip, has derivative 0 at its corners, so autodiff agrees with σ′ there.
    def value(z: Array) -> Array:
        return lax.clamp(jnp.zeros((), z.dtype), z, jnp.ones((), z.dtype))

    return _layer("hard_sigmoid", value, slope, _half_square)


def softplus() -> Layer:
    """σ(z) = log(1 + e^z); σ′ = logistic(z); A(s) = s²/2 + Li₂(e^−s), Li₂ the dilogarithm."""

    def value(z: Array) -> Array:
        return jnp.logaddexp(z, jnp.zeros_like(z))

    def potential(s: Array) -> Array:
        # SciPy's spence(u) is Li₂(1 − u).
        return _half_square(s) + jax.scipy.special.spence(-jnp.expm1(-s))

    return _layer("softplus", value, lax.logistic, potential, holomorphic=True)


def gelu() -> Layer:
    """σ(z) = z Φ(z), Φ the normal distribution function (the exact form, not the tanh one).

    σ′ = Φ(z) + z φ(z). It falls below z ≈ −0.75, so it has no inverse, no potential and no energy.

    Source: Hendrycks & Gimpel 2016, Gaussian error linear units.
    """

    def cdf(z: Array) -> Array:
        return 0.5 * lax.erfc(-z * math.sqrt(0.5))

    def slope(z: Array) -> Array:
        return cdf(z) + z * jnp.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)

    return _layer("gelu", lambda z: z * cdf(z), slope, None)


def _layer(
    name: str,
    value: Callable[[Array], Array],
    slope: Callable[[Array], Array],
    potential: Callable[[Array], Array] | None,
    holomorphic: bool = False,
) -> Layer:
    return activation_layer(name, Activation(value, slope, potential, holomorphic))


def _half_square(s: Array) -> Array:
    return 0.5 * s * s


def _logistic_slope(z: Array) -> Array:
    y = lax.logistic(z)
    return y * (1.0 - y)


def _binary_entropy(s: Array) -> Array:
    return xlogy(s, s) + xlogy(1.0 - s, 1.0 - s)
