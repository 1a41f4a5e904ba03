"""What is checked: a system with the weights, inputs and states that it is looked at with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from bpeq.core import trees
from bpeq.rules import Free, free_phase
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
    rest:    where they ended; if one did not settle, one sweep from the start. inside: a tenth of
        the way from there to where units rest without input, off the bounds of saturated ones.
    force, energy, sweep: the system's, of a state at these weights and inputs, jitted; None where
        there is no energy.
    plain:   whether it is a user's function that `from_energy` has made a system of.
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
    sweep: Callable[[State], State]
    start: State
    rest: State
    settled: Bool[Array, " batch"]
    inside: State
    plain: bool
    project: Any
    sweeps: int


def look(
    system: System,
    params: Params,
    x: Array,
    cost: Cost,
    y: Array | None,
    plain: bool,
    project: Any,
    sweeps: int,
) -> Subject:
    """The free phases of the examples, and a state inside the domain of the energy."""
    solver = fixed_point(1e-10, sweeps)

    @jax.jit
    def settle(params: Params, x: Array) -> tuple[Free, State, State]:
        rest = free_phase(system, solver, params, x)
        start = system.init_state(params, rest.clamped)
        nothing = trees.zeros(params)
        idle = system.sweep(nothing, system.clamp(nothing, trees.zeros(x)), trees.zeros(start))
        return rest, start, jax.tree.map(lambda s: jnp.where(jnp.isfinite(s), s, 0.0), idle)

    @jax.jit
    def force(state: State) -> State:
        return system.force(params, clamped, state)

    @jax.jit
    def energy(state: State) -> Array:
        assert system.energy is not None
        return system.energy(params, clamped, state)

    @jax.jit
    def sweep(state: State) -> State:
        return system.sweep(params, clamped, state)

    rest, start, idle = settle(params, x)
    clamped, settled = rest.clamped, rest.info.converged
    end = rest.state if bool(settled.all()) else sweep(start)
    return Subject(
        system=system,
        params=params,
        x=x,
        clamped=clamped,
        cost=cost,
        y=jnp.zeros_like(rest.output) if y is None else y,
        force=force,
        energy=None if system.energy is None else energy,
        sweep=sweep,
        start=start,
        rest=end,
        settled=settled,
        inside=trees.add(trees.scale(0.9, end), trees.scale(0.1, idle)),
        plain=plain,
        project=project and jax.jit(jax.vmap(project)),
        sweeps=sweeps,
    )


def drawn(subject: Subject, key: jax.Array, spread: float = 0.1, start: bool = False) -> State:
    """A random state around `inside`, or a random start of a phase around the system's own.

    Normal numbers are added, halved until energy and force, or a sweep from a start, are finite.
    """
    around = subject.start if start else subject.inside
    noise, state = like(around, key), around
    for halvings in range(TRIES):
        state = trees.add(around, trees.scale(spread * 0.5**halvings, noise))
        if subject.project is not None:
            state = subject.project(state)
        made = [subject.sweep(state)] if start else [subject.force(state)]
        if subject.energy is not None and not start:
            made.append(subject.energy(state))
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
