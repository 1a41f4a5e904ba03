"""The context of all checks: a system, and the weights, inputs and states of the checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from bpeq.core import trees
from bpeq.rules import Free, free_phase
from bpeq.solvers import fixed_point
from bpeq.types import Cost, Params, State, System

MOST_HALVINGS = 24


class Finding(NamedTuple):
    """The result of one check.

    Args:
      name: the name of the check.
      passed: whether the check passed; None for a note, which is no verdict.
      figure: the measured number; NaN without one.
      words: the result in one line.
    """

    name: str
    passed: bool | None
    figure: float
    words: str


class Context:
    """A system at given weights and inputs, in float64, after its free phases.

    The arguments are attributes too. The other attributes are
      clamped: the system's `clamp` of the inputs.
      force, energy, sweep: the system's functions of a state at these weights and inputs, jitted;
        `energy` is None if the system has none.
      start: the state in which the free phases start.
      settled: `[batch]`, whether they settled to 1e-10.
      equilibrium: the state in which they ended; one sweep from the start if one did not settle.
      interior: a tenth of the way from the equilibrium to the rest state without input. No unit is
        saturated there.

    Args:
      system: the system.
      params: its weights.
      x: inputs `[batch, ...]`.
      cost: the cost.
      y: the cost's targets; None: zeros.
      sweeps: the largest number of sweeps of a phase.
      user_energy: the energy of one example that `from_energy` turned into the system; None if the
        user gave a system.
      project: moves the state of one example onto the allowed set; None if the sweep does so.
    """

    def __init__(
        self,
        system: System,
        params: Params,
        x: Array,
        cost: Cost,
        y: Array | None,
        sweeps: int,
        user_energy: Callable[..., Array] | None = None,
        project: Callable[[State], State] | None = None,
    ) -> None:
        self.system, self.params, self.x, self.cost = system, params, x, cost
        self.sweeps, self.user_energy = sweeps, user_energy
        self.project = project and jax.jit(jax.vmap(project))
        solver = fixed_point(1e-10, sweeps)

        @jax.jit
        def settle(params: Params, x: Array) -> tuple[Free, State, State]:
            free = free_phase(system, solver, params, x)
            start = system.init_state(params, free.clamped)
            idle = idle_weights(params)
            rest = system.sweep(idle, system.clamp(idle, trees.zeros(x)), trees.zeros(start))
            return free, start, jax.tree.map(lambda s: jnp.where(jnp.isfinite(s), s, 0.0), rest)

        free, self.start, rest = settle(params, x)
        self.clamped, self.settled = free.clamped, free.info.converged
        self.y = jnp.zeros_like(free.output) if y is None else y
        self.force = self._jitted(system.force)
        self.energy = None if system.energy is None else self._jitted(system.energy)
        self.sweep = self._jitted(system.sweep)
        self.equilibrium = free.state if bool(self.settled.all()) else self.sweep(self.start)
        self.interior = trees.add(trees.scale(0.9, self.equilibrium), trees.scale(0.1, rest))

    def _jitted(self, fn: Callable[[Params, Any, State], Any]) -> Callable[[State], Any]:
        return jax.jit(lambda state: fn(self.params, self.clamped, state))

    def program(self, params: Params, x: Array, state: State) -> Any:
        """The function that holomorphic EP computes at complex states.

        It is the user's energy, or the system's sweep, output and ∂E/∂(θ, x).

        Args:
          params: the weights.
          x: inputs `[batch, ...]`.
          state: the state.

        Returns:
          The energies, or a list of the other results.
        """
        if self.user_energy is not None:
            return jax.vmap(self.user_energy, in_axes=(None, 0, 0))(params, state, x)
        system, clamped = self.system, self.system.clamp(params, x)
        results = [system.sweep(params, clamped, state), system.readout.forward(params, state)[0]]
        if system.denergy is not None:
            phases = jax.tree.map(lambda s: s[None], state)
            weights = jnp.ones((1,), jax.tree.leaves(state)[0].dtype)
            results.append(system.denergy(params, clamped, phases, weights)[0])
        return [leaf for leaf in jax.tree.leaves(results) if is_inexact(leaf)]


def draw_state(
    context: Context, key: jax.Array, spread: float = 0.1, from_start: bool = False
) -> State:
    """Draws a random state near `interior`, or a random start of a phase near the system's own.

    It adds normal noise. It halves the noise until energy and force (or a sweep from a start) are
    finite.

    Args:
      context: the system and its states.
      key: draws the noise.
      spread: the first standard deviation of the noise.
      from_start: whether to draw a start of a phase.

    Returns:
      The state.
    """
    around = context.start if from_start else context.interior
    noise, state = normal_like(around, key), around
    for halvings in range(MOST_HALVINGS):
        state = trees.add(around, trees.scale(spread * 0.5**halvings, noise))
        if context.project is not None:
            state = context.project(state)
        values = [context.sweep(state) if from_start else context.force(state)]
        if context.energy is not None and not from_start:
            values.append(context.energy(state))
        if is_finite(values):
            break
    return state


def normal_like(tree: Any, key: jax.Array) -> Any:
    """Draws normal numbers in the shapes of a tree. NumPy draws them, so that nothing is compiled.

    Args:
      tree: a tree of arrays.
      key: the random key.

    Returns:
      The numbers.
    """
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    return jax.tree.map(lambda s: np.asarray(rng.normal(size=s.shape), s.dtype), tree)


def idle_weights(params: Params) -> Params:
    """Sets weights to zero. Integer leaves, such as exponents and masks, stay unchanged.

    Args:
      params: the weights.

    Returns:
      The zero weights.
    """
    return jax.tree.map(lambda leaf: jnp.zeros_like(leaf) if is_inexact(leaf) else leaf, params)


def is_inexact(leaf: Any) -> bool:
    """Whether a leaf holds real or complex floating-point numbers.

    Args:
      leaf: an array.

    Returns:
      True for such numbers.
    """
    return bool(jnp.issubdtype(leaf.dtype, jnp.inexact))


def is_finite(tree: Any) -> bool:
    """Whether every number of a tree is finite.

    Args:
      tree: a tree of arrays.

    Returns:
      True if all are finite.
    """
    return all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(tree))


def flat_rows(state: State) -> Array:
    """Concatenates the units of a state.

    Args:
      state: the state.

    Returns:
      `[batch, units]`.
    """
    leaves = [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(state)]
    return jnp.concatenate(leaves, axis=1)
