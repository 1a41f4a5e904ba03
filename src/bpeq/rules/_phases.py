"""Settling a system: the free phase and the nudged ones, shared by every rule that relaxes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from bpeq import trees
from bpeq.types import Cost, Params, SolveInfo, Solver, State, System


class Free(NamedTuple):
    """A settled free phase: what x clamps, the equilibrium s⁰, how it was reached, its output."""

    clamped: Any
    state: State
    info: SolveInfo
    output: Array


def free_phase(
    system: System, solver: Solver, params: Params, x: Array, start: State | None = None
) -> Free:
    """s⁰, the fixed point of the sweep from the system's own start, or from `start`."""
    clamped = system.clamp(params, x)
    start = system.init_state(params, clamped) if start is None else start
    state, info = solver(lambda s: system.sweep(params, clamped, s), start)
    return Free(clamped, state, info, system.readout.forward(params, state)[0])


def nudge(
    system: System, cost: Cost, params: Params, y: Array, beta: Array
) -> Callable[[State], State]:
    """The push −β ∂C/∂s on a state, the readout's pull-back of the cost's slope there."""

    def push(state: State) -> State:
        output, residuals = system.readout.forward(params, state)
        error = cost.error(output, y)
        return system.readout.backward(params, params, residuals, -beta * error)[1]

    return push


def nudged_phases(
    system: System,
    cost: Cost,
    solver: Solver,
    params: Params,
    free: Free,
    y: Array,
    betas: Inexact[Array, " phases"],
    start: State | None = None,
) -> tuple[State, SolveInfo]:
    """s^β for every β at once: phases on axis 0 of the states and of the info.

    They start at s⁰, or at `start`, which has phases on axis 0 too. The push on the states is −β
    times the readout's pull-back of ∂C/∂output, taken at the state as it then is. An imperfect
    device may have another clamped part for each phase.
    """
    other = system.imperfect and system.imperfect.nudged

    def sweep(beta: Array, n: Array, state: State) -> State:
        clamped = free.clamped if other is None else other(free.clamped, n)
        push = nudge(system, cost, params, y, beta)
        return system.sweep(params, clamped, state, push)

    count = len(betas)
    if start is None:
        start = jax.tree.map(lambda s: jnp.broadcast_to(s, (count, *s.shape)), free.state)
    apart = partial(_apart, count)

    def step(state: State) -> State:  # all phases as one batch: one loop, which ends with the last
        return _together(jax.vmap(sweep)(betas, jnp.arange(count), apart(state)))

    state, info = solver(step, _together(start))
    path = info.trajectory
    if path is not None:  # [steps, phases · batch, ...] to [phases, steps, batch, ...]
        path = jax.tree.map(lambda s: s.swapaxes(0, 1), jax.vmap(apart)(path))
    steps, residual, converged, end = apart((info.steps, info.residual, info.converged, info.end))
    return apart(state), SolveInfo(steps, residual, converged, path, end)


def _together(phases: State) -> State:
    """`[phases, batch, ...]` as `[phases · batch, ...]`."""
    return jax.tree.map(lambda s: s.reshape(-1, *s.shape[2:]), phases)


def _apart(count: int, states: State) -> State:
    """`[phases · batch, ...]` as `[phases, batch, ...]`."""
    return jax.tree.map(lambda s: s.reshape(count, -1, *s.shape[1:]), states)


def contrast(
    system: System,
    cost: Cost,
    params: Params,
    clamped: Any,
    y: Array,
    states: State,
    betas: Array,
    weights: Array,
) -> Params:
    """Σ_n w_n ∂F^{β_n}/∂θ(s_n), F = E + βC, summed over the batch; phases on axis 0 of `states`."""
    assert system.denergy is not None

    def readout_part(state: State, seed: Array) -> Params:
        output, residuals = system.readout.forward(params, state)
        error = cost.error(output, y)
        return system.readout.backward(params, params, residuals, seed * error)[0]

    # Weights that E knows get zeros here, weights that only the readout knows get β ∂C/∂θ.
    per_phase = jax.vmap(readout_part)(states, weights * betas)
    readout = jax.tree.map(lambda g: g.sum(axis=0), per_phase)
    return trees.add(system.denergy(params, clamped, states, weights), readout)
