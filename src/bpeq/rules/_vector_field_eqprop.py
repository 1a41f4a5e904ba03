"""Vector-field EP: the force's own pull-back of the response to a nudge; no energy needed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bpeq.core import sharding, trees
from bpeq.rules._common import traced_settings
from bpeq.rules._kolen_pollack import symmetrise_feedback_gradients
from bpeq.rules._phases import Free, contrast, nudged_phases
from bpeq.rules._references import followed, follows
from bpeq.rules._relaxing import Gradient, Measured, Relaxation, Start, prepared, relaxing_rule
from bpeq.settings import NonNegative, Positive, checked
from bpeq.solvers import fixed_point
from bpeq.types import (
    Batch,
    Cost,
    Key,
    Layer,
    LearningRule,
    Params,
    RuleInfo,
    Solver,
    State,
    System,
)

Sides = Literal["one-sided", "centered"]


@checked
def vector_field_eqprop(
    system: System,
    cost: Cost,
    free: Solver | None = None,
    nudged: Solver | None = None,
    *,
    beta: Positive = 0.1,
    nudging: Sides = "centered",
    kolen_pollack: bool = False,
    homeostasis: NonNegative = 0.0,
    network: Layer | None = None,
    evaluation: Solver | None = None,
    start: Start = "own",
    relaxation: Relaxation = "same",
) -> LearningRule:
    """Vector-field EP: the response to a nudge, contracted with the force's own pull-back.

    With f the force, s⁰ its free equilibrium and s^β the nudged one,

        one-sided     −(1/β)  (∂f/∂θ)ᵀ (s^β − s⁰)       bias of order β
        centered      −(1/2β) (∂f/∂θ)ᵀ (s^β − s^−β)     bias of order β²

    with ∂f/∂θ at s⁰. Weights that only the readout has get the mean ∂C/∂θ of the nudged states. The
    response is β J⁻¹ ∂C/∂s with J = ∂f/∂s; the exact gradient has J⁻ᵀ in its place. So the rule
    tends to the gradient if J is symmetric, as it is with an energy. On an untied or otherwise
    non-reciprocal system it *runs but is biased*: no small β removes this error. Three settings or
    rules remove it:

        kolen_pollack   gives the forward weight W and the feedback weight B of a connection the
                        same update: the sum of both gradients, as in the tied system. Then only
                          decoupled
                        weight decay changes W − B. It shrinks W − B by 1 − ηλ in each step, so the
                        weights align. Coupled decay (an L2 term in the gradient) does the same with
                        SGD, but not with Adam. Before W and B align, the sum is no gradient of the
                        untied system; fidelity shows it. Without decay they never align. So a
                        config's optimizer must have a weight_decay > 0, unless homeostasis shrinks
                        W − B. An optimizer of your own is not checked.
        homeostasis     adds the gradient of ½‖J − Jᵀ‖² = ‖J‖² − Tr J², per example, at constant s⁰.
                        Its estimate is ½‖(J − Jᵀ)v‖² with one random sign vector v per example,
                        which is unbiased. Its gradient is autodiff through the force.
        asymmetric_eqprop   another rule; it is exact without symmetry.

    Args:
      system: any system.
      cost: compares the readout with y; it nudges each example.
      free: solver of the free phase; None settles to a residual of 1e-6 within 1,000 sweeps.
      nudged: solver of the nudged phases, which start at s⁰; None: as for `free`.
      beta: β > 0; traced: a new value compiles nothing. In float32 round-off grows as 1/β.
      nudging: "one-sided" or "centered", as above.
      kolen_pollack: see above. Params must end in an entry {"feedback": tree}. The tree is a dict
        by the names of the connections, as in `hopfield(..., feedback="untied")`, or a tuple that
        mirrors the entries before it, with empty parts for weights without feedback.
      homeostasis: weight of that loss, >= 0; traced if it is > 0.
      network: the network whose blocks name the connections; only kolen_pollack with a dict needs
        it.
      evaluation: solver of the free phases of inference, that is of `apply`; None: that of `free`.
      start: where an estimate's free phase starts: "own", "zeros" and "feedforward" as in
        `starting_at`, "carried" and "kept" as in `remembering`.
      relaxation: the floating type of sweeps, as in `in_short_floats`; "same": that of params.

    Returns:
      A LearningRule with the state {"beta": β}, and "homeostasis" if it is > 0. The estimate's info
      has the SolveInfos `free` `[batch]` and `nudged` `[phases, batch]`. With homeostasis > 0 it
      also has `homeostasis`, the batch mean of that loss without its weight.

    Raises:
      ValueError: a setting is out of range; the system does not have this `start`. From the rule's
        `init` with kolen_pollack: params have no feedback entry, a named one without a network, or
        one that fits no forward weights.

    Example (a unit that drives the next one, which does not answer):
      >>> import jax, jax.numpy as jnp
      >>> from bpeq.costs import squared_error
      >>> from bpeq.systems import from_field
      >>> from bpeq.types import Batch
      >>> system = from_field(
      ...     field=lambda p, s, x: -s + jnp.stack([p["w"] * x[0], p["v"] * s[0]]),
      ...     init_state=lambda p, x: jnp.zeros(2), readout=lambda p, s: s[1:],
      ...     init=lambda key, shape: ({"w": jnp.array(1.0), "v": jnp.array(2.0)}, (1,)))
      >>> rule = vector_field_eqprop(system, squared_error(), beta=0.01)
      >>> params, state = rule.init(jax.random.key(1), system.init(jax.random.key(0), (1,))[0])
      >>> batch = Batch(jnp.ones((1, 1)), jnp.ones((1, 1)))
      >>> grads = rule.estimate(params, batch, state, jax.random.key(2))[0].grads
      >>> round(float(grads["v"]), 3), round(float(grads["w"]), 3)  # exact: 1 and 2
      (1.0, 0.0)

    Source: Scellier, Goyal, Binas, Mesnard & Bengio 2018, Generalization of equilibrium propagation
    to vector field dynamics. Kolen & Pollack 1994, Backpropagation without weight transport; Akrout
    et al. 2019, Deep learning without weight transport. Laborieux & Zenke 2024, Improving
    equilibrium propagation without weight symmetry through Jacobian homeostasis.
    """
    system = prepared(system, "vector_field_eqprop", start, relaxation)
    respond = response_gradient(system, cost, nudged, nudging)

    def init(key: Key, params: Params) -> tuple[Params, State]:
        if kolen_pollack:
            symmetrise_feedback_gradients(params, network)  # raises if params do not fit
        settings = {"beta": beta, **({"homeostasis": homeostasis} if homeostasis else {})}
        return params, traced_settings("vector_field_eqprop", params, "beta", **settings)

    def gradient(params: Params, batch: Batch, rest: Free, state: State, key: Key) -> Measured:
        grads, record, state = respond(params, batch, rest, state, key)
        if kolen_pollack:
            grads = symmetrise_feedback_gradients(grads, network)
        if homeostasis:  # after Kolen–Pollack, which would cancel its opposite gradients of W and B
            v, measure = _signs(key, rest.state), jax.value_and_grad(asymmetry_loss, argnums=1)
            loss, pull = measure(system, params, batch.x, rest.state, v)
            grads = trees.add(grads, trees.scale(state["homeostasis"], pull))
            record["homeostasis"] = loss
        return grads, record, state

    note = f"follows {other}" if (other := follows(system, cost)) and not system.energy else ""
    about = RuleInfo(
        objective=followed(system, cost),
        note=note,
        needs_decay=kolen_pollack and not homeostasis,
        beta="beta",
        pushes_away=nudging == "centered",
    )
    return relaxing_rule(
        "vector_field_eqprop", system, cost, free, gradient, init, about, start, evaluation
    )


def response_gradient(
    system: System,
    cost: Cost,
    nudged: Solver | None,
    nudging: Sides,
    nudged_system: Callable[[System, Params, Free], System] = lambda system, params, rest: system,
) -> Gradient:
    """The gradient of a rule: the batch mean of −Σ_n w_n (∂f/∂θ)ᵀ(s_n − s⁰), and the readout's own.

    It is EP's `contrast` with the parameter gradient of the energy linearised at the free state.

    Args:
      system: any system.
      cost: C.
      nudged: settles the nudged phases; None settles to a residual of 1e-6 within 1,000 sweeps.
      nudging: "one-sided" or "centered".
      nudged_system: (system, params, free phase) -> the system of the nudged phases.

    Returns:
      A Gradient for `relaxing_rule`. It reads "beta" in the rule's state, and records the SolveInfo
      `nudged`.
    """
    solver = fixed_point() if nudged is None else nudged

    def gradient(params: Params, batch: Batch, rest: Free, state: State, key: Key) -> Measured:
        model, beta = nudged_system(system, params, rest), state["beta"]
        signs = jnp.asarray([1.0, -1.0] if nudging == "centered" else [1.0], beta.dtype)
        betas = signs * beta
        phases, info = nudged_phases(model, cost, solver, params, rest, batch.y, betas)

        def linearised(params: Params, clamped: Any, states: State, weights: Array) -> Any:
            # The weights need not sum to zero: s⁰ is subtracted from every phase.
            moved = jax.tree.map(
                lambda s, s0: jnp.tensordot(weights, s - s0, axes=1), states, rest.state
            )
            dparams, _ = model.dforce(params, clamped, rest.state, moved)
            return trees.scale(-1.0, dparams), None

        weights = signs / (len(signs) * beta * rest.output.shape[0])
        twin = model._replace(denergy=linearised)
        grads = contrast(twin, cost, params, rest.clamped, batch.y, phases, betas, weights)
        return grads, {"nudged": info}, state

    return gradient


def skew(system: System, params: Params, clamped: Any, state: State) -> Callable[[State], State]:
    """The product v ↦ (Jᵀ − J) v, with J the Jacobian of the force at `state`.

    A force such as drive − σ⁻¹(s) has an infinite slope at a saturated unit. This slope is on the
    diagonal, where Jᵀ − J is zero. Such a unit does not respond to a push. It gets 0, not ∞ − ∞.

    Args:
      system: any system.
      params: its parameters.
      clamped: what `clamp` gives for the batch.
      state: `[batch, ...]` arrays.

    Returns:
      The product, a function from state to state.
    """

    def force(state: State) -> State:
        return system.force(params, clamped, state)

    _, forward = jax.linearize(force, state)
    _, back = jax.vjp(force, state)
    responds = jax.tree.map(jnp.isfinite, forward(jax.tree.map(jnp.ones_like, state)))

    def product(v: State) -> State:
        gap = trees.sub(back(v)[0], forward(v))
        return jax.tree.map(lambda r, g: jnp.where(r, g, jnp.zeros_like(g)), responds, gap)

    return product


def asymmetry_loss(
    system: System, params: Params, x: Array, state: State, v: State
) -> Float[Array, ""]:
    """The batch mean of ½‖(J − Jᵀ)v‖², with J the Jacobian of the force at `state`.

    Its mean over random signs v is ½‖J − Jᵀ‖² = ‖J‖² − Tr J². Laborieux & Zenke 2024 estimate the
    same by vᵀJᵀJv − vᵀJJv. That is this loss plus a term whose mean over v is 0.

    Args:
      system: any system.
      params: its parameters.
      x: `[batch, ...]`.
      state: `[batch, ...]` arrays.
      v: signs, in the shape of state.

    Returns:
      A scalar.
    """
    twisted = skew(system, params, system.clamp(params, x), state)(v)
    return 0.5 * trees.dot(twisted, twisted) / jax.tree.leaves(state)[0].shape[0]


def _signs(key: Key, like: State) -> State:
    """Random signs in the shape of `like`, the same for any number of devices."""
    leaves, structure = jax.tree.flatten(like)
    keys = jax.tree.unflatten(structure, list(jax.random.split(key, len(leaves))))

    def one(key: Key, s: Array) -> Array:
        return sharding.drawn(partial(jax.random.rademacher, key, dtype=s.dtype), s.shape)

    return jax.tree.map(one, keys, like)
