"""Checks how a system settles: in one state only, also at −β, and alone as in a batch."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bpeq.analysis.energy_contract._context import Context, Finding, flat_rows, normal_like
from bpeq.analysis.equilibrium import Curvature
from bpeq.core import trees
from bpeq.rules import Free, nudged_phases
from bpeq.solvers import fixed_point
from bpeq.types import State

APART = 1e-4
LARGEST_OUTPUT = 500
ALONE = 1e-9  # round-off, because a batch may sum in another order


def unique_finding(context: Context, key: jax.Array, starts: int, spread: float) -> Finding:
    """Counts the states in which random starts settle: the largest number over the examples.

    Args:
      context: the system and its states.
      key: draws the starts.
      starts: the number of starts.
      spread: the standard deviation of the starts around the system's own.

    Returns:
      The finding "unique".
    """
    system, solver = context.system, fixed_point(1e-10, context.sweeps)
    keys = jax.random.split(key, starts)
    states = trees.stack([context.draw(k, spread, from_start=True) for k in keys])

    @jax.jit
    def settle(states: State) -> tuple[jax.Array, jax.Array]:
        def one(state: State) -> tuple[jax.Array, jax.Array]:
            ended, info = solver(lambda s: system.sweep(context.params, context.clamped, s), state)
            return flat_rows(ended), info.converged

        return jax.vmap(one)(states)

    ended, converged = (np.asarray(part) for part in settle(states))
    ended = np.concatenate([ended, np.asarray(flat_rows(context.equilibrium))[None]])
    converged = np.concatenate([converged, np.asarray(context.settled)[None]])
    groups = [_distinct(ended[converged[:, i], i]) for i in range(ended.shape[1])]
    counts = [len(states) for states in groups]
    lost = int((~converged).sum())
    figure = float(max(counts))
    passed = figure == 1.0 and lost == 0
    words = f"{starts} random starts settle in one state"
    if figure > 1:
        apart = max(np.abs(a - b).max() for states in groups for a in states for b in states)
        words = f"random starts settle in {max(counts)} different states, up to {apart:.1g} apart"
    if lost:
        share = f"{lost} of {converged.size} free phases did not settle in {context.sweeps} sweeps"
        words = share if figure <= 1 else f"{words}; {share}"
    return Finding("unique", passed, figure, words)


def bounded_finding(
    context: Context, curvature: Curvature | None, why: str, beta: float, key: jax.Array
) -> Finding:
    """Finds the β up to which E − βC keeps its minimum, and checks whether the phase at −β settles.

    Args:
      context: the system and its states.
      curvature: the curvature of the examples; None if it could not be computed.
      why: the reason why `curvature` is None.
      beta: the β to try.
      key: draws lines.

    Returns:
      The finding "bounded".
    """
    settled = bool(_nudged(context, beta).all())
    phase = f"the phase at −{beta:g} {'settles' if settled else 'does not settle'}"
    if curvature is None:
        return Finding("bounded", settled, np.nan, f"{phase}; K unknown: {why}")
    steepest = _steepest(context)
    smallest = float(curvature.output.min())
    limit = smallest / steepest if steepest > 0 else np.inf
    passed: bool | None = bool(settled and limit > beta and np.all(curvature.settled))
    words = f"K = {smallest:.3g}: E − βC keeps its minimum for β < {limit:.3g}; {phase}"
    if not np.all(curvature.settled):
        words = f"no equilibrium to judge by: the free phase does not settle; {phase}"
    elif passed and (depth := _falls(context, beta, key)):
        passed = None
        words += f"; a local one: far away E − βC falls without bound ({depth:.0e})"
    return Finding("bounded", passed, float(limit), words)


def _distinct(ended: np.ndarray) -> list[np.ndarray]:
    """One state of every group of states that agree to 1e-4 of max(1, their size)."""
    groups: list[np.ndarray] = []
    for state in ended:
        near = [
            np.abs(state - other).max() <= APART * max(1.0, np.abs(other).max()) for other in groups
        ]
        if not any(near):
            groups.append(state)
    return groups


def _nudged(context: Context, beta: float) -> np.ndarray:
    solver = fixed_point(1e-10, context.sweeps)

    @jax.jit
    def settle(state: State, beta: jax.Array) -> jax.Array:
        free = Free(context.clamped, state, (), ())  # type: ignore[arg-type]
        args = (context.system, context.cost, solver, context.params, free, context.y)
        return nudged_phases(*args, -beta[None])[1].converged

    return np.asarray(settle(context.equilibrium, jnp.asarray(beta)))


def _steepest(context: Context) -> float:
    """The largest curvature of the cost at the free outputs; 1 for squared error."""
    output = context.system.readout.forward(context.params, context.equilibrium)[0]
    if output[0].size > LARGEST_OUTPUT:
        return 1.0

    def value(flat: jax.Array, like: jax.Array, y: jax.Array) -> jax.Array:
        return context.cost.value(flat.reshape(like.shape)[None], y[None])[0]

    hessian = jax.vmap(jax.hessian(value))(output.reshape(len(output), -1), output, context.y)
    return float(np.linalg.eigvalsh(np.asarray(hessian)).max())


def _falls(context: Context, beta: float, key: jax.Array) -> float:
    """The depth of E − βC far from the equilibrium if it falls without bound; 0 if it does not.

    It tries random lines of the whole state and of single leaves on which E is finite. It does so
    only for a plain energy, because the sweep of a system decides which states it can reach.
    """
    system = context.system
    if system.energy is None or context.user_energy is None:
        return 0.0
    energy = system.energy

    @jax.jit
    def functional(state: State) -> jax.Array:
        kept = state if context.project is None else context.project(state)
        output = system.readout.forward(context.params, kept)[0]
        cost = context.cost.value(output, context.y)
        return energy(context.params, context.clamped, kept) - beta * cost

    leaves, structure = jax.tree.flatten(context.equilibrium)
    near, lowest = functional(context.equilibrium), 0.0
    for i in range(2 * (len(leaves) + 1)):
        moves = jax.tree.leaves(normal_like(context.equilibrium, jax.random.fold_in(key, i)))
        if i >= 2:  # one leaf alone
            moves = [m if j == (i - 2) // 2 else 0 * m for j, m in enumerate(moves)]
        line = jax.tree.unflatten(structure, moves)
        far = [
            functional(trees.add(context.equilibrium, trees.scale(r, line)))
            for r in (1e3, 1e4, 1e5)
        ]
        falling = (far[2] < far[1]) & (far[1] < far[0]) & (far[0] < near)
        lowest = min(lowest, float(jnp.min(jnp.where(falling, far[2], 0.0))))
    return lowest


def batch_independence_finding(context: Context, key: jax.Array) -> Finding:
    """Computes max |in a batch − alone| over the largest value, for the energy and for a sweep.

    Args:
      context: the system. Its batch is doubled by copies of the examples in another state.
      key: draws the states.

    Returns:
      The finding "alone".
    """
    system, params = context.system, context.params

    def values(x: Any, state: State) -> dict[str, Any]:
        clamped = system.clamp(params, x)
        sweep = {"sweep": system.sweep(params, clamped, state)}
        if system.energy is None:
            return sweep
        return {**sweep, "energy": system.energy(params, clamped, state)}

    @jax.jit
    def both(x: Any, state: State, others: State) -> tuple[Any, Any]:
        batch = jax.tree.map(lambda *pair: jnp.concatenate(pair), (x, state), (x, others))
        one = jax.vmap(lambda *example: values(*jax.tree.map(lambda a: a[None], example)))
        return values(*batch), jax.tree.map(lambda a: a[:, 0], one(x, state))

    states = (context.draw(k) for k in jax.random.split(key))
    together, alone = both(context.x, *states)
    gaps = {}
    for name in alone:
        pairs = zip(jax.tree.leaves(together[name]), jax.tree.leaves(alone[name]), strict=True)
        size = float(jnp.max(trees.max_abs(jax.tree.map(jnp.atleast_1d, alone[name]))))
        gaps[name] = max(float(np.abs(a[: len(b)] - b).max()) for a, b in pairs) / max(size, 1e-300)
    worst = max(gaps, key=lambda name: gaps[name])
    passed = bool(gaps[worst] <= ALONE)
    words = f"an example's {' and '.join(sorted(gaps))} are the same alone and in a batch"
    if not passed:
        words = f"an example's {worst} depends on its batch mates: by {gaps[worst]:.1e} of its size"
    return Finding("alone", passed, gaps[worst], words)
