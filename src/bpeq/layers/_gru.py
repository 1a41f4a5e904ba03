"""The gated recurrent unit: two gates, and no cell beside the state."""

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
def gru(
    features: Count,
    return_sequences: bool = False,
    *,
    init: Initialiser = "glorot_uniform",
    recurrent_init: Initialiser = "orthogonal",
) -> Layer:
    """h_t = (1 − z) ⊙ n + z ⊙ h_{t−1}, n = tanh(A_n + r ⊙ R_n); y is the last h, or all of them.

    A = x_t w + b and R = h_{t−1} u + c, three blocks of columns for (r, z, n); r = σ(A_r + R_r),
    z = σ(A_z + R_z), from h_0 = 0. The reset gate r acts after the product, as in PyTorch and
    cuDNN, which makes R one product. Backward through time, with γ the error on h_t:

        δ_n = γ (1 − z)(1 − n²)      δ_r = δ_n R_n r(1−r)      δ_z = γ (h_{t−1} − n) z(1−z)
        dA = (δ_r, δ_z, δ_n)      dR = (δ_r, δ_z, δ_n r)      γ_{t−1} = ∂C/∂y_{t−1} + γ z + uᵀ dR
        dx_t = wᵀ dA      dw = Σ_t x_t dA_t      du = Σ_t h_{t−1} dR_t      db = Σ dA      dc = Σ dR

    in one reverse scan, the sums as one product each. uᵀ and wᵀ come from `feedback`.

    Shapes: x `[batch, steps, n]`, y `[batch, features]` or, with return_sequences, `[batch, steps,
    features]`; params `{"w": [n, 3·features], "u": [features, 3·features], "b", "c":
    [3·features]}`, u drawn block by block. Complex x works. Keeps x, h, r, z, n and R_n.

    Args:
      features: size of h, >= 1.
      return_sequences: whether y is h at every step, or at the last one only.
      init, recurrent_init: initialisers of w and u.

    Raises:
      ValueError: a setting is out of range, or one example is no `[steps, n]` sequence.

    Example:
      >>> import jax
      >>> params, shape = gru(3).init(jax.random.key(0), (7, 4))
      >>> shape, params["u"].shape
      ((3,), (3, 9))

    Source: Cho et al. 2014, Learning phrase representations using RNN encoder-decoder.
    """

    def step(a: Array, recur: Array, carry: Carry) -> tuple[Carry, Any]:
        a_r, a_z, a_n = jnp.split(a, 3, axis=-1)
        r_r, r_z, r_n = jnp.split(recur, 3, axis=-1)
        r, z = lax.logistic(a_r + r_r), lax.logistic(a_z + r_z)
        n = jnp.tanh(a_n + r * r_n)
        return (n + z * (carry[0] - n),), (r, z, n, r_n)

    def pull(kept: Any, before: Array, after: Array, errors: Carry) -> tuple[Array, Array, Carry]:
        r, z, n, r_n = kept
        (gamma,) = errors
        d_n = gamma * (1.0 - z) * (1.0 - n * n)
        d_r = d_n * r_n * r * (1.0 - r)
        d_z = gamma * (before - n) * z * (1.0 - z)
        d_a = jnp.concatenate([d_r, d_z, d_n], axis=-1)
        return d_a, jnp.concatenate([d_r, d_z, d_n * r], axis=-1), (gamma * z,)

    def biases() -> dict[str, Array]:
        zeros = jnp.zeros((3 * features,))
        return {"b": zeros, "c": zeros}

    cell = Cell(3, 1, step, pull)
    return recurrent("gru", cell, features, return_sequences, init, recurrent_init, biases)
