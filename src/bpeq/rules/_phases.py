"""Settling a system: the free phase, the nudged and the clamped ones, and their contrast."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from bpeq.core import trees
from bpeq.solvers import Sweep
from bpeq.systems._derivatives import merge_phases
from bpeq.types import Cost, Device, Key, Memory, Params, SolveInfo, Solver, State, System


class Free(NamedTuple):
    """A settled free phase: what x clamps, the equilibrium s⁰, how it was reached, its output."""

    clamped: Any
    state: State
    info: SolveInfo
    output: Array


def clamp(system: System, params: Params, x: Array, key: Key | None = None) -> Any:
    """What x clamps; the noise of a noisy device comes from `key`, or from the device's own."""
    clamped, device = system.clamp(params, x), system.traits.device
    if key is None or device is None or device.seeded is None:
        return clamped
    return device.seeded(clamped, key)


def free_phase(
    system: System,
    solver: Solver,
    params: Params,
    x: Array,
    start: State | Memory | None = None,
    key: Key | None = None,
) -> Free:
    """s⁰, the fixed point of the sweep.

    Args:
      system: whose free phase it is.
      solver: settles it.
      params: the system's.
      x: `[batch, ...]`.
      start: where it starts. None: at the system's own start. A state: there. A `Memory`: where an
        example is known, at its remembered state, and `info.end` then has the end state.
      key: of a noisy device's noise; None: the device's own.

    Returns:
      A Free.
    """
    clamped = clamp(system, params, x, key)
    remembers = isinstance(start, Memory)
    if start is None:
        start = system.init_state(params, clamped)
    elif isinstance(start, Memory):
        start = trees.where(start.known, start.states, system.init_state(params, clamped))
    state, info = solver(free_sweep(system, params, clamped), start)
    info = info._replace(end=state) if remembers else info
    return Free(clamped, state, info, system.readout.forward(params, state)[0])


def free_sweep(system: System, params: Params, clamped: Any) -> Sweep:
    """The sweep of a free phase, for a solver."""
    device, take = system.traits.device or Device(system), system.traits.take_rows

    def numbered(state: State, n: Array | int) -> State:
        here = clamped if device.numbered is None else device.numbered(clamped, n)
        return system.sweep(params, here, state)

    def some(rows: Array) -> Sweep:
        assert take is not None
        return free_sweep(system, params, take(clamped, rows))

    return Sweep(numbered, take and some, noisy=device.numbered is not None)


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
    device = system.traits.device or Device(system)
    take = system.traits.take_rows if device.nudged is None else None

    def some(rows: Array) -> Sweep:
        assert take is not None
        examples = rows % batch
        own = take(free.clamped, examples)
        push = nudge(system, cost, params, y[examples], betas[rows // batch])
        return Sweep(lambda s, n: system.sweep(params, own, s, push))

    def each(state: State, n: Array | int) -> State:
        def one(beta: Array, phase: Array, state: State) -> State:
            clamped = _of_phase(device, free.clamped, phase, n)
            return system.sweep(params, clamped, state, nudge(system, cost, params, y, beta))

        swept = jax.vmap(one)(betas, jnp.arange(count), apart(state))
        return jax.tree.map(merge_phases, swept)

    # All phases are one batch, in one loop, which ends with the last.
    if take is None:
        step = Sweep(each, noisy=device.numbered is not None)
    else:
        step = Sweep(some(jnp.arange(count * batch)).numbered, some)
    state, info = solver(step, jax.tree.map(merge_phases, start))
    path = info.trajectory
    if path is not None:  # [steps, phases · batch, ...] to [phases, steps, batch, ...]
        path = jax.tree.map(lambda s: s.swapaxes(0, 1), jax.vmap(apart)(path))
    steps, residual, converged, end = apart((info.steps, info.residual, info.converged, info.end))
    return apart(state), SolveInfo(steps, residual, converged, path, end)


def clamped_phases(
    system: System, solver: Solver, params: Params, free: Free, outputs: Array
) -> tuple[State, SolveInfo]:
    """The equilibria with the output held at each of `outputs` `[phases, batch, ...]`, from s⁰.

    Phases on axis 0 of the states and of the info. An imperfect device may have another clamped
    part for each phase.
    """
    assert system.write is not None
    write, device = system.write, system.traits.device or Device(system)

    def settle(output: Array, phase: Array) -> tuple[State, SolveInfo]:
        def held(state: State, n: Array | int) -> State:
            return system.sweep(params, _of_phase(device, free.clamped, phase, n), state, hold=True)

        step = Sweep(held, noisy=device.numbered is not None)
        return solver(step, write(free.state, output))

    return jax.vmap(settle)(outputs, jnp.arange(len(outputs)))


def _of_phase(device: Device, clamped: Any, phase: Array, n: Array | int) -> Any:
    """What the n-th sweep of a nudged or clamped phase runs on."""
    if device.numbered is not None:
        clamped = device.numbered(clamped, n)
    return clamped if device.nudged is None else device.nudged(clamped, phase)


def _apart(count: int, states: State) -> State:
    """`[phases · batch, ...]` as `[phases, batch, ...]`."""
    return jax.tree.map(lambda s: s.reshape(count, -1, *s.shape[1:]), states)


def with_state(phases: State, state: State) -> State:
    """The phases with one more state behind them, on axis 0."""
    return jax.tree.map(lambda s, last: jnp.concatenate([s, last[None]]), phases, state)


def reseeded(system: System, free: Free, key: Key, n: Array | int) -> Free:
    """The free phase with noise from another key, for further phases from it, if there is noise."""
    device = system.traits.device
    if device is None or device.seeded is None:
        return free
    return free._replace(clamped=device.seeded(free.clamped, jax.random.fold_in(key, n)))


def in_one_piece(system: System) -> System:
    """The system, swept with its whole batch always."""
    return system._replace(traits=system.traits._replace(take_rows=None))


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
    return trees.add(system.denergy(params, clamped, states, weights)[0], readout)
