"""Recurrent backpropagation: implicit differentiation of a settled system, EP's exact reference."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.scipy.sparse.linalg import gmres
from jaxtyping import Array

from bpeq.core import trees
from bpeq.rules._phases import Free
from bpeq.rules._references import Adjoint, adjoint_equation, implicit_gradient
from bpeq.rules._relaxing import Measured, Relaxation, Start, prepared, relaxing_rule
from bpeq.settings import Count, Positive, checked
from bpeq.solvers import fixed_point
from bpeq.types import Batch, Cost, Key, LearningRule, Params, SolveInfo, Solver, State, System


@checked
def recurrent_backprop(
    system: System,
    cost: Cost,
    free: Solver | None = None,
    adjoint: Solver | None = None,
    *,
    method: Literal["fixed-point", "neumann", "gmres"] = "fixed-point",
    tolerance: Positive = 1e-6,
    terms: Count = 1000,
    evaluation: Solver | None = None,
    start: Start = "own",
    relaxation: Relaxation = "same",
) -> LearningRule:
    """Recurrent backpropagation: implicit differentiation of a settled system.

    At the equilibrium s* = T(s*, θ) of the sweep T the implicit function theorem gives

        λ = (∂T/∂s)ᵀ λ + ∂C/∂s        dC/dθ = ∂C/∂θ + λᵀ ∂T/∂θ

    It needs no energy: the Jacobian of the system may be any matrix. `method` finds λ:

        fixed-point   iterates that equation with the solver `adjoint`. At a fixed point it
                      converges if the sweep does, because both have the same spectrum. At a state
                      that has not settled it may diverge, so use a free solver that settles to a
                      residual.
        neumann       adds `terms` terms of the series Σ_k ((∂T/∂s)ᵀ)^k ∂C/∂s
        gmres         a Krylov method, for each example alone; it needs no stable equilibrium

    Args:
      system: any system.
      cost: compares the system's readout with y.
      free: solver of s*; None settles to a residual of 1e-6 within 1,000 sweeps. For a comparison
        with EP in float64 use a smaller tolerance.
      adjoint: solver of λ with "fixed-point"; None: as for `free`.
      method: one of the three above.
      tolerance: residual that counts as settled in λ for "neumann" and "gmres", in units of λ, > 0.
      terms: number of terms of the Neumann series, or the largest Krylov space before GMRES
        restarts (at most ten times), >= 1. A Krylov space as large as the number of units is exact.
        Memory holds one space for each example.
      evaluation: solver of the free phases of inference, that is of `apply`; None: that of `free`.
      start: where an estimate's free phase starts: "own", "zeros" and "feedforward" as in
        `starting_at`, "carried" and "kept" as in `remembering`.
      relaxation: the floating type of sweeps, as in `in_short_floats`; "same": that of params.

    Returns:
      A LearningRule without a state. The estimate's info has the SolveInfos `free` and `adjoint`,
      `[batch]` each. The adjoint's residual is max |∂C/∂s + (∂T/∂s)ᵀλ − λ|. Its steps count
      products with the Jacobian; for GMRES this is the largest possible number.

    Raises:
      ValueError: a setting is out of range; the system does not have this `start`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from bpeq.costs import squared_error
      >>> from bpeq.layers import chain, dense, tanh
      >>> from bpeq.systems import hopfield
      >>> from bpeq.types import Batch
      >>> system = hopfield(chain(dense(4), tanh(), dense(1)))
      >>> rule = recurrent_backprop(system, squared_error())
      >>> params, _ = system.init(jax.random.key(0), (2,))
      >>> batch = Batch(jnp.ones((1, 2)), jnp.ones((1, 1)))
      >>> estimate, _ = rule.estimate(params, batch, (), jax.random.key(2))
      >>> bool(estimate.info["adjoint"].converged.all())
      True

    Source: Almeida 1987; Pineda 1987, Generalization of back-propagation to recurrent neural
    networks.
    """
    system = prepared(system, "recurrent_backprop", start, relaxation)
    settle = fixed_point() if adjoint is None else adjoint

    def iterate(solve: Adjoint) -> tuple[State, SolveInfo]:
        return settle(lambda lam: trees.add(solve.error, solve.pull(lam)), solve.error)

    # The series needs no stop test, so it is one scan.
    def series(solve: Adjoint) -> tuple[State, SolveInfo]:
        def one(carry: tuple[State, State], _: None) -> tuple[tuple[State, State], None]:
            total, term = carry
            term = solve.pull(term)
            return (trees.add(total, term), term), None

        start = (solve.error, solve.error)
        (lam, _), _ = jax.lax.scan(one, start, length=terms - 1)
        return lam, _ended(solve, lam, terms, tolerance)

    # GMRES works on one vector, so each example is solved alone and mapped over the batch.
    def krylov(solve: Adjoint) -> tuple[State, SolveInfo]:
        units = trees.size(solve.error) // len(jax.tree.leaves(solve.error)[0])
        space, restarts = min(terms, units), 10

        def one(x: Array, state: State, error: State) -> State:
            alone = adjoint_equation(system, solve.params, x[None], _with_batch(state), error)

            def product(lam: State) -> State:
                return trees.sub(lam, jax.tree.map(lambda p: p[0], alone.pull(_with_batch(lam))))

            how: dict[str, Any] = {"restart": space, "maxiter": restarts}
            return gmres(product, error, tol=0.0, atol=tolerance, **how)[0]

        lam = jax.vmap(one)(solve.x, solve.state, solve.error)
        return lam, _ended(solve, lam, space * restarts, tolerance)

    solve = {"fixed-point": iterate, "neumann": series, "gmres": krylov}[method]

    def gradient(params: Params, batch: Batch, rest: Free, state: State, key: Key) -> Measured:
        grads, info = implicit_gradient(system, cost, solve, params, batch, rest)
        return grads, {"adjoint": info}, state

    return relaxing_rule(
        "recurrent_backprop", system, cost, free, gradient, start=start, evaluation=evaluation
    )


def _with_batch(state: State) -> State:
    """Add a batch axis of size 1 to every leaf."""
    return jax.tree.map(lambda s: s[None], state)


def _ended(solve: Adjoint, lam: State, steps: int, tolerance: float) -> SolveInfo:
    """The SolveInfo of λ, from the residual of its equation."""
    gap = trees.sub(trees.add(solve.error, solve.pull(lam)), lam)
    residual = trees.max_abs(gap)
    return SolveInfo(jnp.full(residual.shape, steps, jnp.int32), residual, residual <= tolerance)
