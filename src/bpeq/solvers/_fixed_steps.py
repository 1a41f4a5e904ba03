"""A fixed number of sweeps."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bpeq import trees
from bpeq.settings import Count, Fraction, NonNegative, checked
from bpeq.solvers._memory import carries_all, memory
from bpeq.types import SolveInfo, Solver, State


@checked
def fixed_steps(
    steps: Count, *, tolerance: NonNegative = 1e-4, damping: Fraction = 0.0, record: bool = False
) -> Solver:
    """A fixed number of sweeps, s ← damping·s + (1 − damping)·sweep(s), as one scan.

    The reported residual is that of the last sweep, max |sweep(s) − s| over an example's units, at
    the state it started from; `converged` compares it with `tolerance` and stops nothing. The scan
    carries only the units that a sweep reads.

    Args:
      steps: sweeps, >= 1.
      tolerance: what counts as settled in the record, in units of the state, >= 0.
      damping: 0 <= damping < 1; the residual is of the undamped sweep whatever the damping.
      record: keep every state, steps on axis 0, in `SolveInfo.trajectory`.

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
        before = _swept(lambda s: damp(damping, s, step(s)), state, steps - 1)
        swept = step(before)
        residual = trees.max_abs(trees.sub(swept, before))
        return damp(damping, before, swept), info(residual, None)

    def in_one_loop(step: Callable[[State], State], state: State) -> tuple[State, SolveInfo]:
        def one(carry: tuple[State, Array], _: None) -> tuple[tuple[State, Array], State | None]:
            swept = step(carry[0])
            residual = trees.max_abs(trees.sub(swept, carry[0]))
            moved = damp(damping, carry[0], swept)
            return (moved, residual), (moved if record else None)

        leaves = jax.tree.leaves(state)
        real = jnp.finfo(jnp.result_type(*leaves)).dtype
        start = (state, jnp.full(len(leaves[0]), jnp.inf, real))
        (state, residual), trajectory = jax.lax.scan(one, start, length=steps)
        return state, info(residual, trajectory)

    def info(residual: Array, trajectory: State | None) -> SolveInfo:
        counts = jnp.full(residual.shape, steps, jnp.int32)
        return SolveInfo(counts, residual, residual <= tolerance, trajectory)

    return solve


def _swept(move: Callable[[State], State], state: State, count: int) -> State:
    """The state after `count` moves."""
    if count == 0:
        return state
    read = memory(move, state)
    if read.whole:
        return jax.lax.scan(lambda s, _: (move(s), None), state, length=count)[0]

    def one(kept: list[Array], _: None) -> tuple[list[Array], None]:
        return read.pick(move(read.fill(kept, state))), None

    kept, _ = jax.lax.scan(one, read.pick(state), length=count - 1)
    return move(read.fill(kept, state))


def damp(damping: float, state: State, swept: State) -> State:
    """damping·s + (1 − damping)·sweep(s)."""
    if damping == 0.0:
        return swept
    return jax.tree.map(lambda old, new: damping * old + (1.0 - damping) * new, state, swept)
