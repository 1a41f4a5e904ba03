"""Asymmetric EP: exact without symmetry, by a nudged phase whose Jacobian is transposed."""

from __future__ import annotations

from typing import Any

from bpeq.core import trees
from bpeq.rules._common import settings_init
from bpeq.rules._phases import Free, in_one_piece
from bpeq.rules._references import refuse_outside
from bpeq.rules._relaxing import Relaxation, Start, prepared, relaxing_rule
from bpeq.rules._vector_field_eqprop import Sides, response_gradient, skew
from bpeq.settings import Positive, checked
from bpeq.types import Cost, LearningRule, Params, RuleInfo, Solver, State, System


@checked
def asymmetric_eqprop(
    system: System,
    cost: Cost,
    free: Solver | None = None,
    nudged: Solver | None = None,
    *,
    beta: Positive = 0.1,
    nudging: Sides = "centered",
    evaluation: Solver | None = None,
    start: Start = "own",
    relaxation: Relaxation = "same",
) -> LearningRule:
    """Asymmetric EP: exact as β → 0 for non-reciprocal systems.

    With f the force, s⁰ its free equilibrium and J = ∂f/∂s there, the nudged phase settles

        0 = f(s) + (Jᵀ − J)(s − s⁰) − β ∂C/∂s

    Its Jacobian at s⁰ is Jᵀ. The response is then s^β − s⁰ ≈ β J⁻ᵀ ∂C/∂s, the adjoint itself. So
    the contraction of `vector_field_eqprop`, −(1/β)(∂f/∂θ)ᵀ(s^β − s⁰) or its centered form, tends
    to the exact gradient. The bias is of order β one-sided and β² centered. On a reciprocal system
    Jᵀ − J = 0 and both rules are equal. The correction runs every connection backward with its own
    weights: the rule is exact, but it transports weights.

    The correction is a push like the nudge. Each half of an alternating sweep evaluates it; once
    per sweep would be wrong. The linearised corrected sweep has the spectrum of the free sweep, for
    synchronous sweeps and for alternating sweeps of a layered net. So it settles if the free phase
    does. A unit whose force has an infinite slope, such as a saturated one, does not respond and
    gets no correction.

    Args:
      system: any system whose push enters its force, f(s) + push = 0. These are all systems of bpeq
        but a Hopfield system with nudge = "outside", where the correction would be outside σ too.
      cost: compares the readout with y; it nudges each example.
      free: solver of the free phase; None settles to a residual of 1e-6 within 1,000 sweeps.
      nudged: solver of the nudged phases, which start at s⁰; None: as for `free`.
      beta: β > 0, in units of force per slope of the cost; traced. In float32 round-off grows as
        1/β.
      nudging: "one-sided" or "centered".
      evaluation: solver of the free phases of inference, that is of `apply`; None: that of `free`.
      start: where an estimate's free phase starts: "own", "zeros" and "feedforward" as in
        `starting_at`, "carried" and "kept" as in `remembering`.
      relaxation: the floating type of sweeps, as in `in_short_floats`; "same": that of params.

    Returns:
      A LearningRule with the state {"beta": β}. The estimate's info has the SolveInfos `free`
      `[batch]` and `nudged` `[phases, batch]`.

    Raises:
      ValueError: a setting is out of range; the system is nudged outside of its σ, or does not have
        this `start`.

    Example (a unit that drives the next one, which does not answer):
      >>> import jax, jax.numpy as jnp
      >>> from bpeq.costs import squared_error
      >>> from bpeq.systems import from_field
      >>> from bpeq.types import Batch
      >>> system = from_field(
      ...     field=lambda p, s, x: -s + jnp.stack([p["w"] * x[0], p["v"] * s[0]]),
      ...     init_state=lambda p, x: jnp.zeros(2), readout=lambda p, s: s[1:],
      ...     init=lambda key, shape: ({"w": jnp.array(1.0), "v": jnp.array(2.0)}, (1,)))
      >>> rule = asymmetric_eqprop(system, squared_error(), beta=0.01)
      >>> params, state = rule.init(jax.random.key(1), system.init(jax.random.key(0), (1,))[0])
      >>> batch = Batch(jnp.ones((1, 1)), jnp.ones((1, 1)))
      >>> grads = rule.estimate(params, batch, state, jax.random.key(2))[0].grads
      >>> round(float(grads["v"]), 2), round(float(grads["w"]), 2)  # exact: 1 and 2
      (1.0, 2.0)

    Source: Scurria et al. 2026, asymmetric (dyadic) equilibrium propagation.
    """
    system = prepared(system, "asymmetric_eqprop", start, relaxation)
    refuse_outside("asymmetric_eqprop", system)
    init = settings_init("asymmetric_eqprop", "beta", beta=beta)

    gradient = response_gradient(system, cost, nudged, nudging, transposed)
    about = RuleInfo(
        beta="beta",
        order=2 if nudging == "centered" else 1,
        nudged_system=transposed,
        pushes_away=nudging == "centered",
    )
    return relaxing_rule(
        "asymmetric_eqprop", system, cost, free, gradient, init, about, start, evaluation
    )


def transposed(system: System, params: Params, rest: Free) -> System:
    """The system whose nudged sweep has the additional push (Jᵀ − J)(s − s⁰).

    Args:
      system: any system whose push enters its force.
      params: its parameters.
      rest: the free phase s⁰.

    Returns:
      A System. It sweeps only this batch, as a whole, since the push holds the s⁰ of its examples.
    """
    twist = skew(system, params, rest.clamped, rest.state)

    def sweep(params: Params, clamped: Any, state: State, push: Any) -> State:
        def both(state: State) -> State:
            return trees.add_given(twist(trees.sub(state, rest.state)), push(state))

        return system.sweep(params, clamped, state, both)

    # The push holds the s⁰ of this batch, so a sweep cannot take a part of its rows.
    return in_one_piece(system._replace(sweep=sweep))
