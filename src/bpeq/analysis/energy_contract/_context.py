"""The context of all checks: a system at some weights, inputs and states, and what it requires."""

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

    def draw(self, key: jax.Array, spread: float = 0.1, from_start: bool = False) -> State:
        """Draws a random state near `interior`, or a random start of a phase near `start`.

        It adds normal noise. It halves the noise until energy and force (or a sweep from a start)
        are finite.

        Args:
          key: draws the noise.
          spread: the first standard deviation of the noise.
          from_start: whether to draw a start of a phase.

        Returns:
          The state.
        """
        around = self.start if from_start else self.interior
        noise, state = normal_like(around, key), around
        for halvings in range(MOST_HALVINGS):
            state = trees.add(around, trees.scale(spread * 0.5**halvings, noise))
            if self.project is not None:
                state = self.project(state)
            values = [self.sweep(state) if from_start else self.force(state)]
            if self.energy is not None and not from_start:
                values.append(self.energy(state))
            if is_finite(values):
                break
        return state

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


def refuse_misfits(system: System, params: Params, x: Array) -> None:
    """Checks that the functions of a system fit each other, by shapes and dtypes only.

    Args:
      system: the system.
      params: its weights.
      x: inputs `[batch, ...]`.

    Raises:
      ValueError: a function does not accept the result of another; a state or an output does not
        consist of real floating-point numbers; or an energy is not one such number for each
        example.
    """

    def shape_of(name: str, fn: Callable[..., Any], *args: Any) -> Any:
        try:
            return jax.eval_shape(fn, *args)
        except (TypeError, ValueError, IndexError) as error:
            message = str(error).strip().split("\n")[0]
            if message.startswith(f"{system.name}: "):
                raise
            where = f"x {_example(x)}" + "".join(f" and state {_example(s)}" for s in args[2:])
            raise ValueError(f"check_energy: {name} fails at {where}: {message}") from error

    def refuse(name: str, values: Any, remedy: str, shape: Any = None) -> None:
        floating = all(jnp.issubdtype(v.dtype, jnp.floating) for v in jax.tree.leaves(values))
        if not floating or (shape is not None and values.shape != shape):
            raise ValueError(f"check_energy: {name} gives {_example(values)}: {remedy}")

    clamped = shape_of("clamp", system.clamp, params, x)
    state = shape_of("init_state", system.init_state, params, clamped)
    refuse("init_state", state, "a state must be of real floating numbers")
    if system.energy is not None:
        energy = shape_of("energy", system.energy, params, clamped, state)
        remedy = "it must give one real floating number for each example"
        refuse("energy", energy, remedy, x.shape[:1])
    output = shape_of(
        "readout", lambda p, c, s: system.readout.forward(p, s)[0], params, clamped, state
    )
    refuse("readout", output, "an output must be of real floating numbers")


def not_finite(context: Context, key: jax.Array) -> Finding | None:
    """Checks that energy and force are finite at a random state near the equilibria.

    Args:
      context: the system and its states.
      key: draws the random state.

    Returns:
      A finding if they are not finite, else None.
    """

    def values(state: Any) -> dict[str, Any]:
        energy = {} if context.energy is None else {"energy": context.energy(state)}
        return {**energy, "force": context.force(state)}

    if is_finite(values(context.draw(key))):
        return None
    infinite = [name for name, v in values(context.start).items() if not is_finite(v)]
    where = "where a free phase starts" if infinite else "near the equilibria"
    what = infinite[0] if infinite else "energy or force"
    words = f"the {what} is not finite {where}; no other check was made"
    return Finding("gradient", False, np.nan, words)


def _example(tree: Any) -> str:
    """The dtypes and shapes of one example's leaves."""
    drop = lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)  # noqa: E731
    return trees.describe_tree(jax.tree.map(drop, tree))
