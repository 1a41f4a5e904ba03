"""Recurrent backpropagation: implicit differentiation of a settled system, EP's exact reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.sparse.linalg import gmres
from jaxtyping import Array

from bpeq.core import trees
from bpeq.rules._means import mean_loss
from bpeq.rules._phases import free_phase
from bpeq.rules._relaxing import relaxing
from bpeq.settings import Count, Positive, checked
from bpeq.solvers import fixed_point
from bpeq.types import (
    Batch,
    Cost,
    Estimate,
    Key,
    LearningRule,
    Params,
    RuleInfo,
    SolveInfo,
    Solver,
    State,
    System,
)


@checked
@relaxing
def recurrent_backprop(
    system: System,
    cost: Cost,
    free: Solver | None = None,
    adjoint: Solver | None = None,
    *,
    method: Literal["fixed-point", "neumann", "gmres"] = "fixed-point",
    tolerance: Positive = 1e-6,
    terms: Count = 1000,
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
    settle = fixed_point() if adjoint is None else adjoint

    def iterate(solve: _Linear) -> tuple[State, SolveInfo]:
        return settle(lambda lam: trees.add(solve.error, solve.pull(lam)), solve.error)

    def series(solve: _Linear) -> tuple[State, SolveInfo]:
        def one(carry: tuple[State, State], _: None) -> tuple[tuple[State, State], None]:
            total, term = carry
            term = solve.pull(term)
            return (trees.add(total, term), term), None

        start = (solve.error, solve.error)
        (lam, _), _ = jax.lax.scan(one, start, length=terms - 1)
        return lam, _ended(solve, lam, terms, tolerance)

    def krylov(solve: _Linear) -> tuple[State, SolveInfo]:
        units = trees.size(solve.error) // len(jax.tree.leaves(solve.error)[0])
        space, restarts = min(terms, units), 10

        def one(x: Array, state: State, error: State) -> State:
            alone = _linear(system, solve.params, x[None], _with_batch(state), error)

            def product(lam: State) -> State:
                return trees.sub(lam, jax.tree.map(lambda p: p[0], alone.pull(_with_batch(lam))))

            how: dict[str, Any] = {"restart": space, "maxiter": restarts}
            return gmres(product, error, tol=0.0, atol=tolerance, **how)[0]

        lam = jax.vmap(one)(solve.x, solve.state, solve.error)
        return lam, _ended(solve, lam, space * restarts, tolerance)

    solve = {"fixed-point": iterate, "neumann": series, "gmres": krylov}[method]
    rule = _implicit(system, cost, fixed_point() if free is None else free, solve)
    return rule._replace(info=RuleInfo(exact_reference(system, cost)))


def exact_reference(system: System, cost: Cost) -> LearningRule:
    """Implicit differentiation settled as far as float64 goes: what relaxing rules aim at.

    Of the ideal system: an imperfect device's error counts what its imperfections cost.
    """
    settle = fixed_point(1e-12, 20_000)
    return _implicit(
        system.ideal,
        cost,
        settle,
        lambda solve: settle(lambda lam: trees.add(solve.error, solve.pull(lam)), solve.error),
    )


class _Linear(NamedTuple):
    """λ = error + pull(λ), pull the transposed Jacobian of the sweep at `state`."""

    params: Params
    x: Array
    state: State
    error: State
    pull: Callable[[State], State]


def _linear(system: System, params: Params, x: Array, state: State, error: State) -> _Linear:
    _, pull = jax.vjp(lambda s: system.sweep(params, system.clamp(params, x), s), state)
    return _Linear(params, x, state, error, lambda lam: pull(lam)[0])


def _implicit(
    system: System,
    cost: Cost,
    settle_free: Solver,
    solve: Callable[[_Linear], tuple[State, SolveInfo]],
) -> LearningRule:
    def init(key: Key, params: Params) -> tuple[Params, State]:
        return params, ()

    def apply(params: Params, x: Any, key: Key | None = None) -> Array:
        return free_phase(system, settle_free, params, x).output

    def estimate(params: Params, batch: Batch, state: State, key: Key) -> tuple[Estimate, State]:
        rest = free_phase(system, settle_free, params, batch.x)
        examples = rest.output.shape[0]

        def cost_at(params: Params, s: State) -> Array:
            return mean_loss(cost, system.readout.forward(params, s)[0], batch.y)

        direct, error = jax.grad(cost_at, argnums=(0, 1))(params, rest.state)
        # Per example, as the cost is, so that a residual does not shrink with the batch.
        error = trees.scale(float(examples), error)
        lam, info = solve(_linear(system, params, batch.x, rest.state, error))
        _, pull = jax.vjp(lambda p: system.sweep(p, system.clamp(p, batch.x), rest.state), params)
        grads = trees.add(direct, trees.scale(1.0 / examples, pull(lam)[0]))
        loss = mean_loss(cost, rest.output, batch.y)
        return Estimate(grads, loss, rest.output, {"free": rest.info, "adjoint": info}), state

    return LearningRule("recurrent_backprop", init, apply, estimate)


def _with_batch(state: State) -> State:
    return jax.tree.map(lambda s: s[None], state)


def _ended(solve: _Linear, lam: State, steps: int, tolerance: float) -> SolveInfo:
    gap = trees.sub(trees.add(solve.error, solve.pull(lam)), lam)
    residual = trees.max_abs(gap)
    return SolveInfo(jnp.full(residual.shape, steps, jnp.int32), residual, residual <= tolerance)
