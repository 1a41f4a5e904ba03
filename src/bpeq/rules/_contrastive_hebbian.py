"""Contrastive Hebbian learning: the output clamped to its target, against the free phase."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bpeq.costs import targets
from bpeq.rules._phases import Free, clamped_phases, with_state
from bpeq.rules._references import CERTIFIED, exact_rule, refuse_unclampable
from bpeq.rules._relaxing import Relaxation, Start, prepared, relaxing_rule
from bpeq.settings import checked
from bpeq.solvers import fixed_point
from bpeq.types import (
    Batch,
    Cost,
    Key,
    LearningRule,
    Params,
    RuleInfo,
    Solver,
    State,
    System,
)


@checked
def contrastive_hebbian(
    system: System,
    cost: Cost,
    free: Solver | None = None,
    clamped: Solver | None = None,
    *,
    evaluation: Solver | None = None,
    start: Start = "own",
    relaxation: Relaxation = "same",
) -> LearningRule:
    """Contrastive Hebbian learning: the output clamped to its target, against the free phase.

    With s⁰ the free equilibrium and s¹ the one whose output is held at y, the estimate is

        ∂E/∂θ(s¹) − ∂E/∂θ(s⁰)          on a dense connection s_i⁰ s_j⁰ − s_i¹ s_j¹

    as a batch mean. It is the gradient of E(s¹) − E(s⁰), the energy that it takes to hold the
    output at its target, since both states are stationary in what is not clamped. That is another
    objective than the cost: ≥ 0, and 0 where the free output is the target, as long as both phases
    settle in one basin. So no small parameter makes it ∇C, and fidelity compares it with both.

    With a weak feedback gain γ, as `hopfield(..., gain=γ)` has it, it is backprop on the
    feed-forward net. As γ → 0 the free phase is the forward pass, and clamping moves state l of L
    by γ^(L−l) δ_l to leading order, where δ_L = y − o and δ_l = σ′_l ⊙ f_{l+1}ᵀ(δ_{l+1}): the
    recursion of backprop. A skip adds its own path, by the same power of γ. State l weighs γ^(l−L)
    in E, so the estimate tends to −δ_l in f_l's pull-back, with an error of order γ. That is ∇C of
    any cost with ∂C/∂z = o − y at the last pre-activation z, o = σ(z): the squared error of linear
    outputs, the cross-entropy Σ_k [−y_k log o_k − (1−y_k) log(1−o_k)] of `sigmoid` ones, a quarter
    of it for `shifted_sigmoid`; in general A(y) − A(o) − (y − o)·z, A the potential of σ. With the
    squared error of outputs that have a σ, ∇C's factor σ′(z) is missing. In float32 a small γ costs
    digits, since the first of L states moves by γ^(L−1) only.

    On `predictive`, whose free phase is the forward pass, it is that network's own learning: the
    errors with the output clamped.

    Args:
      system: it must have an energy, and an output that is a state (`write`).
      cost: what is reported as loss; it takes no part in the estimate. y is a target of the
        output's shape, or integer labels, which stand for one-hot vectors.
      free, clamped: solvers of the phases; None settles to a residual of 1e-6 within 1,000 sweeps.
        The clamped phase starts at s⁰.
      evaluation: solver of the free phases of inference, that is of `apply`; None: that of `free`.
      start: where an estimate's free phase starts: "own", "zeros" and "feedforward" as
        `starting_at` has them, "carried" and "kept" as `remembering` has them.
      relaxation: the floating type of sweeps, as `in_short_floats` has it; "same": that of params.

    Raises:
      ValueError: a system without an energy, or one that cannot clamp its output.

    The estimate's info has the SolveInfos `free` `[batch]` and `clamped` `[1, batch]`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from bpeq.costs import squared_error
      >>> from bpeq.layers import chain, dense, tanh
      >>> from bpeq.systems import hopfield
      >>> from bpeq.types import Batch
      >>> system = hopfield(chain(dense(4), tanh(), dense(1)), gain=0.1)
      >>> rule = contrastive_hebbian(system, squared_error())
      >>> params, _ = system.init(jax.random.key(0), (2,))
      >>> batch = Batch(jnp.ones((1, 2)), jnp.ones((1, 1)))
      >>> estimate, _ = rule.estimate(params, batch, (), jax.random.key(2))
      >>> bool(estimate.info["clamped"].converged.all()), rule.info.objective.name
      (True, 'E_clamped − E_free')

    Source: Movellan 1991, Contrastive Hebbian learning in the continuous Hopfield model; the gain
    and its limit, for linear outputs: Xie & Seung 2003, Equivalence of backpropagation and
    contrastive Hebbian learning in a layered network.
    """
    system = prepared(system, "contrastive_hebbian", start, relaxation)
    refuse_unclampable("contrastive_hebbian", system)
    assert system.denergy is not None
    denergy = system.denergy
    settle_clamped = fixed_point() if clamped is None else clamped

    def gradient(
        params: Params, batch: Batch, rest: Free, state: State, key: Key
    ) -> tuple[Params, dict[str, Any], State]:
        target = targets(rest.output, batch.y)
        phases, info = clamped_phases(system, settle_clamped, params, rest, target[None])
        weights = jnp.asarray([1.0, -1.0], target.dtype) / target.shape[0]
        grads, _ = denergy(params, rest.clamped, with_state(phases, rest.state), weights)
        return grads, {"clamped": info}, state

    about = RuleInfo(objective=_energy_gap(system.ideal))
    return relaxing_rule(
        "contrastive_hebbian",
        system,
        cost,
        free,
        gradient,
        info=about,
        start=start,
        evaluation=evaluation,
    )


def _energy_gap(system: System) -> LearningRule:
    """∇(E_clamped − E_free) by autodiff of E, both states settled as far as float64 goes."""
    assert system.energy is not None
    energy = system.energy

    def gradient(params: Params, batch: Batch, rest: Free) -> tuple[Params, Array, dict[str, Any]]:
        target = targets(rest.output, batch.y)
        phases, info = clamped_phases(system, CERTIFIED, params, rest, target[None])
        held = jax.tree.map(lambda s: s[0], phases)

        def gap(params: Params) -> Array:
            at = system.clamp(params, batch.x)
            return jnp.mean(energy(params, at, held) - energy(params, at, rest.state))

        value, grads = jax.value_and_grad(gap)(params)
        return grads, value, {"clamped": info}

    return exact_rule("E_clamped − E_free", system, gradient)
