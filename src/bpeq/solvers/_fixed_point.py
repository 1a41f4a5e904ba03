"""Sweeps until each example has settled, to a certified residual."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bpeq.core import trees
from bpeq.settings import Count, Fraction, Positive, checked
from bpeq.solvers._fewer import PARTS, Step, run_compacting_active
from bpeq.solvers._fixed_steps import damp
from bpeq.solvers._sweep import run_sweep
from bpeq.types import SolveInfo, Solver, State


class _Carry(NamedTuple):
    state: State
    swept: State  # sweep(state): the residual of `state` is measured before it moves
    residual: Float[Array, " batch"]
    active: Bool[Array, " batch"]
    steps: Int[Array, " batch"]
    sweeps: Int[Array, ""]


@checked
def fixed_point(
    tolerance: Positive = 1e-6, max_steps: Count = 1000, *, damping: Fraction = 0.0
) -> Solver:
    """Sweeps until every example's residual max |sweep(s) − s| is at most `tolerance`.

    An example that has settled stops moving, so its result does not depend on its batch mates; it
    ends at the very state whose residual was measured: that makes `residual` a certificate.
    NaN never counts as settled. An example that is not settled after `max_steps` sweeps is returned
    as it then is, with `converged` false.

    Args:
      tolerance: in units of the state, > 0; in float32 little below 1e-6 can be reached.
      max_steps: sweeps at most, >= 1.
      damping: 0 <= damping < 1; the residual is of the undamped sweep whatever the damping.

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
            return _Carry(
                state, swept, residual, unsettled, steps + active.astype(jnp.int32), sweeps + 1
            )

        def loop(step: Step, rest: State, carry: _Carry, few: int) -> _Carry:
            def go_on(carry: _Carry) -> Array:
                return (jnp.sum(carry.active) > few) & (carry.sweeps < max_steps)

            def move(carry: _Carry) -> _Carry:
                moved = damp(damping, carry.state, carry.swept)
                state = trees.where(carry.active, moved, carry.state)
                after = measure(step, state, carry.active, carry.steps, carry.sweeps)
                return after._replace(
                    residual=jnp.where(carry.active, after.residual, carry.residual)
                )

            return jax.lax.while_loop(go_on, move, carry)

        batch = len(jax.tree.leaves(state)[0])
        everyone, nobody = jnp.ones(batch, bool), jnp.zeros(batch, jnp.int32)
        # Measured before the loop: a loop that trusts its initial residual can run zero steps.
        start = measure(step, state, everyone, nobody, jnp.zeros((), jnp.int32))
        end = run_compacting_active(loop, step, state, start, PARTS)
        return end.state, SolveInfo(end.steps, end.residual, end.residual <= tolerance)

    return solve
