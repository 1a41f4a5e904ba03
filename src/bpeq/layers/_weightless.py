"""Layers without weights: nonlinearities, dropout and flatten."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from bpeq.core import sharding
from bpeq.core.numerics import xlogy
from bpeq.settings import Fraction, checked
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

    def forward(params: Params, z: Array, key: Key | None = None) -> tuple[Array, Any]:
        return activation.value(z), activation.slope(z)

    def backward(params: Params, feedback: Params, slope: Array, dy: Array) -> tuple[Params, Array]:
        return (), dy * slope  # δ = (wᵀ δ above) ⊙ σ′(z)

    return Layer(name, _same_shape, forward, backward, activation=activation)


def linear() -> Layer:
    """σ(z) = z; σ′ = 1; A(s) = s²/2."""
    sigma = Activation(lambda z: z, jnp.ones_like, _half_square, holomorphic=True)
    return activation_layer("linear", sigma)


def relu() -> Layer:
    """σ(z) = max(z, 0); σ′(0) = 0; A(s) = s²/2 on s >= 0."""

    def slope(z: Array) -> Array:
        return jnp.where(z > 0, jnp.ones_like(z), jnp.zeros_like(z))

    def value(z: Array) -> Array:
        return jnp.where(z <= 0, jnp.zeros_like(z), z)

    return activation_layer("relu", Activation(value, slope, _half_square, holomorphic=False))


def tanh() -> Layer:
    """σ(z) = tanh z; σ′ = 1 − tanh² z; A(s) = ½[(1+s) log(1+s) + (1−s) log(1−s)] on [−1, 1]."""

    def slope(z: Array) -> Array:
        y = jnp.tanh(z)
        return 1.0 - y * y

    def potential(s: Array) -> Array:
        return 0.5 * (xlogy(1.0 + s, 1.0 + s) + xlogy(1.0 - s, 1.0 - s))

    return activation_layer("tanh", Activation(jnp.tanh, slope, potential, holomorphic=True))


def sigmoid() -> Layer:
    """σ(z) = 1/(1+e^−z); σ′ = σ(1−σ); A(s) = s log s + (1−s) log(1−s) on [0, 1]."""
    sigma = Activation(lax.logistic, _logistic_slope, _binary_entropy, holomorphic=True)
    return activation_layer("sigmoid", sigma)


def shifted_sigmoid() -> Layer:
    """y = σ(4z − 2) with the logistic σ, what EP papers call their sigmoid; y′ = 4y(1−y).

    A(s) = ¼[s log s + (1−s) log(1−s) + 2s] on [0, 1]. Slope 1 at z = ½, where y = ½.

    Source: Ernoult et al. 2019, Updates of equilibrium prop match gradients of BPTT.
    """
    sigma = Activation(
        lambda z: lax.logistic(4.0 * z - 2.0),
        lambda z: 4.0 * _logistic_slope(4.0 * z - 2.0),
        lambda s: 0.25 * (_binary_entropy(s) + 2.0 * s),
        holomorphic=True,
    )
    return activation_layer("shifted_sigmoid", sigma)


def hard_sigmoid() -> Layer:
    """σ(z) = clip(z, 0, 1); σ′ = 1 inside, 0 outside and at both corners; A(s) = s²/2 on [0, 1].

    The literature has at least three functions of this name; this is Scellier & Bengio 2017's.
    """

    def slope(z: Array) -> Array:
        return jnp.where((z > 0) & (z < 1), jnp.ones_like(z), jnp.zeros_like(z))

    # clamp, unlike jnp.clip, has derivative 0 at its corners, so autodiff agrees with σ′ there.
    def value(z: Array) -> Array:
        return lax.clamp(jnp.zeros((), z.dtype), z, jnp.ones((), z.dtype))

    sigma = Activation(value, slope, _half_square, holomorphic=False)
    return activation_layer("hard_sigmoid", sigma)


def softplus() -> Layer:
    """σ(z) = log(1 + e^z); σ′ = logistic(z); A(s) = s²/2 + Li₂(e^−s), Li₂ the dilogarithm."""

    def value(z: Array) -> Array:
        return jnp.logaddexp(z, jnp.zeros_like(z))

    def potential(s: Array) -> Array:
        # SciPy's spence(u) is Li₂(1 − u).
        return _half_square(s) + jax.scipy.special.spence(-jnp.expm1(-s))

    return activation_layer(
        "softplus", Activation(value, lax.logistic, potential, holomorphic=True)
    )


def gelu() -> Layer:
    """σ(z) = z Φ(z), Φ the normal distribution function (the exact form, not the tanh one).

    σ′ = Φ(z) + z φ(z). It falls below z ≈ −0.75, so it has no inverse, no potential and no energy.

    Source: Hendrycks & Gimpel 2016, Gaussian error linear units.
    """

    def cdf(z: Array) -> Array:
        return 0.5 * lax.erfc(-z * math.sqrt(0.5))

    def slope(z: Array) -> Array:
        return cdf(z) + z * jnp.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)

    sigma = Activation(lambda z: z * cdf(z), slope, None, holomorphic=False)
    return activation_layer("gelu", sigma)


def _same_shape(key: Key, shape: Shape) -> tuple[Params, Shape]:
    """The `init` of a layer without weights that keeps the shape."""
    return (), shape


def _half_square(s: Array) -> Array:
    return 0.5 * s * s


def _logistic_slope(z: Array) -> Array:
    y = lax.logistic(z)
    return y * (1.0 - y)


def _binary_entropy(s: Array) -> Array:
    return xlogy(s, s) + xlogy(1.0 - s, 1.0 - s)


@checked
def dropout(rate: Fraction) -> Layer:
    """y = m ⊙ x / (1 − rate), each m independently 0 with probability `rate`, else 1; dx likewise.

    In evaluation (no key) it is the identity: what was left in was scaled up in training, so that
    E[y] = x ("inverted" dropout).

    Shapes: x, y any, `[batch, ...]`. No parameters. Keeps m as booleans in training, nothing in
    evaluation or at rate 0.

    Args:
      rate: the share of units to silence, in [0, 1).

    Raises:
      ValueError: the rate is out of range.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> layer, x = dropout(0.5), jnp.ones((1, 1000))
      >>> sorted(set(layer.forward((), x, jax.random.key(0))[0].ravel().tolist()))
      [0.0, 2.0]

    Source: Srivastava et al. 2014, Dropout: a simple way to prevent networks from overfitting.
    """

    def forward(params: Params, x: Array, key: Key | None = None) -> tuple[Array, Any]:
        if key is None or rate == 0.0:
            return x, None
        mask = sharding.drawn(partial(jax.random.bernoulli, key, 1.0 - rate), x.shape)
        return masked(mask, x), mask

    def backward(params: Params, feedback: Params, mask: Any, dy: Array) -> tuple[Params, Array]:
        return (), dy if mask is None else masked(mask, dy)

    def masked(mask: Array, x: Array) -> Array:
        return jnp.where(mask, x / (1.0 - rate), jnp.zeros((), x.dtype))

    why = "draws a new mask at every pass, so that no energy stays the same; leave it out"
    return Layer("dropout", _same_shape, forward, backward, no_energy=why)


def flatten() -> Layer:
    """y = x as `[batch, n]`, with n the product of the example's axes.

    The pull-back is the reshape back. Keeps the input's shape only, as an empty array.

    Example:
      >>> import jax
      >>> flatten().init(jax.random.key(0), (8, 8, 1))[1]
      (64,)
    """

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        return (), (math.prod(shape),)

    def forward(params: Params, x: Array, key: Key | None = None) -> tuple[Array, Any]:
        return x.reshape(x.shape[0], -1), jnp.empty((0, *x.shape[1:]), x.dtype)

    def backward(params: Params, feedback: Params, like: Array, dy: Array) -> tuple[Params, Array]:
        return (), dy.reshape(dy.shape[0], *like.shape[1:])

    return Layer("flatten", init, forward, backward)
