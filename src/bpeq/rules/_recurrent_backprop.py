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
from bpeq.rules._relaxing import Relaxation, Start, prepared, relaxing_rule
from bpeq.settings import Count, Positive, checked
from bpeq.solvers import fixed_point
from bpeq.types import (
    Batch,
    Cost,
    Key,
    LearningRule,
    Params,
    SolveInfo,
    Solver,
    State,
    System,
)


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

    It needs no energy: the system's Jacobian may be anything. λ is found by

        fixed-point   iterating that equation with the solver `adjoint`. At a fixed point it
                      converges wherever the sweep does, both having one spectrum; at a state that
                      has not settled it may diverge, so settle the free phase to a residual
        neumann       the series Σ_k ((∂T/∂s)ᵀ)^k ∂C/∂s, `terms` of them
        gmres         a Krylov method, example by example, that needs no stable equilibrium

    Args:
      system: any. cost: compares its readout with y.
      free, adjoint: solvers of s* and, with "fixed-point", of λ; None settles to 1e-6 within 1,000
        sweeps. Against EP in float64 ask for more.
      method: see above.
      tolerance: what counts as settled in λ for "neumann" and "gmres", in units of λ, > 0.
      terms: of the Neumann series, or the largest Krylov space before GMRES restarts (ten times
        at most), >= 1. A space of all units is exact; it is kept in memory for every example.
      evaluation: solver of the free phases of inference, that is of `apply`; None: that of `free`.
      start: where an estimate's free phase starts: "own", "zeros" and "feedforward" as
        `starting_at` has them, "carried" and "kept" as `remembering` has them.
      relaxation: the floating type of sweeps, as `in_short_floats` has it; "same": that of params.

    The estimate's info has the SolveInfos `free` and `adjoint`, `[batch]` each. The adjoint's
    residual is max |∂C/∂s + (∂T/∂s)ᵀλ − λ|; its steps are products with the Jacobian, for GMRES the
    most that it may take.

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

    def series(solve: Adjoint) -> tuple[State, SolveInfo]:
        def one(carry: tuple[State, State], _: None) -> tuple[tuple[State, State], None]:
            total, term = carry
            term = solve.pull(term)
            return (trees.add(total, term), term), None

        start = (solve.error, solve.error)
        (lam, _), _ = jax.lax.scan(one, start, length=terms - 1)
        return lam, _ended(solve, lam, terms, tolerance)

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

    def gradient(
        params: Params, batch: Batch, rest: Free, state: State, key: Key
    ) -> tuple[Params, dict[str, Any], State]:
        grads, info = implicit_gradient(system, cost, solve, params, batch, rest)
        return grads, {"adjoint": info}, state

    return relaxing_rule(
        "recurrent_backprop", system, cost, free, gradient, start=start, evaluation=evaluation
    )


def _with_batch(state: State) -> State:
    return jax.tree.map(lambda s: s[None], state)


def _ended(solve: Adjoint, lam: State, steps: int, tolerance: float) -> SolveInfo:
    gap = trees.sub(trees.add(solve.error, solve.pull(lam)), lam)
    residual = trees.max_abs(gap)
    return SolveInfo(jnp.full(residual.shape, steps, jnp.int32), residual, residual <= tolerance)
