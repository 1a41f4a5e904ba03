"""Equilibrium propagation: the gradient as a contrast between free and nudged equilibria."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bpeq.rules._means import mean_loss
from bpeq.rules._phases import contrast, free_phase, nudged_phases
from bpeq.settings import Positive, checked
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

Nudging = Literal["one-sided", "centered", "random-sign"]


@checked
def eqprop(
    system: System,
    cost: Cost,
    free: Solver | None = None,
    nudged: Solver | None = None,
    *,
    beta: Positive = 0.1,
    nudging: Nudging = "centered",
) -> LearningRule:
    """Equilibrium propagation: the gradient from free and nudged equilibria of F = E + βC.

    With ∂F^β = ∂E/∂θ(s^β) + β ∂C/∂θ(s^β) the estimate is

        one-sided     (∂F^β − ∂F⁰) / β            bias of order β
        centered      (∂F^β − ∂F^−β) / 2β         bias of order β²
        random-sign   one-sided at ±β, the sign drawn per estimate: no bias of order β on average

    Every weight's update is local: it reads the two units that it joins, in two phases. On a dense
    connection it is the contrastive Hebbian (1/β)(s_i^β s_j^β − s_i⁰ s_j⁰). Exact as β → 0 because
    the energy makes the force's Jacobian symmetric.

    Args:
      system: it must have an energy.
      cost: compares the readout with y; it nudges per example, before the mean over the batch.
      free, nudged: solvers of the phases; None settles to a residual of 1e-6 within 1,000 sweeps.
        Nudged phases start at s⁰.
      beta: β > 0, in units of energy per cost. It is traced: a new β does not compile anew. In
        float32 round-off grows as 1/β, so the smallest β is not the best. With linear outputs and
        squared error the nudge contracts by β a sweep, so nudged phases settle for β < 1 only.
      nudging: see above.

    Raises:
      ValueError: a setting out of range, or a system without an energy.

    The estimate's info has the SolveInfos `free` `[batch]` and `nudged` `[phases, batch]`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from bpeq.costs import squared_error
      >>> from bpeq.layers import chain, dense, tanh
      >>> from bpeq.systems import hopfield
      >>> from bpeq.types import Batch
      >>> system = hopfield(chain(dense(4), tanh(), dense(1)))
      >>> rule = eqprop(system, squared_error(), beta=0.01)
      >>> params, _ = system.init(jax.random.key(0), (2,))
      >>> params, state = rule.init(jax.random.key(1), params)
      >>> batch = Batch(jnp.ones((1, 2)), jnp.ones((1, 1)))
      >>> estimate, _ = rule.estimate(params, batch, state, jax.random.key(2))
      >>> bool(estimate.info["nudged"].converged.all())
      True

    Source: Scellier & Bengio 2017, Equilibrium propagation: bridging the gap between energy-based
    models and backpropagation; centered: Laborieux et al. 2021, Scaling equilibrium propagation to
    deep ConvNets by drastically reducing its gradient estimator bias.
    """
    if system.denergy is None:
        raise ValueError(f"eqprop: the system {system.name!r} has no energy")
    settle_free = fixed_point() if free is None else free
    settle_nudged = fixed_point() if nudged is None else nudged

    def init(key: Key, params: Params) -> tuple[Params, State]:
        dtype = jnp.result_type(*jax.tree.leaves(params))
        return params, {"beta": jnp.asarray(beta, dtype)}

    def apply(params: Params, x: Any, key: Key | None = None) -> Array:
        return free_phase(system, settle_free, params, x).output

    def estimate(params: Params, batch: Batch, state: State, key: Key) -> tuple[Estimate, State]:
        rest = free_phase(system, settle_free, params, batch.x)
        b = state["beta"]
        if nudging == "random-sign":
            b = b * jax.random.rademacher(key, (), b.dtype)
        signs = jnp.asarray([1.0, -1.0] if nudging == "centered" else [1.0], b.dtype)
        betas = signs * b
        phases, info = nudged_phases(system, cost, settle_nudged, params, rest, batch.y, betas)
        if nudging == "centered":
            weights = signs / (2.0 * b)
        else:  # the free state is the second phase, at β = 0
            phases = jax.tree.map(lambda s, s0: jnp.concatenate([s, s0[None]]), phases, rest.state)
            betas = jnp.stack([b, jnp.zeros_like(b)])
            weights = jnp.stack([1.0 / b, -1.0 / b])
        grads = contrast(
            system,
            cost,
            params,
            rest.clamped,
            batch.y,
            phases,
            betas,
            weights / rest.output.shape[0],
        )
        loss = mean_loss(cost, rest.output, batch.y)
        return Estimate(grads, loss, rest.output, {"free": rest.info, "nudged": info}), state

    return LearningRule("eqprop", init, apply, estimate)
