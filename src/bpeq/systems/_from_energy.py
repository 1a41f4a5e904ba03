"""A system from a user's own energy function, over any pytree state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bpeq.core import trees
from bpeq.settings import Positive, checked
from bpeq.systems._from_field import by_params_and_input, from_field
from bpeq.types import Key, Params, Shape, State, System


@checked
def from_energy(
    energy: Callable[[Params, State, Array], Float[Array, ""]],
    init_state: Callable[[Params, Array], State],
    readout: Callable[[Params, State], Array],
    init: Callable[[Key, Shape], tuple[Params, Shape]],
    *,
    step_size: Positive = 0.5,
    project: Callable[[State], State] | None = None,
    write: Callable[[State, Array], State] | None = None,
    name: str = "from_energy",
) -> System:
    """Projected gradient flow on E(θ, s, x): s ← project( s + step_size · (−∂E/∂s + push) ).

    Your functions are for ONE example. bpeq maps them over the batch and takes their derivatives
    with JAX.

    Args:
      energy: (params, state, x) -> scalar. Holomorphic EP calls it with complex arguments. It must
        then be complex-differentiable, without abs, conj, real, comparisons or a maximum.
      init_state: (params, x) -> state, any pytree of arrays: the start of a free phase.
      readout: (params, state) -> output. It may use parameters that E does not use. They get ∂C/∂θ
        at the nudged states.
      init: (key, shape of one x) -> (params, shape of one output).
      step_size: ε > 0. Too large a step diverges; the residual shows it.
      project: state -> state, onto the allowed set, such as a clip to [0, 1]; None: no constraint.
      write: (state, output) -> state with its output set, for rules that clamp; None if the output
        is not a state.
      name: the system's name, for messages.

    Returns:
      A System with an energy.

    Raises:
      ValueError: step_size is not > 0. When traced: the energy is not a single number, or it is
        real at a complex state.

    Example (a leaky unit that follows its input):
      >>> import jax, jax.numpy as jnp
      >>> system = from_energy(
      ...     energy=lambda p, s, x: 0.5 * jnp.sum(s**2) - jnp.sum(s * (p @ x)),
      ...     init_state=lambda p, x: jnp.zeros(2), readout=lambda p, s: s,
      ...     init=lambda key, shape: (jnp.ones((2, *shape)), (2,)))
      >>> params, _ = system.init(jax.random.key(0), (3,))
      >>> clamped = system.clamp(params, jnp.ones((1, 3)))
      >>> system.sweep(params, clamped, system.init_state(params, clamped)).tolist()
      [[1.5, 1.5]]

    Source: the general setting of Scellier & Bengio 2017, Equilibrium propagation.
    """

    def one(params: Params, state: State, x: Array) -> Array:
        value = energy(params, state, x)
        if jnp.shape(value) != ():
            shape = trees.describe_tree(value)
            raise ValueError(f"{name}: energy gives {shape} for one example; it must give a number")
        if any(map(jnp.iscomplexobj, jax.tree.leaves(state))) and not jnp.iscomplexobj(value):
            raise ValueError(f"{name}: energy is real at a complex state: it is not holomorphic")
        return value

    energies = jax.vmap(one, in_axes=(None, 0, 0))

    def force(params: Params, state: State, x: Array) -> State:
        return trees.scale(-1.0, _slope(lambda s: one(params, s, x), state))

    def denergy(
        params: Params, x: Array, phases: State, weights: Array
    ) -> tuple[Params, Array | None]:
        def total(params: Params, x: Array) -> Array:
            per_phase = jax.vmap(lambda state: jnp.sum(energies(params, state, x)))(phases)
            return jnp.sum(weights * per_phase)

        return by_params_and_input(total, params, x, jnp.ones_like)

    flow: dict[str, Any] = {
        "step_size": step_size,
        "project": project,
        "write": write,
        "name": name,
    }
    return from_field(force, init_state, readout, init, **flow)._replace(
        energy=lambda params, x, state: energies(params, state, x), denergy=denergy
    )


def _slope(f: Callable[[Any], Array], at: Any) -> Any:
    """∂f/∂at. At complex values f must be holomorphic, and this is the complex derivative."""
    value, pull = jax.vjp(f, at)
    return pull(jnp.ones_like(value))[0]
