"""Settling a system: the free phase and the nudged ones, shared by every rule that relaxes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from bpeq import trees
from bpeq.types import Cost, Params, SolveInfo, Solver, State, System


class Free(NamedTuple):
    """A settled free phase: what x clamps, the equilibrium s⁰, how it was reached, its output.

    none: x of no examples, for its shape and dtype.
    """

    clamped: Any
    state: State
    info: SolveInfo
    output: Array
    none: Array | None = None


@dataclass(frozen=True)
class Sweep:
    """A step for a solver, which can also be had for some of its examples.

    some(rows): the step on those rows of its batch; None where the batch cannot be taken apart.
    """

    whole: Callable[[State], State]
    some: Callable[[Array], Callable[[State], State]] | None

    def __call__(self, state: State) -> State:
        return self.whole(state)


def free_phase(
    system: System, solver: Solver, params: Params, x: Array, start: State | None = None
) -> Free:
    """s⁰, the fixed point of the sweep from the system's own start, or from `start`."""
    clamped = system.clamp(params, x)
    start = system.init_state(params, clamped) if start is None else start
    none = x[:0]
    one = _one_by_one(system, params, clamped, none, len(x))

    def some(rows: Array) -> Callable[[State], State]:
        assert one is not None
        return lambda state: one(
            rows, state, lambda clamped, s, _: system.sweep(params, clamped, s)
        )

    step = Sweep(lambda s: system.sweep(params, clamped, s), one and some)
    state, info = solver(step, start)
    return Free(clamped, state, info, system.readout.forward(params, state)[0], none)


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

    one = None if other else _one_by_one(system, params, free.clamped, free.none, len(y))

    def some(rows: Array) -> Callable[[State], State]:
        assert one is not None

        def of(clamped: Any, state: State, row: Array) -> State:
            push = nudge(system, cost, params, y[row % len(y)][None], betas[row // len(y)])
            return system.sweep(params, clamped, state, push)

        return lambda state: one(rows, state, of)

    state, info = solver(Sweep(step, one and some), _together(start))
    path = info.trajectory
    if path is not None:  # [steps, phases · batch, ...] to [phases, steps, batch, ...]
        path = jax.tree.map(lambda s: s.swapaxes(0, 1), jax.vmap(apart)(path))
    steps, residual, converged, end = apart((info.steps, info.residual, info.converged, info.end))
    return apart(state), SolveInfo(steps, residual, converged, path, end)


def _one_by_one(
    system: System, params: Params, clamped: Any, none: Array | None, batch: int
) -> Callable[..., State] | None:
    """(rows, states, f) -> f(its clamped part, its state, its row), each row a batch of its own.

    Rows count through the batch again for every phase. None where what is clamped cannot be taken
    apart: which of its leaves are per example is told by clamping one example more.
    """
    if none is None:
        return None
    more = jax.ShapeDtypeStruct((batch + 1, *none.shape[1:]), none.dtype)
    longer = jax.eval_shape(system.clamp, params, more)
    pairs = list(zip(jax.tree.leaves(clamped), jax.tree.leaves(longer), strict=True))
    axes = [None if a.shape == b.shape else 0 for a, b in pairs]
    if any(
        axis == 0 and b.shape != (batch + 1, *a.shape[1:])
        for axis, (a, b) in zip(axes, pairs, strict=True)
    ):
        return None

    def run(rows: Array, states: State, f: Callable[..., State]) -> State:
        leaves, structure = jax.tree.flatten(clamped)
        own = [a if axis is None else a[rows % batch] for a, axis in zip(leaves, axes, strict=True)]

        def alone(own: list[Any], state: State, row: Array) -> State:
            mine = [a if axis is None else a[None] for a, axis in zip(own, axes, strict=True)]
            given = jax.tree.unflatten(structure, mine)
            after = f(given, jax.tree.map(lambda s: s[None], state), row)
            return jax.tree.map(lambda s: s[0], after)

        return jax.vmap(alone, in_axes=(axes, 0, 0))(own, states, rows)

    return run


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
