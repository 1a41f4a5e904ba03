"""Sweeps until each example has settled to a certified residual."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bpeq.core import trees
from bpeq.settings import Count, Fraction, Positive, checked
from bpeq.solvers._fixed_steps import damp
from bpeq.solvers._loops import PARTS, Step, run_compacting_active, run_sweep
from bpeq.types import SolveInfo, Solver, State


class _Carry(NamedTuple):
    """The state of the loop.

    state: the current state. swept: sweep(state), whose residual is measured before the state
    moves.
    residual, active, steps: per example. sweeps: the number of sweeps so far.
    """

    state: State
    swept: State  # sweep(state)
    residual: Float[Array, " batch"]
    active: Bool[Array, " batch"]
    steps: Int[Array, " batch"]
    sweeps: Int[Array, ""]


@checked
def fixed_point(
    tolerance: Positive = 1e-6, max_steps: Count = 1000, *, damping: Fraction = 0.0
) -> Solver:
    """Sweep until the residual max |sweep(s) − s| of every example is at most `tolerance`.

        s ← damping·s + (1 − damping)·sweep(s)

    An example that has settled stops moving. So its result does not depend on the other examples of
    its batch. It ends at exactly the state whose residual was measured, so `residual` is a
    certificate. NaN never counts as settled. After `max_steps` sweeps the solver returns an example
    as it is, with `converged` false.

    Args:
      tolerance: > 0, in units of the state. In float32 the smallest possible value is near 1e-6.
      max_steps: largest number of sweeps, >= 1.
      damping: 0 <= damping < 1. The residual is always that of the undamped sweep.

    Returns:
      A Solver.

    Raises:
      ValueError: a setting is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> state, info = fixed_point(1e-3)(lambda s: 0.5 * s, jnp.array([[1.0], [0.0]]))
      >>> info.steps.tolist(), info.converged.tolist(), bool((info.residual <= 1e-3).all())
      ([10, 1], [True, True], True)
    """

    def solve(step: Callable[[State], State], state: State) -> tuple[State, SolveInfo]:
        def measure(step: Step, state: State, active: Array, steps: Array, sweeps: Array) -> _Carry:
            swept = run_sweep(step, state, sweeps)
            residual = trees.max_abs(trees.sub(swept, state))
            unsettled = active & ~(residual <= tolerance)
            steps = steps + active.astype(jnp.int32)
            return _Carry(state, swept, residual, unsettled, steps, sweeps + 1)

        def loop(step: Step, rest: State, carry: _Carry, few: int) -> _Carry:
            def go_on(carry: _Carry) -> Array:
                return (jnp.sum(carry.active) > few) & (carry.sweeps < max_steps)

            def move(carry: _Carry) -> _Carry:
                moved = damp(damping, carry.state, carry.swept)
                state = trees.where(carry.active, moved, carry.state)
                after = measure(step, state, carry.active, carry.steps, carry.sweeps)
                residual = jnp.where(carry.active, after.residual, carry.residual)
                return after._replace(residual=residual)

            return jax.lax.while_loop(go_on, move, carry)

        batch = len(jax.tree.leaves(state)[0])
        everyone, nobody = jnp.ones(batch, bool), jnp.zeros(batch, jnp.int32)
        # Measure before the loop: a loop that trusts its initial residual can run zero steps.
        start = measure(step, state, everyone, nobody, jnp.zeros((), jnp.int32))
        end = run_compacting_active(loop, step, state, start, PARTS)
        return end.state, SolveInfo(end.steps, end.residual, end.residual <= tolerance)

    return solve
