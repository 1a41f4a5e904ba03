"""A fixed number of sweeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from bpeq.core import trees
from bpeq.core.tracing import carries_all, disable_fast_paths
from bpeq.settings import Count, Fraction, NonNegative, checked
from bpeq.solvers import _loops as loops
from bpeq.types import SolveInfo, Solver, State

PARTS = (4,)
"""A quarter of the batch continues alone. A second, smaller part would cost compile time."""


FEW, LEAST = 4, 16
"""The fewest moves, and the fewest examples, for which dropping examples at rest saves time."""


class _Carry(NamedTuple):
    """The state of the loop.

    kept: the leaves that a sweep reads. active: `[batch]`, examples that still move.
    moves: the number of moves so far.
    """

    kept: list[Array]  # what a move reads
    active: Bool[Array, " batch"]
    moves: Int[Array, ""]


@checked
def fixed_steps(
    steps: Count, *, tolerance: NonNegative = 1e-4, damping: Fraction = 0.0, record: bool = False
) -> Solver:
    """A fixed number of sweeps, s ← damping·s + (1 − damping)·sweep(s), in one loop.

    The residual is that of the last sweep, max |sweep(s) − s| over an example's units, at the state
    before this sweep. `converged` compares it with `tolerance`; it does not stop the loop. The loop
    carries only the units that a sweep reads.

    If a sweep does not change an example in any bit, no later sweep does. In the rules' phases, for
    batches of 16 examples or more, the examples that still move continue alone once they are a
    quarter of the batch. The loop ends when none moves. The result is the same, up to the round-off
    of products of another size.

    Args:
      steps: number of sweeps, >= 1.
      tolerance: residual that counts as settled in the record, >= 0, in units of the state.
      damping: 0 <= damping < 1. The residual is always that of the undamped sweep.
      record: whether `SolveInfo.trajectory` holds every state, with steps on axis 0.

    Returns:
      A Solver.

    Raises:
      ValueError: a setting is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> state, info = fixed_steps(3, record=True)(lambda s: 0.5 * s, jnp.ones((1, 1)))
      >>> state.tolist(), info.trajectory.ravel().tolist()
      ([[0.125]], [0.5, 0.25, 0.125])

    Source: Scellier & Bengio 2017, Equilibrium propagation, runs its phases this way.
    """

    def solve(step: Callable[[State], State], state: State) -> tuple[State, SolveInfo]:
        if record or carries_all():
            return in_one_loop(step, state)
        before = _swept(step, damping, state, steps - 1)
        swept = loops.run_sweep(step, before, steps - 1)
        residual = trees.max_abs(trees.sub(swept, before))
        return damp(damping, before, swept), info(residual, None)

    def in_one_loop(step: Callable[[State], State], state: State) -> tuple[State, SolveInfo]:
        """All sweeps in one scan that carries the whole state."""

        def one(carry: tuple[State, Array], n: Array) -> tuple[tuple[State, Array], State | None]:
            swept = loops.run_sweep(step, carry[0], n)
            residual = trees.max_abs(trees.sub(swept, carry[0]))
            moved = damp(damping, carry[0], swept)
            return (moved, residual), (moved if record else None)

        leaves = jax.tree.leaves(state)
        real = jnp.finfo(jnp.result_type(*leaves)).dtype
        start = (state, jnp.full(len(leaves[0]), jnp.inf, real))
        (state, residual), trajectory = jax.lax.scan(one, start, jnp.arange(steps, dtype=jnp.int32))
        return state, info(residual, trajectory)

    def info(residual: Array, trajectory: State | None) -> SolveInfo:
        counts = jnp.full(residual.shape, steps, jnp.int32)
        return SolveInfo(counts, residual, residual <= tolerance, trajectory)

    return solve


def _swept(step: loops.Step, damping: float, state: State, count: int) -> State:
    """The state after `count` moves.

    The loop carries only what a sweep reads. The last move brings the other units up to date.
    """
    if count == 0:
        return state

    def move(step: loops.Step, state: State, n: Array | int) -> State:
        return damp(damping, state, loops.run_sweep(step, state, n))

    read = loops.memory(lambda state: move(step, state, 0), state)
    looped = count if read.whole else count - 1  # the last move is separate

    def one(step: loops.Step, rest: State, kept: list[Array], n: Array) -> list[Array]:
        return read.pick(move(step, read.fill(kept, rest), n))

    def every(kept: list[Array]) -> list[Array]:
        numbers = jnp.arange(looped, dtype=jnp.int32)
        return jax.lax.scan(lambda s, n: (one(step, state, s, n), None), kept, numbers)[0]

    def loop(step: loops.Step, rest: State, carry: _Carry, few: int) -> _Carry:
        def go_on(carry: _Carry) -> Array:
            return (jnp.sum(carry.active) > few) & (carry.moves < looped)

        def on(carry: _Carry) -> _Carry:
            kept = one(step, rest, carry.kept, carry.moves)
            return _Carry(kept, carry.active & _differ(kept, carry.kept), carry.moves + 1)

        return jax.lax.while_loop(go_on, on, carry)

    def moving(kept: list[Array]) -> list[Array]:
        start = _Carry(kept, jnp.ones(len(kept[0]), bool), jnp.zeros((), jnp.int32))
        return loops.run_compacting_active(loop, step, state, start, PARTS, least=1).kept

    kept = read.pick(state)
    # With noise an example that one sweep does not change may move in the next one.
    noisy = isinstance(step, loops.Sweep) and step.noisy
    long = looped >= FEW and len(kept[0]) >= LEAST
    pays = loops.some_of(step) and long and not disable_fast_paths() and not noisy
    kept = loops.with_derivatives_of(moving, every, kept) if pays else every(kept)
    end = read.fill(kept, state)
    return end if read.whole else move(step, end, count - 1)


def _differ(a: list[Array], b: list[Array]) -> Array:
    """Which examples differ in any unit; a NaN always differs."""
    parts = [(x != y).reshape(len(x), -1).any(axis=1) for x, y in zip(a, b, strict=True)]
    return jnp.stack(parts).any(axis=0)


def damp(damping: float, state: State, swept: State) -> State:
    """damping·s + (1 − damping)·sweep(s).

    Args:
      damping: in [0, 1).
      state: s.
      swept: sweep(s).

    Returns:
      The damped state.
    """
    if damping == 0.0:
        return swept
    return jax.tree.map(lambda old, new: damping * old + (1.0 - damping) * new, state, swept)
