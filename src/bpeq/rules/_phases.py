"""Phases of a system: free, nudged and clamped phases, and their contrast."""

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

_NOISE = 0x6E6F6973  # folded into a key: the noise is independent of a rule's draws


class Free(NamedTuple):
    """A settled free phase.

    clamped: the clamped part of the input x. state: the equilibrium s⁰. info: how the solve ended.
    output: the readout at s⁰, `[batch, ...]`.
    """

    clamped: Any
    state: State
    info: SolveInfo
    output: Array


def noise_key(key: Key | None) -> Key | None:
    """The key of a noisy device's noise.

    Args:
      key: the key of an estimate or of an inference; None: no key.

    Returns:
      A key that depends on `key` alone; None if `key` is None.
    """
    return None if key is None else jax.random.fold_in(key, _NOISE)


def clamp(system: System, params: Params, x: Array, key: Key | None = None) -> Any:
    """The clamped part of x, with noise from `key` on a noisy device.

    Args:
      system: the system that clamps x.
      params: its parameters.
      x: `[batch, ...]`.
      key: key of the noise; None: the device's own key. A device without noise ignores it.

    Returns:
      What `System.clamp` gives.
    """
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
    """Settle the free phase: s⁰, the fixed point of the sweep.

    Args:
      system: the system to settle.
      solver: settles it.
      params: parameters of the system.
      x: `[batch, ...]`.
      start: where the phase starts. None: the system's own start. A state: that state. A `Memory`:
        the remembered state of each known example, and the own start of the others; `info.end` then
        has the final state.
      key: key of a noisy device's noise; None: the device's own key.

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


def inference(system: System, solver: Solver) -> Callable[..., Array]:
    """The `apply` of a rule on a system: the output of a free phase.

    Args:
      system: the system to settle.
      solver: settles it.

    Returns:
      (params, x, key=None) -> output. A noisy device draws its noise from the key.
    """

    def apply(params: Params, x: Any, key: Key | None = None) -> Array:
        return free_phase(system, solver, params, x, key=noise_key(key)).output

    return apply


def free_sweep(system: System, params: Params, clamped: Any) -> Sweep:
    """The sweep of a free phase, as a solver calls it.

    Args:
      system: the system to sweep.
      params: its parameters.
      clamped: what `clamp` gives for the batch.

    Returns:
      A Sweep. It is noisy if the device draws new noise for each sweep.
    """
    device, take = system.traits.device or Device(system), system.traits.take_rows

    def numbered(state: State, n: Array | int) -> State:
        here = clamped if device.numbered is None else device.numbered(clamped, n)
        return system.sweep(params, here, state)

    def some(rows: Array) -> Sweep:
        """The same sweep for these examples alone."""
        assert take is not None
        return free_sweep(system, params, take(clamped, rows))

    return Sweep(numbered, take and some, noisy=device.numbered is not None)


def nudge(
    system: System, cost: Cost, params: Params, y: Array, beta: Array
) -> Callable[[State], State]:
    """The push −β ∂C/∂s on a state: the readout's pull-back of −β ∂C/∂output.

    Args:
      system: gives the readout.
      cost: C.
      params: parameters of the system.
      y: `[batch]` labels or `[batch, ...]` targets.
      beta: β, a scalar, or `[batch]` with one value per example.

    Returns:
      push(state) -> an additive input for each state, for `System.sweep`.
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
    """Settle s^β for all β at once, from s⁰.

    The sweep adds the push −β ∂C/∂s of `nudge`, taken at the current state. An imperfect device may
    use another clamped part for each phase.

    Args:
      system: the system to settle.
      cost: C, the cost that nudges.
      solver: settles the phases. All phases together are one batch.
      params: parameters of the system.
      free: the free phase s⁰.
      y: `[batch]` labels or `[batch, ...]` targets.
      betas: `[phases]`, β of each phase.
      start: states with the phases on axis 0; None: every phase starts at s⁰.

    Returns:
      (states, SolveInfo), both with the phases on axis 0.
    """
    count, batch = len(betas), len(y)
    apart = partial(_apart, count)
    # By default every phase starts at s⁰.
    if start is None:
        start = jax.tree.map(lambda s: jnp.broadcast_to(s, (count, *s.shape)), free.state)
    # Devices that differ between phases cannot mix rows of several phases in one sweep.
    device = system.traits.device or Device(system)
    take = system.traits.take_rows if device.nudged is None else None

    def some(rows: Array) -> Sweep:
        """The sweep of these rows of the merged batch, row = phase · batch + example."""
        assert take is not None
        examples = rows % batch
        own = take(free.clamped, examples)
        push = nudge(system, cost, params, y[examples], betas[rows // batch])
        return Sweep(lambda s, n: system.sweep(params, own, s, push))

    def each(state: State, n: Array | int) -> State:
        """One sweep of all phases, for a system that needs its whole batch."""

        def one(beta: Array, phase: Array, state: State) -> State:
            clamped = _of_phase(device, free.clamped, phase, n)
            return system.sweep(params, clamped, state, nudge(system, cost, params, y, beta))

        swept = jax.vmap(one)(betas, jnp.arange(count), apart(state))
        return jax.tree.map(merge_phases, swept)

    # All phases form one batch in one loop, so a solver can drop examples that have settled.
    if take is None:
        step = Sweep(each, noisy=device.numbered is not None)
    else:
        step = Sweep(some(jnp.arange(count * batch)).numbered, some)
    state, info = solver(step, jax.tree.map(merge_phases, start))
    # Give the caller phases on axis 0 of every field.
    path = info.trajectory
    if path is not None:  # [steps, phases · batch, ...] to [phases, steps, batch, ...]
        path = jax.tree.map(lambda s: s.swapaxes(0, 1), jax.vmap(apart)(path))
    steps, residual, converged, end = apart((info.steps, info.residual, info.converged, info.end))
    return apart(state), SolveInfo(steps, residual, converged, path, end)


def clamped_phases(
    system: System, solver: Solver, params: Params, free: Free, outputs: Array
) -> tuple[State, SolveInfo]:
    """Settle the equilibria with the output held at each of `outputs`, from s⁰.

    An imperfect device may use another clamped part for each phase.

    Args:
      system: a system that can clamp its output (`write`).
      solver: settles each phase.
      params: parameters of the system.
      free: the free phase s⁰.
      outputs: `[phases, batch, ...]`, the outputs to hold.

    Returns:
      (states, SolveInfo), both with the phases on axis 0.
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
    """The clamped part for sweep n of a nudged or clamped phase."""
    if device.numbered is not None:
        clamped = device.numbered(clamped, n)
    return clamped if device.nudged is None else device.nudged(clamped, phase)


def _apart(count: int, states: State) -> State:
    """Reshape `[phases · batch, ...]` to `[phases, batch, ...]`."""
    return jax.tree.map(lambda s: s.reshape(count, -1, *s.shape[1:]), states)


def with_state(phases: State, state: State) -> State:
    """Append `state` to the phases, as the last one on axis 0.

    Args:
      phases: a tree of `[phases, batch, ...]`.
      state: a tree of `[batch, ...]`.

    Returns:
      A tree of `[phases + 1, batch, ...]`.
    """
    return jax.tree.map(lambda s, last: jnp.concatenate([s, last[None]]), phases, state)


def reseeded(system: System, free: Free, key: Key, n: Array | int) -> Free:
    """The free phase with noise from another key, so that further phases draw new noise.

    Args:
      system: the system of the free phase.
      free: a free phase.
      key: the estimate's key.
      n: an index, folded into the key.

    Returns:
      A Free with another clamped part; the same Free for a device without noise.
    """
    device = system.traits.device
    if device is None or device.seeded is None:
        return free
    return free._replace(clamped=device.seeded(free.clamped, jax.random.fold_in(key, n)))


def in_one_piece(system: System) -> System:
    """The same system, but each sweep takes the whole batch: `take_rows` is None.

    Args:
      system: any system.

    Returns:
      A System.
    """
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
    """Σ_n w_n ∂F^{β_n}/∂θ(s_n) with F = E + βC, summed over the batch.

    Args:
      system: a system with an energy.
      cost: C.
      params: θ.
      clamped: what `clamp` gives for the batch.
      y: `[batch]` labels or `[batch, ...]` targets.
      states: s_n, a tree with the phases on axis 0.
      betas: `[phases]`, β_n.
      weights: `[phases]`, w_n.

    Returns:
      A tree like params.
    """
    assert system.denergy is not None

    def readout_part(state: State, seed: Array) -> Params:
        output, residuals = system.readout.forward(params, state)
        error = cost.error(output, y)
        return system.readout.backward(params, params, residuals, seed * error)[0]

    # Weights that E knows get zeros here, weights that only the readout knows get β ∂C/∂θ.
    per_phase = jax.vmap(readout_part)(states, weights * betas)
    readout = jax.tree.map(lambda g: g.sum(axis=0), per_phase)
    return trees.add(system.denergy(params, clamped, states, weights)[0], readout)
