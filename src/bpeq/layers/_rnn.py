"""The plain recurrent layer: the network whose gradients vanish and explode."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from bpeq.layers._initialisers import Initialiser
from bpeq.layers._recurrent import Carry, Cell, recurrent
from bpeq.settings import Count, checked
from bpeq.types import Layer


@checked
def rnn(
    features: Count,
    return_sequences: bool = False,
    *,
    init: Initialiser = "glorot_uniform",
    recurrent_init: Initialiser = "orthogonal",
) -> Layer:
    """h_t = tanh(x_t w + h_{t−1} u + b) from h_0 = 0; y is the last h, or all of them.

    Backward through time, from the last step to the first, with γ_t the error on h_t:

        δ_t = γ_t ⊙ (1 − h_t²)      γ_{t−1} = ∂C/∂y_{t−1} + uᵀ δ_t      dx_t = wᵀ δ_t
        dw = Σ_t x_t δ_t      du = Σ_t h_{t−1} δ_t      db = Σ_t δ_t

    in one reverse scan, the sums as one product each. uᵀ and wᵀ come from `feedback`.

    Shapes: x `[batch, steps, n]`, y `[batch, features]` or, with return_sequences, `[batch, steps,
    features]`; params `{"w": [n, features], "u": [features, features], "b": [features]}`. Complex x
    works. Keeps x and h.

    Args:
      features: size of h, >= 1.
      return_sequences: whether y is h at every step, or at the last one only.
      init, recurrent_init: initialisers of w and u.

    Raises:
      ValueError: a setting is out of range, or one example is no `[steps, n]` sequence.

    Example:
      >>> import jax
      >>> rnn(3, return_sequences=True).init(jax.random.key(0), (7, 4))[1]
      (7, 3)

    Source: Elman 1990, Finding structure in time; Werbos 1990, Backpropagation through time.
    """

    def step(z: Array, r: Array, carry: Carry) -> tuple[Carry, Any]:
        return (jnp.tanh(z + r),), ()

    def pull(kept: Any, before: Array, after: Array, errors: Carry) -> tuple[Array, None, Carry]:
        delta = errors[0] * (1.0 - after * after)
        return delta, None, (jnp.zeros_like(delta),)

    def biases() -> dict[str, Array]:
        return {"b": jnp.zeros((features,))}

    cell = Cell(1, 1, step, pull)
    return recurrent("rnn", cell, features, return_sequences, init, recurrent_init, biases)
