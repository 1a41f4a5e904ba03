"""Recurrent backpropagation: implicit differentiation of a settled system, EP's exact reference."""

from __future__ import annotations

from typing import Any

import jax
from jaxtyping import Array

from bpeq import trees
from bpeq.rules._means import mean_loss
from bpeq.rules._phases import free_phase
from bpeq.settings import checked
from bpeq.solvers import fixed_point
from bpeq.types import (
    Batch,
    Cost,
    Estimate,
    Key,
    LearningRule,
    Params,
    Solver,
    State,
    System,
)


@checked
def recurrent_backprop(
    system: System, cost: Cost, free: Solver | None = None, adjoint: Solver | None = None
) -> LearningRule:
    """Recurrent backpropagation: implicit differentiation of a settled system.

    At the equilibrium s* = T(s*, θ) of the sweep T the implicit function theorem gives

        λ = (∂T/∂s)ᵀ λ + ∂C/∂s        dC/dθ = ∂C/∂θ + λᵀ ∂T/∂θ

    The adjoint λ is itself a fixed point, settled by the same kind of solver, with its own
    residual. At a fixed point it converges wherever the
    sweep does, both having one spectrum; at a state that has not settled it may diverge, so settle
    the free phase to a residual. It needs no energy:
    the system's Jacobian may be anything.

    Args:
      system: any. cost: compares its readout with y.
      free, adjoint: solvers of s* and of λ; None settles to 1e-6 within 1,000 sweeps. Against EP in
        float64 ask for more. `fixed_steps(k)` as adjoint is the Neumann series cut after k terms.

    The estimate's info has the SolveInfos `free` and `adjoint`, `[batch]` each.

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
    settle_free = fixed_point() if free is None else free
    settle_adjoint = fixed_point() if adjoint is None else adjoint

    def init(key: Key, params: Params) -> tuple[Params, State]:
        return params, ()

    def apply(params: Params, x: Any, key: Key | None = None) -> Array:
        return free_phase(system, settle_free, params, x).output

    def estimate(params: Params, batch: Batch, state: State, key: Key) -> tuple[Estimate, State]:
        rest = free_phase(system, settle_free, params, batch.x)

        def sweep(params: Params, s: State) -> State:
            return system.sweep(params, system.clamp(params, batch.x), s)

        def cost_at(params: Params, s: State) -> Array:
            return mean_loss(cost, system.readout.forward(params, s)[0], batch.y)

        direct, error = jax.grad(cost_at, argnums=(0, 1))(params, rest.state)
        _, pull = jax.vjp(sweep, params, rest.state)
        # Per example, as the cost is, so that a residual does not shrink with the batch.
        error = trees.scale(float(rest.output.shape[0]), error)
        lam, info = settle_adjoint(lambda lam: trees.add(error, pull(lam)[1]), error)
        through_state = trees.scale(1.0 / rest.output.shape[0], pull(lam)[0])
        grads = trees.add(direct, through_state)
        loss = mean_loss(cost, rest.output, batch.y)
        return Estimate(grads, loss, rest.output, {"free": rest.info, "adjoint": info}), state

    return LearningRule("recurrent_backprop", init, apply, estimate)
