"""What systems with a written ∂E/∂θ share: sums over phases, and the force's pull-back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bpeq.core import trees
from bpeq.types import Activation, Params, State

DEnergy = Callable[[Params, Any, State, Array], tuple[Params, Any]]


def contract(weights: Array, phases: Array) -> Array:
    """Σ_n w_n s_n, by differences from the first phase, for less round-off.

    Args:
      weights: w, `[phases]`.
      phases: s, `[phases, batch, ...]`.

    Returns:
      `[batch, ...]`.
    """
    gaps = phases[1:] - phases[:1]
    return jnp.sum(weights) * phases[0] + jnp.tensordot(weights[1:], gaps, axes=1)


def times(c: float, a: Array) -> Array:
    """c · a. If c is 1 it returns a itself, without a product.

    Args:
      c: a number.
      a: an array.

    Returns:
      An array.
    """
    return a if c == 1.0 else c * a


def merge_phases(phases: Array) -> Array:
    """Reshape `[phases, batch, ...]` to `[phases · batch, ...]`: one product serves all phases.

    Args:
      phases: the array.

    Returns:
      The reshaped array.
    """
    return phases.reshape(-1, *phases.shape[2:])


def weighted(weights: Array, phases: Array) -> Array:
    """w_n s_n, as `[phases · batch, ...]`.

    Args:
      weights: w, `[phases]`.
      phases: s, `[phases, batch, ...]`.

    Returns:
      The array.
    """
    return merge_phases(weights.reshape(-1, *(1,) * (phases.ndim - 1)) * phases)


def dforce_of(denergy: DEnergy) -> Callable[[Params, Any, State, State], tuple[Params, Any]]:
    """The `dforce` of a system with an energy: vᵀ ∂force/∂(θ, x) = −d/dε ∂E/∂(θ, x)(s + εv).

    It is forward mode through the pull-backs of `denergy`.

    Args:
      denergy: the system's.

    Returns:
      (params, clamped, state, v) -> (dparams, dx).
    """

    def dforce(params: Params, clamped: Any, state: State, v: State) -> tuple[Params, Any]:
        def one(state: State) -> tuple[Params, Any]:
            phases = jax.tree.map(lambda s: s[None], state)
            return denergy(params, clamped, phases, jnp.ones((1,), jax.tree.leaves(state)[0].dtype))

        return trees.scale(-1.0, jax.jvp(one, (state,), (v,))[1])

    return dforce


def inverse(activation: Activation, state: Array) -> Array:
    """σ⁻¹(s) = ∇A(s).

    Args:
      activation: σ, with a potential A.
      state: s, any shape.

    Returns:
      An array in the shape of s.
    """
    potential = activation.potential
    assert potential is not None
    return jax.grad(lambda s: jnp.sum(potential(s)))(state)
