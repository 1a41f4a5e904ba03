"""What is checked: a system with the weights, inputs and states that it is looked at with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from bpeq import trees
from bpeq.rules import free_phase
from bpeq.solvers import fixed_point
from bpeq.types import Cost, Params, State, System

TRIES = 24


class Finding(NamedTuple):
    """One thing that was looked into.

    name: what.  passed: whether it holds; None for a statement that is no verdict.
    figure: the number behind it; NaN where there is none. words: what was found, in a line.
    """

    name: str
    passed: bool | None
    figure: float
    words: str


class Subject(NamedTuple):
    """A system at some weights and inputs, in float64.

    start:   where its free phases start. settled: `[batch]`, whether they ended to 1e-10.
    rest:    where they ended; if one did not settle, one sweep from the start. inside: near it, off
        the bounds that saturated units rest on.
    force, energy: the system's, of a state at these weights and inputs, jitted; no energy is None.
    project: onto the allowed set, for the batch; None where the sweep itself keeps to it.
    """

    system: System
    params: Params
    x: Array
    clamped: Any
    cost: Cost
    y: Array
    force: Callable[[State], State]
    energy: Callable[[State], Array] | None
    start: State
    rest: State
    settled: Bool[Array, " batch"]
    inside: State
    project: Any
    sweeps: int


def look(
    system: System, params: Params, x: Array, cost: Cost, y: Array | None, project: Any, sweeps: int
) -> Subject:
    """The free phases of the examples, and a state inside the domain of the energy."""
    solver = fixed_point(1e-10, sweeps)

    @jax.jit
    def settle(params: Params, x: Array) -> tuple[Any, Any, State, State]:
        rest = free_phase(system, solver, params, x)
        start = system.init_state(params, rest.clamped)
        return rest, rest.info.converged, start, system.sweep(params, rest.clamped, start)

    @jax.jit
    def force(state: State) -> State:
        return system.force(params, clamped, state)

    @jax.jit
    def energy(state: State) -> Array:
        assert system.energy is not None
        return system.energy(params, clamped, state)

    rest, settled, start, swept = settle(params, x)
    clamped, end = rest.clamped, rest.state if bool(settled.all()) else swept
    return Subject(
        system=system,
        params=params,
        x=x,
        clamped=clamped,
        cost=cost,
        y=jnp.zeros_like(rest.output) if y is None else y,
        force=force,
        energy=None if system.energy is None else energy,
        start=start,
        rest=end,
        settled=settled,
        inside=trees.scale(0.9, end),
        project=project and jax.jit(jax.vmap(project)),
        sweeps=sweeps,
    )


def drawn(subject: Subject, key: jax.Array, spread: float, around: State) -> State:
    """A random state: `around` plus normal numbers, halved until energy and force are finite."""
    noise, state = like(around, key), around
    for halvings in range(TRIES):
        state = trees.add(around, trees.scale(spread * 0.5**halvings, noise))
        if subject.project is not None:
            state = subject.project(state)
        made = [subject.force(state), *([subject.energy(state)] if subject.energy else [])]
        if all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(made)):
            break
    return state


def like(state: State, key: jax.Array) -> State:
    """Normal numbers in the shapes of a state, by NumPy: nothing is compiled."""
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    return jax.tree.map(lambda s: np.asarray(rng.normal(size=s.shape), s.dtype), state)


def rows(state: State) -> Array:
    """A state's units side by side, `[batch, units]`."""
    leaves = [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(state)]
    return jnp.concatenate(leaves, axis=1)
