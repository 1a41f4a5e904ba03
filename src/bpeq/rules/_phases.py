"""Settling a system: the free phase and the nudged ones, shared by every rule that relaxes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from bpeq.core import trees
from bpeq.systems._derivatives import side_by_side
from bpeq.types import Cost, Params, SolveInfo, Solver, State, System


class Free(NamedTuple):
    """A settled free phase: what x clamps, the equilibrium s⁰, how it was reached, its output.

    none: x of no examples, for its shape and dtype; None where the nudged sweep knows more of each
      example than what is clamped, so that it serves this batch only.
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
    take = _taker(system, params, clamped, none, len(x))

    def some(rows: Array) -> Callable[[State], State]:
        assert take is not None
        own = take(rows)
        return lambda s: system.sweep(params, own, s)

    step = Sweep(lambda s: system.sweep(params, clamped, s), take and some)
    state, info = solver(step, start)
    return Free(clamped, state, info, system.readout.forward(params, state)[0], none)


def nudge(
    system: System, cost: Cost, params: Params, y: Array, beta: Array
) -> Callable[[State], State]:
    """The push −β ∂C/∂s on a state, the readout's pull-back of the cost's slope there.

    β is a number, or `[batch]`, one for each example.
    """

    def push(state: State) -> State:
        output, residuals = system.readout.forward(params, state)
        error = cost.error(output, y)
        scale = beta.reshape(beta.shape + (1,) * (error.ndim - beta.ndim)) if beta.ndim else beta
        return system.readout.backward(params, params, residuals, -scale * error)[1]

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
    count, batch = len(betas), len(y)
    apart = partial(_apart, count)
    if start is None:
        start = jax.tree.map(lambda s: jnp.broadcast_to(s, (count, *s.shape)), free.state)
    other = system.traits.device and system.traits.device.nudged
    take = None if other else _taker(system, params, free.clamped, free.none, batch)

    def some(rows: Array) -> Callable[[State], State]:
        assert take is not None
        own, push = (
            take(rows % batch),
            nudge(system, cost, params, y[rows % batch], betas[rows // batch]),
        )
        return lambda s: system.sweep(params, own, s, push)

    def sweep(beta: Array, n: Array, state: State) -> State:
        clamped = free.clamped if other is None else other(free.clamped, n)
        return system.sweep(params, clamped, state, nudge(system, cost, params, y, beta))

    def each(state: State) -> State:
        return jax.tree.map(side_by_side, jax.vmap(sweep)(betas, jnp.arange(count), apart(state)))

    # All phases are one batch, in one loop, which ends with the last.
    step = Sweep(each if take is None else some(jnp.arange(count * batch)), take and some)
    state, info = solver(step, jax.tree.map(side_by_side, start))
    path = info.trajectory
    if path is not None:  # [steps, phases · batch, ...] to [phases, steps, batch, ...]
        path = jax.tree.map(lambda s: s.swapaxes(0, 1), jax.vmap(apart)(path))
    steps, residual, converged, end = apart((info.steps, info.residual, info.converged, info.end))
    return apart(state), SolveInfo(steps, residual, converged, path, end)


def _taker(
    system: System, params: Params, clamped: Any, none: Array | None, batch: int
) -> Callable[[Array], Any] | None:
    """rows -> what is clamped of those examples; None where that cannot be told.

    Which axis of a leaf is the batch shows in clamping one example more.
    """
    if none is None:
        return None
    more = jax.ShapeDtypeStruct((batch + 1, *none.shape[1:]), none.dtype)
    leaves, structure = jax.tree.flatten(clamped)
    try:
        longer, other = jax.tree.flatten(jax.eval_shape(system.clamp, params, more))
    except Exception:  # a clamp of a user's own may take no batch of another size
        return None
    if str(other) != str(structure):
        return None
    axes: list[int | None] = []
    for a, b in zip(leaves, longer, strict=True):
        differ = [i for i, (m, n) in enumerate(zip(jnp.shape(a), b.shape, strict=False)) if m != n]
        if jnp.ndim(a) != b.ndim or len(differ) > 1 or any(b.shape[i] != batch + 1 for i in differ):
            return None
        axes.append(differ[0] if differ else None)

    def take(rows: Array) -> Any:
        own = [
            a if axis is None else jnp.take(a, rows, axis=axis, mode="clip")
            for a, axis in zip(leaves, axes, strict=True)
        ]
        return jax.tree.unflatten(structure, own)

    return take


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
