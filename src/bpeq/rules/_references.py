"""References for rules on a system: exact gradients of the ideal system, settled to float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bpeq.core import trees
from bpeq.rules._common import mean_loss, no_state
from bpeq.rules._phases import Free, free_phase, inference, nudge
from bpeq.solvers import fixed_point
from bpeq.types import Batch, Cost, Estimate, Key, LearningRule, Params, SolveInfo, State, System

CERTIFIED = fixed_point(1e-12, 20_000)
"""The solver of exact gradients: residual 1e-12, at most 20,000 sweeps."""
Gradient = tuple[Params, Array, dict[str, Any]]
"""(gradient, loss, records for an estimate's info)."""


def exact_rule(
    name: str, system: System, gradient: Callable[[Params, Batch, Free], Gradient]
) -> LearningRule:
    """A rule that settles the system to the limit of float64 and takes a gradient there.

    Args:
      name: the rule's name.
      system: the system to settle, without imperfections.
      gradient: (params, batch, free phase) -> (gradient, loss, records for the info).

    Returns:
      A LearningRule without a state.
    """

    def estimate(params: Params, batch: Batch, state: State, key: Key) -> tuple[Estimate, State]:
        rest = free_phase(system, CERTIFIED, params, batch.x)
        grads, loss, record = gradient(params, batch, rest)
        return Estimate(grads, loss, rest.output, {"free": rest.info, **record}), state

    return LearningRule(name, no_state, inference(system, CERTIFIED), estimate)


class Adjoint(NamedTuple):
    """The linear equation λ = error + pull(λ).

    params, x, state: the point where the sweep is linearised.
    error: ∂C/∂s there, in the shape of the state.
    pull: λ -> (∂T/∂s)ᵀ λ, with T the sweep.
    """

    params: Params
    x: Array
    state: State
    error: State
    pull: Callable[[State], State]


def adjoint_equation(
    system: System, params: Params, x: Array, state: State, error: State
) -> Adjoint:
    """The equation of λ at an equilibrium.

    Args:
      system: any system.
      params: its parameters.
      x: `[batch, ...]`.
      state: the equilibrium, `[batch, ...]` arrays.
      error: ∂C/∂s there, per example.

    Returns:
      An Adjoint.
    """
    _, pull = jax.vjp(lambda s: system.sweep(params, system.clamp(params, x), s), state)
    return Adjoint(params, x, state, error, lambda lam: pull(lam)[0])


def implicit_gradient(
    system: System,
    cost: Cost,
    solve: Callable[[Adjoint], tuple[State, SolveInfo]],
    params: Params,
    batch: Batch,
    rest: Free,
) -> tuple[Params, SolveInfo]:
    """Implicit differentiation of s⁰: dC/dθ = ∂C/∂θ + λᵀ ∂T/∂θ, with T the sweep.

    Args:
      system: any system.
      cost: C.
      solve: finds λ from its equation.
      params: θ.
      batch: inputs and targets.
      rest: the free phase s⁰.

    Returns:
      (gradient, a batch mean in the shape of params; SolveInfo of λ).
    """
    examples = rest.output.shape[0]

    def cost_at(params: Params, s: State) -> Array:
        return mean_loss(cost, system.readout.forward(params, s)[0], batch.y)

    direct, error = jax.grad(cost_at, argnums=(0, 1))(params, rest.state)
    # Per example: a residual of the batch mean would shrink with the batch.
    error = trees.scale(float(examples), error)
    lam, info = solve(adjoint_equation(system, params, batch.x, rest.state, error))
    _, pull = jax.vjp(lambda p: system.sweep(p, system.clamp(p, batch.x), rest.state), params)
    return trees.add(direct, trees.scale(1.0 / examples, pull(lam)[0])), info


def exact_reference(system: System, cost: Cost) -> LearningRule:
    """Implicit differentiation settled to the limit of float64: the reference of rules on a system.

    It uses the ideal system. So the error of a rule on an imperfect device includes the effect of
    the imperfections.

    Args:
      system: any system.
      cost: C.

    Returns:
      A LearningRule without a state.
    """
    ideal = system.ideal

    def solve(adjoint: Adjoint) -> tuple[State, SolveInfo]:
        return CERTIFIED(lambda lam: trees.add(adjoint.error, adjoint.pull(lam)), adjoint.error)

    def gradient(params: Params, batch: Batch, rest: Free) -> Gradient:
        grads, info = implicit_gradient(ideal, cost, solve, params, batch, rest)
        return grads, mean_loss(cost, rest.output, batch.y), {"adjoint": info}

    return exact_rule("recurrent_backprop", ideal, gradient)


_KNOWN = {
    "sigmoid": "the binary cross-entropy",
    "shifted_sigmoid": "a quarter of the binary cross-entropy",
}


def followed(system: System, cost: Cost) -> LearningRule | None:
    """The objective of a rule with nudged phases on a system that is nudged outside of its σ.

    There s ← σ(drive) + p. To first order this is σ(drive + p / σ′): a push of (1/σ′) ∂C/∂s, but C
    asks for ∂C/∂s. For squared error the slope is s − y. The push is then the slope of
    A(y) − A(s) − (y − s) A′(s), since A″(s) = 1/σ′. This is the binary cross-entropy for a logistic
    σ and a quarter of it for σ(4s − 2). In general the push is no cost's slope, and the gradient is
    only the limit of EP's estimate as β → 0. In both cases it is

        −(∂force/∂θ)ᵀ r + ∂C/∂θ      r = (∂T/∂s) r + ∂T/∂β  at s⁰ and β = 0, T the nudged sweep

    of the ideal system, settled to the limit of float64.

    Args:
      system: any system.
      cost: C.

    Returns:
      A LearningRule. None if the rule follows the cost itself: the nudge is inside σ, or σ′ = 1.
      None too if there is no energy, since the response is then no gradient; `follows` describes
      it.
    """
    name = follows(system, cost)
    if not name or system.energy is None:
        return None
    ideal = system.ideal

    def gradient(params: Params, batch: Batch, rest: Free) -> Gradient:
        zero, one = jnp.zeros((), rest.output.dtype), jnp.ones((), rest.output.dtype)

        def swept(s: State, beta: Array) -> State:
            return ideal.sweep(params, rest.clamped, s, nudge(ideal, cost, params, batch.y, beta))

        def respond(r: State) -> State:
            return jax.jvp(swept, (rest.state, zero), (r, one))[1]

        def loss(params: Params) -> Array:
            output = ideal.readout.forward(params, rest.state)[0]
            return mean_loss(cost, output, batch.y)

        response, info = CERTIFIED(respond, trees.zeros(rest.state))
        value, direct = jax.value_and_grad(loss)(params)
        pulled, _ = ideal.dforce(params, rest.clamped, rest.state, response)
        grads = trees.add(direct, trees.scale(-1.0 / len(rest.output), pulled))
        return grads, value, {"response": info}

    return exact_rule(name, ideal, gradient)


def follows(system: System, cost: Cost) -> str:
    """The objective that a nudged phase follows instead of C, in words; empty if it is C.

    Args:
      system: any system.
      cost: C.

    Returns:
      A phrase.

    Example:
      >>> from bpeq.costs import squared_error
      >>> from bpeq.layers import chain, dense, shifted_sigmoid
      >>> from bpeq.systems import hopfield
      >>> system = hopfield(chain(dense(2), shifted_sigmoid()), nudge="outside")
      >>> follows(system, squared_error())
      'a quarter of the binary cross-entropy (to first order: the nudge is outside σ)'
    """
    sigma = system.traits.nudge_outside
    if sigma in ("", "linear"):
        return ""
    known = cost.name == "squared_error" and system.write is not None
    slope = _KNOWN.get(sigma, "") if known else ""
    return f"{slope or 'the slope (1/σ′) ∂C/∂s'} (to first order: the nudge is outside σ)"


def refuse_without_energy(owner: str, system: System) -> None:
    """Refuse a system without an energy.

    Args:
      owner: the rule's name, for the message.
      system: the system.

    Raises:
      ValueError: it names the rule, the system and the rules that work.
    """
    if system.energy is None or system.denergy is None:
        raise ValueError(
            f"{owner}: the system {system.name!r} has no energy; rules that serve: "
            "vector_field_eqprop, asymmetric_eqprop, recurrent_backprop, bptt"
        )


def refuse_unclampable(owner: str, system: System) -> None:
    """Refuse a system without an energy, or with an output that is no state.

    Args:
      owner: the rule's name, for the message.
      system: the system.

    Raises:
      ValueError: it names the rule, the system and the rules that work.
    """
    refuse_without_energy(owner, system)
    if system.write is None:
        raise ValueError(
            f"{owner}: the system {system.name!r} cannot clamp its output, which is no state of "
            "it; rules that serve: eqprop, continual_eqprop, vector_field_eqprop, "
            "asymmetric_eqprop, recurrent_backprop, bptt"
        )


def refuse_outside(owner: str, system: System) -> None:
    """Refuse a system that is nudged outside of its σ, for rules whose push must enter the force.

    Args:
      owner: the rule's name, for the message.
      system: the system.

    Raises:
      ValueError: it names the rule, the system and the rules that work.
    """
    if system.traits.nudge_outside:
        raise ValueError(
            f"{owner}: the system {system.name!r} is nudged outside of its σ, where the push that "
            "transposes the Jacobian does not; allowed: nudge = 'inside', or the rules eqprop, "
            "continual_eqprop, vector_field_eqprop, recurrent_backprop, bptt"
        )
