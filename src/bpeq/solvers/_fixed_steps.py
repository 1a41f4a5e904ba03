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
from bpeq.solvers._fewer import Step, run_compacting_active, some_of, with_derivatives_of
from bpeq.solvers._memory import memory
from bpeq.solvers._sweep import Sweep, run_sweep
from bpeq.types import SolveInfo, Solver, State

PARTS = (4,)
"""Of a batch, the part that goes on alone; another would save little, and take long to compile."""


FEW, LEAST = 4, 16
"""In fewer moves nothing comes to rest early; of fewer examples nothing is gained by looking."""


class _Carry(NamedTuple):
    kept: list[Array]  # what a move reads
    active: Bool[Array, " batch"]
    moves: Int[Array, ""]


@checked
def fixed_steps(
    steps: Count, *, tolerance: NonNegative = 1e-4, damping: Fraction = 0.0, record: bool = False
) -> Solver:
    """A fixed number of sweeps, s ← damping·s + (1 − damping)·sweep(s), in one loop.

    The reported residual is that of the last sweep, max |sweep(s) − s| over an example's units, at
    the state it started from; `converged` compares it with `tolerance` and stops nothing. The loop
    carries only the units that a sweep reads.

    What a sweep leaves as it was, to the last bit, stays so for good. In the rules' phases the
    examples that still move go on alone once they are a quarter of the batch, and the loop ends
    when none does, in batches of 16 and more: the same result, up to how products of another size
    round.

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
        before = _swept(step, damping, state, steps - 1)
        swept = run_sweep(step, before, steps - 1)
        residual = trees.max_abs(trees.sub(swept, before))
        return damp(damping, before, swept), info(residual, None)

    def in_one_loop(step: Callable[[State], State], state: State) -> tuple[State, SolveInfo]:
        def one(carry: tuple[State, Array], n: Array) -> tuple[tuple[State, Array], State | None]:
            swept = run_sweep(step, carry[0], n)
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


def _swept(step: Step, damping: float, state: State, count: int) -> State:
    """The state after `count` moves."""
    if count == 0:
        return state

    def move(step: Step, state: State, n: Array | int) -> State:
        return damp(damping, state, run_sweep(step, state, n))

    read = memory(lambda state: move(step, state, 0), state)
    looped = count if read.whole else count - 1  # the last move brings what is not read

    def one(step: Step, rest: State, kept: list[Array], n: Array) -> list[Array]:
        return read.pick(move(step, read.fill(kept, rest), n))

    def every(kept: list[Array]) -> list[Array]:
        numbers = jnp.arange(looped, dtype=jnp.int32)
        return jax.lax.scan(lambda s, n: (one(step, state, s, n), None), kept, numbers)[0]

    def loop(step: Step, rest: State, carry: _Carry, few: int) -> _Carry:
        def go_on(carry: _Carry) -> Array:
            return (jnp.sum(carry.active) > few) & (carry.moves < looped)

        def on(carry: _Carry) -> _Carry:
            kept = one(step, rest, carry.kept, carry.moves)
            return _Carry(kept, carry.active & _differ(kept, carry.kept), carry.moves + 1)

        return jax.lax.while_loop(go_on, on, carry)

    def moving(kept: list[Array]) -> list[Array]:
        start = _Carry(kept, jnp.ones(len(kept[0]), bool), jnp.zeros((), jnp.int32))
        return run_compacting_active(loop, step, state, start, PARTS, least=1).kept

    kept = read.pick(state)
    # Under noise an example that a sweep leaves as it was may still move in the next one.
    noisy = isinstance(step, Sweep) and step.noisy
    long = looped >= FEW and len(kept[0]) >= LEAST
    pays = long and not disable_fast_paths() and not noisy
    kept = with_derivatives_of(moving, every, kept) if some_of(step) and pays else every(kept)
    end = read.fill(kept, state)
    return end if read.whole else move(step, end, count - 1)


def _differ(a: list[Array], b: list[Array]) -> Array:
    """Which examples differ anywhere; a NaN always does."""
    parts = [(x != y).reshape(len(x), -1).any(axis=1) for x, y in zip(a, b, strict=True)]
    return jnp.stack(parts).any(axis=0)


def damp(damping: float, state: State, swept: State) -> State:
    """damping·s + (1 − damping)·sweep(s).

    Args:
      damping: in [0, 1).
      state: s.
      swept: sweep(s).
    """
    if damping == 0.0:
        return swept
    return jax.tree.map(lambda old, new: damping * old + (1.0 - damping) * new, state, swept)
