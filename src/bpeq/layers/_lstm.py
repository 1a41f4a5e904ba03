"""Long short-term memory: a cell that errors can cross unchanged."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from bpeq.layers._initialisers import Initialiser
from bpeq.layers._recurrent import Carry, Cell, recurrent
from bpeq.settings import Count, checked
from bpeq.types import Layer


@checked
def lstm(
    features: Count,
    return_sequences: bool = False,
    *,
    init: Initialiser = "glorot_uniform",
    recurrent_init: Initialiser = "orthogonal",
    forget_bias: float = 1.0,
) -> Layer:
    """c_t = f ⊙ c_{t−1} + i ⊙ g, h_t = o ⊙ tanh(c_t); y is the last h, or all of them.

    (i, f, g, o) = (σ, σ, tanh, σ)(x_t w + h_{t−1} u + b), four blocks of columns; h_0 = c_0 = 0.
    Backward through time, with γ, κ the errors on h_t, c_t and q = tanh(c_t):

        κ ← κ + γ ⊙ o (1 − q²)      κ_{t−1} = κ ⊙ f      γ_{t−1} = ∂C/∂y_{t−1} + uᵀ δ_t
        δ_t = (κ g i(1−i), κ c_{t−1} f(1−f), κ i (1−g²), γ q o(1−o))
        dx_t = wᵀ δ_t      dw = Σ_t x_t δ_t      du = Σ_t h_{t−1} δ_t      db = Σ_t δ_t

    in one reverse scan, the sums as one product each. uᵀ and wᵀ come from `feedback`.

    Shapes: x `[batch, steps, n]`, y `[batch, features]` or, with return_sequences, `[batch, steps,
    features]`; params `{"w": [n, 4·features], "u": [features, 4·features], "b": [4·features]}`, u
    drawn block by block. Complex x works. Keeps x, h, the four gates, and c_{t−1} and tanh(c_t).

    Args:
      features: size of h and of c, >= 1.
      return_sequences: whether y is h at every step, or at the last one only.
      init, recurrent_init: initialisers of w and u.
      forget_bias: where b starts for f; it starts at 0 for the others.

    Raises:
      ValueError: a setting is out of range, or one example is no `[steps, n]` sequence.

    Example:
      >>> import jax
      >>> params, shape = lstm(3).init(jax.random.key(0), (7, 4))
      >>> shape, params["u"].shape
      ((3,), (3, 12))

    Source: Hochreiter & Schmidhuber 1997, Long short-term memory; with the forget gate of Gers,
    Schmidhuber & Cummins 2000.
    """

    def step(z: Array, r: Array, carry: Carry) -> tuple[Carry, Any]:
        z = z + r
        i, f, g, o = jnp.split(z, 4, axis=-1)
        i, f, g, o = lax.logistic(i), lax.logistic(f), jnp.tanh(g), lax.logistic(o)
        c = f * carry[1] + i * g
        q = jnp.tanh(c)
        return (o * q, c), (i, f, g, o, carry[1], q)

    def pull(kept: Any, before: Array, after: Array, errors: Carry) -> tuple[Array, None, Carry]:
        i, f, g, o, c_before, q = kept
        gamma, kappa = errors
        kappa = kappa + gamma * o * (1.0 - q * q)
        delta = jnp.concatenate(
            [
                kappa * g * i * (1.0 - i),
                kappa * c_before * f * (1.0 - f),
                kappa * i * (1.0 - g * g),
                gamma * q * o * (1.0 - o),
            ],
            axis=-1,
        )
        return delta, None, (jnp.zeros_like(gamma), kappa * f)

    def biases() -> dict[str, Array]:
        at = jnp.zeros((4, features)).at[1].set(forget_bias)
        return {"b": at.reshape(-1)}

    cell = Cell(4, 2, step, pull)
    return recurrent("lstm", cell, features, return_sequences, init, recurrent_init, biases)
