"""Systems from a user's own energy or dynamics, over any pytree state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bpeq.core import trees
from bpeq.settings import Positive, checked
from bpeq.systems._readout import state_readout
from bpeq.types import Key, Params, Shape, State, System


@checked
def from_field(
    field: Callable[[Params, State, Array], State],
    init_state: Callable[[Params, Array], State],
    readout: Callable[[Params, State], Array],
    init: Callable[[Key, Shape], tuple[Params, Shape]],
    *,
    step_size: Positive = 0.5,
    project: Callable[[State], State] | None = None,
    write: Callable[[State, Array], State] | None = None,
    name: str = "from_field",
) -> System:
    """Projected flow along a field f: s ← project( s + step_size · (f(θ, s, x) + push) ).

    The force is the field itself. Its Jacobian ∂f/∂s need not be symmetric, so there is no energy.
    `eqprop` refuses such a system. `vector_field_eqprop` runs it with a bias. `asymmetric_eqprop`,
    `recurrent_backprop` and `bptt` are exact on it.

    Your functions are for ONE example. bpeq maps them over the batch and takes their derivatives
    with JAX.

    Args:
      field: (params, state, x) -> ds, in the structure and shapes of state.
      init_state: (params, x) -> state, any pytree of arrays: the start of a free phase.
      readout: (params, state) -> output. It may use parameters that the field does not use. They
        get ∂C/∂θ at the nudged states.
      init: (key, shape of one x) -> (params, shape of one output).
      step_size: ε > 0, in units of time. Too large a step diverges; the residual shows it.
      project: state -> state, onto the allowed set, such as a clip to [0, 1]; None: no constraint.
      write: (state, output) -> state with its output set, for rules that clamp; None if the output
        is not a state.
      name: the system's name, for messages.

    Returns:
      A System without an energy.

    Raises:
      ValueError: step_size is not > 0. When traced: the field does not give the state's shapes.

    Example (two leaky units; the first drives the second and feels nothing of it):
      >>> import jax, jax.numpy as jnp
      >>> system = from_field(
      ...     field=lambda p, s, x: -s + jnp.stack([x[0], p * s[0]]),
      ...     init_state=lambda p, x: jnp.zeros(2), readout=lambda p, s: s[1:],
      ...     init=lambda key, shape: (jnp.array(3.0), (1,)), step_size=1.0)
      >>> params, _ = system.init(jax.random.key(0), (1,))
      >>> clamped = system.clamp(params, jnp.ones((1, 1)))
      >>> state = system.init_state(params, clamped)
      >>> for _ in range(2):
      ...     state = system.sweep(params, clamped, state)
      >>> state.tolist(), system.energy is None
      ([[1.0, 3.0]], True)

    Source: the general setting of Scellier, Goyal, Binas, Mesnard & Bengio 2018, Generalization of
    equilibrium propagation to vector field dynamics.
    """

    def one(params: Params, state: State, x: Array) -> State:
        along = field(params, state, x)
        wrong = trees.difference(along, state)
        if wrong:
            raise ValueError(f"{name}: field gives {wrong}, as its state has for one example")
        return along

    # Your functions take one example; a System takes batches.
    fields = jax.vmap(one, in_axes=(None, 0, 0))

    def clamp(params: Params, x: Array) -> Array:
        return x

    def start(params: Params, x: Array) -> State:
        return jax.vmap(init_state, in_axes=(None, 0))(params, x)

    def force(params: Params, x: Array, state: State) -> State:
        return fields(params, state, x)

    def sweep(
        params: Params, x: Array, state: State, push: Any = None, hold: bool = False
    ) -> State:
        # The push adds to the force before the projection, so it cannot leave the allowed set.
        pull = force(params, x, state)
        if push is not None:
            pull = trees.add_given(pull, push(state))
        moved = jax.tree.map(lambda s, ds: s + step_size * ds, state, pull)
        moved = moved if project is None else jax.vmap(project)(moved)
        if hold and write is not None:  # all units moved at once, so none has read the new output
            return jax.vmap(write)(moved, forward(params, state)[0])
        return moved

    def dforce(params: Params, x: Array, state: State, v: State) -> tuple[Params, Array | None]:
        return by_params_and_input(lambda p, x: force(p, x, state), params, x, lambda _: v)

    def forward(params: Params, state: State, key: Key | None = None) -> tuple[Array, Any]:
        return jax.vmap(readout, in_axes=(None, 0))(params, state), state

    # The readout is your function, so its pull-back is JAX's.
    def backward(params: Params, feedback: Params, state: Any, dy: Array) -> tuple[Params, Any]:
        _, pull = jax.vjp(lambda p, s: forward(p, s)[0], params, state)
        return pull(dy)

    return System(
        name=name,
        init=init,
        clamp=clamp,
        init_state=start,
        sweep=sweep,
        energy=None,
        denergy=None,
        force=force,
        dforce=dforce,
        readout=state_readout(forward, backward),
        write=write and jax.vmap(write),
    )


def by_params_and_input(
    function: Callable[[Params, Array], Any], params: Params, x: Array, seed: Callable[[Any], Any]
) -> tuple[Params, Array | None]:
    """The pull-back seed(value)ᵀ ∂function/∂(params, x).

    Args:
      function: (params, x) -> value.
      params: its first argument.
      x: its second argument.
      seed: value -> a tree like the value.

    Returns:
      (dparams, dx). dx is None for an integer x, which has no derivative.
    """
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        value, pull = jax.vjp(lambda p: function(p, x), params)
        return pull(seed(value))[0], None
    value, pull = jax.vjp(function, params, x)
    return pull(seed(value))


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

    flow: dict[str, Any] = {"project": project, "write": write, "name": name}
    system = from_field(force, init_state, readout, init, step_size=step_size, **flow)
    return system._replace(
        energy=lambda params, x, state: energies(params, state, x), denergy=denergy
    )


def _slope(f: Callable[[Any], Array], at: Any) -> Any:
    """∂f/∂at. At complex values f must be holomorphic, and this is the complex derivative."""
    value, pull = jax.vjp(f, at)
    return pull(jnp.ones_like(value))[0]
