"""Coupled learning: the output clamped a little nearer to its target, against the free phase."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from annotated_types import Interval
from jaxtyping import Array

from bpeq.core import trees
from bpeq.costs import targets
from bpeq.rules._common import settings_init
from bpeq.rules._phases import Free, clamped_phases, with_state
from bpeq.rules._references import CERTIFIED, exact_rule, refuse_unclampable
from bpeq.rules._relaxing import Measured, Relaxation, Start, prepared, relaxing_rule
from bpeq.settings import checked
from bpeq.solvers import fixed_point
from bpeq.types import Batch, Cost, Key, LearningRule, Params, RuleInfo, Solver, State, System


@checked
def coupled_learning(
    system: System,
    cost: Cost,
    free: Solver | None = None,
    clamped: Solver | None = None,
    *,
    eta: Annotated[float, Interval(gt=0, le=1)] = 0.1,
    nudging: Literal["positive", "negative", "centered"] = "centered",
    evaluation: Solver | None = None,
    start: Start = "own",
    relaxation: Relaxation = "same",
) -> LearningRule:
    """Coupled learning: the output clamped a little nearer to its target, against the free phase.

    With s⁰ the free equilibrium, o its output and s^η the equilibrium with the output held at
    o + η(y − o), the estimate is a batch mean of

        positive     (∂E/∂θ(s^η) − ∂E/∂θ(s⁰)) / η          bias of order η
        negative     (∂E/∂θ(s⁰) − ∂E/∂θ(s^−η)) / η         bias of order η
        centered     (∂E/∂θ(s^η) − ∂E/∂θ(s^−η)) / 2η       bias of order η²

    As η → 0 all three tend to the gradient of

        ½ (o − y)ᵀ K (o − y),     K held constant.

    K is the curvature of E along the outputs when all other units follow: the Schur complement of
    E's Hessian on the outputs. This gradient is not ∇C. The squared error has the same weight in
    all directions of the output; this objective gives stiff directions more weight. Fidelity
    compares the estimate with both. At η = 1 the positive form is `contrastive_hebbian`.

    Args:
      system: a System with an energy and an output that is a state (`write`).
      cost: reported as loss only; the estimate does not use it. y is a target of the output's
        shape, or integer labels, which stand for one-hot vectors.
      free: solver of the free phase; None settles to a residual of 1e-6 within 1,000 sweeps.
      clamped: solver of the clamped phases, which start at s⁰; None: as for `free`.
      eta: 0 < η <= 1, the fraction of the way to the target. η is traced: a new value compiles
        nothing. In float32 round-off grows as 1/η.
      nudging: "positive" pulls the output toward the target, "negative" pushes it away, "centered"
        does both.
      evaluation: solver of the free phases of inference, that is of `apply`; None: that of `free`.
      start: where an estimate's free phase starts: "own", "zeros" and "feedforward" as in
        `starting_at`, "carried" and "kept" as in `remembering`.
      relaxation: the floating type of sweeps, as in `in_short_floats`; "same": that of params.

    Returns:
      A LearningRule with the state {"eta": η}. The estimate's info has the SolveInfos `free`
      `[batch]` and `clamped` `[phases, batch]`.

    Raises:
      ValueError: a setting is out of range; the system has no energy, cannot clamp its output, or
        does not have this `start`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from bpeq.costs import squared_error
      >>> from bpeq.layers import chain, dense, tanh
      >>> from bpeq.systems import hopfield
      >>> from bpeq.types import Batch
      >>> system = hopfield(chain(dense(4), tanh(), dense(1)))
      >>> rule = coupled_learning(system, squared_error(), eta=0.01)
      >>> params, state = rule.init(jax.random.key(1), system.init(jax.random.key(0), (2,))[0])
      >>> batch = Batch(jnp.ones((1, 2)), jnp.ones((1, 1)))
      >>> estimate, _ = rule.estimate(params, batch, state, jax.random.key(2))
      >>> bool(estimate.info["clamped"].converged.all()), rule.info.objective.name
      (True, '½(o−y)ᵀK(o−y)')

    Source: Stern, Hexner, Rocks & Liu 2021, Supervised learning in physical networks: from machine
    learning to learning machines; negative and centered: Scellier, Ernoult, Kendall & Kumar 2023,
    Energy-based learning algorithms for analog computing: a comparative study.
    """
    system = prepared(system, "coupled_learning", start, relaxation)
    refuse_unclampable("coupled_learning", system)
    settle_clamped = fixed_point() if clamped is None else clamped
    signs = {"positive": [1.0], "negative": [-1.0], "centered": [1.0, -1.0]}[nudging]
    assert system.denergy is not None
    denergy = system.denergy
    init = settings_init("coupled_learning", "eta", eta=eta)

    def gradient(params: Params, batch: Batch, rest: Free, state: State, key: Key) -> Measured:
        way = state["eta"] * (targets(rest.output, batch.y) - rest.output)
        outputs = jnp.stack([rest.output + sign * way for sign in signs])
        phases, info = clamped_phases(system, settle_clamped, params, rest, outputs)
        weights = jnp.asarray(signs, way.dtype) / (len(signs) * state["eta"] * len(way))
        if nudging != "centered":  # the free state is the second phase
            phases = with_state(phases, rest.state)
            weights = jnp.concatenate([weights, -weights])
        return denergy(params, rest.clamped, phases, weights)[0], {"clamped": info}, state

    order = 2 if nudging == "centered" else 1
    objective = _weighed_error(system.ideal)
    about = RuleInfo(objective=objective, beta="eta", beta_max=1.0, order=order)
    return relaxing_rule(
        "coupled_learning", system, cost, free, gradient, init, about, start, evaluation
    )


def _weighed_error(system: System) -> LearningRule:
    """The exact gradient of ½(o−y)ᵀK(o−y), K held constant. It does not build K.

    If the output is held at o + η(y − o), the state moves by η v to first order. On the outputs v
    is y − o. On the other units v is their response: one linear solve per example, of the
    linearised sweep. Let F(θ, o) be the slope of E along the outputs when the other units follow. F
    = 0 along o(θ), so ∂F/∂θ = −K do/dθ. Hence d/dη ∂E/∂θ = ∂(y−o)ᵀF/∂θ = (o−y)ᵀK do/dθ. With H the
    Hessian of E, vᵀHv = (o−y)ᵀK(o−y).
    """
    assert system.energy is not None
    assert system.write is not None
    energy, write = system.energy, system.write

    def gradient(params: Params, batch: Batch, rest: Free) -> tuple[Params, Array, dict[str, Any]]:
        way = targets(rest.output, batch.y) - rest.output
        _, start = jax.jvp(lambda o: write(rest.state, o), (rest.output,), (way,))
        _, respond = jax.linearize(
            lambda s: system.sweep(params, rest.clamped, s, hold=True), rest.state
        )
        moved, info = CERTIFIED(respond, start)

        def slope(state: State) -> Params:
            def total(params: Params) -> Array:
                return jnp.mean(energy(params, system.clamp(params, batch.x), state))

            return jax.grad(total)(params)

        _, grads = jax.jvp(slope, (rest.state,), (moved,))

        def force(state: State) -> State:
            return system.force(params, rest.clamped, state)

        _, pulled = jax.jvp(force, (rest.state,), (moved,))
        value = -0.5 / len(way) * trees.dot(moved, pulled)
        return grads, value, {"response": info}

    return exact_rule("½(o−y)ᵀK(o−y)", system, gradient)
