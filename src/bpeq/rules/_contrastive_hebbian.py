"""Contrastive Hebbian learning: the output clamped to its target, against the free phase."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bpeq.costs import targets
from bpeq.rules._common import no_state
from bpeq.rules._phases import Free, clamped_phases, with_state
from bpeq.rules._references import CERTIFIED, exact_rule, refuse_unclampable
from bpeq.rules._relaxing import Measured, Relaxation, Start, prepared, relaxing_rule
from bpeq.settings import checked
from bpeq.solvers import fixed_point
from bpeq.types import Batch, Cost, Key, LearningRule, Params, RuleInfo, Solver, State, System


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

    With s⁰ the free equilibrium and s¹ the equilibrium with the output held at y, the estimate is

        ∂E/∂θ(s¹) − ∂E/∂θ(s⁰)          on a dense connection s_i⁰ s_j⁰ − s_i¹ s_j¹

    as a batch mean. It is the gradient of E(s¹) − E(s⁰), since both states are stationary in the
    units that are not clamped. This difference is the energy that holds the output at its target.
    It is another objective than the cost. If both phases settle in one basin, it is ≥ 0, and 0 if
    the free output is the target. No small parameter turns its gradient into ∇C. So fidelity
    compares the estimate with both.

    **Weak feedback.** With a weak feedback gain γ (`hopfield(..., gain=γ)`) the rule is backprop on
    the feed-forward net. As γ → 0 the free phase becomes the forward pass. Clamping moves state l
    of L by γ^(L−l) δ_l to leading order. Here δ_L = y − o and δ_l = σ′_l ⊙ f_{l+1}ᵀ(δ_{l+1}), which
    is the recursion of backprop. A skip adds its own path with the same power of γ. State l has
    weight γ^(l−L) in E. So the estimate tends to the pull-back of −δ_l by f_l, with an error of
    order γ. This is ∇C of any cost with ∂C/∂z = o − y at the last pre-activation z, where o = σ(z):

        linear outputs       the squared error
        `sigmoid`            the cross-entropy Σ_k [−y_k log o_k − (1−y_k) log(1−o_k)]
        `shifted_sigmoid`    a quarter of that cross-entropy
        in general           A(y) − A(o) − (y − o)·z, with A the potential of σ

    With squared error and outputs that have a σ, the factor σ′(z) of ∇C is missing. In float32 a
    small γ costs digits, since the first of L states moves by γ^(L−1) only.

    On `predictive` the free phase is the forward pass. The rule is then the learning of that
    network: the errors with the output clamped.

    Args:
      system: a System with an energy and an output that is a state (`write`).
      cost: reported as loss only; the estimate does not use it. y is a target of the output's
        shape, or integer labels, which stand for one-hot vectors.
      free: solver of the free phase; None settles to a residual of 1e-6 within 1,000 sweeps.
      clamped: solver of the clamped phase, which starts at s⁰; None: as for `free`.
      evaluation: solver of the free phases of inference, that is of `apply`; None: that of `free`.
      start: where an estimate's free phase starts: "own", "zeros" and "feedforward" as in
        `starting_at`, "carried" and "kept" as in `remembering`.
      relaxation: the floating type of sweeps, as in `in_short_floats`; "same": that of params.

    Returns:
      A LearningRule without a state. The estimate's info has the SolveInfos `free` `[batch]` and
      `clamped` `[1, batch]`.

    Raises:
      ValueError: the system has no energy, cannot clamp its output, or does not have this `start`.

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

    def gradient(params: Params, batch: Batch, rest: Free, state: State, key: Key) -> Measured:
        target = targets(rest.output, batch.y)
        phases, info = clamped_phases(system, settle_clamped, params, rest, target[None])
        weights = jnp.asarray([1.0, -1.0], target.dtype) / target.shape[0]
        grads, _ = denergy(params, rest.clamped, with_state(phases, rest.state), weights)
        return grads, {"clamped": info}, state

    about = RuleInfo(objective=_energy_gap(system.ideal))
    return relaxing_rule(
        "contrastive_hebbian", system, cost, free, gradient, no_state, about, start, evaluation
    )


def _energy_gap(system: System) -> LearningRule:
    """∇(E_clamped − E_free) by autodiff of E, both states settled to the limit of float64."""
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
