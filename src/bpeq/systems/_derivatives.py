"""What systems with a written ∂E/∂θ share: contracting phases, and the force's pull-back."""

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
    """Σ_n w_n s_n, states subtracted from the first before they are scaled: less round-off."""
    gaps = phases[1:] - phases[:1]
    return jnp.sum(weights) * phases[0] + jnp.tensordot(weights[1:], gaps, axes=1)


def times(c: float, a: Array) -> Array:
    """c · a, and a itself, to the last bit and without a product, where c is 1."""
    return a if c == 1.0 else c * a


def merge_phases(phases: Array) -> Array:
    """`[phases, batch, ...]` as `[phases · batch, ...]`: one product serves all phases."""
    return phases.reshape(-1, *phases.shape[2:])


def weighted(weights: Array, phases: Array) -> Array:
    """w_n s_n, as `[phases · batch, ...]`."""
    return merge_phases(weights.reshape(-1, *(1,) * (phases.ndim - 1)) * phases)


def dforce_of(denergy: DEnergy) -> Callable[[Params, Any, State, State], tuple[Params, Any]]:
    """vᵀ ∂force/∂(θ, x) = −d/dε ∂E/∂(θ, x)(s + εv): forward mode through the pull-backs."""

    def dforce(params: Params, clamped: Any, state: State, v: State) -> tuple[Params, Any]:
        def one(state: State) -> tuple[Params, Any]:
            phases = jax.tree.map(lambda s: s[None], state)
            return denergy(params, clamped, phases, jnp.ones((1,), jax.tree.leaves(state)[0].dtype))

        return trees.scale(-1.0, jax.jvp(one, (state,), (v,))[1])

    return dforce


def inverse(activation: Activation, state: Array) -> Array:
    """∇A(s) = σ⁻¹(s)."""
    potential = activation.potential
    assert potential is not None
    return jax.grad(lambda s: jnp.sum(potential(s)))(state)
