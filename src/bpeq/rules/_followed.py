"""What EP follows in place of the cost where the nudge enters outside σ: its exact limit."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bpeq.core import trees
from bpeq.rules._clamped import CERTIFIED
from bpeq.rules._means import mean_loss
from bpeq.rules._phases import free_phase, nudge
from bpeq.types import Batch, Cost, Estimate, Key, LearningRule, Params, State, System

_KNOWN = {
    "sigmoid": "the binary cross-entropy",
    "shifted_sigmoid": "a quarter of the binary cross-entropy",
}


def followed(system: System, cost: Cost) -> LearningRule | None:
    """What a rule with nudged phases follows on a system that is nudged outside of its σ.

    There s ← σ(drive) + p, which to first order is σ(drive + p / σ′): a push of (1/σ′) ∂C/∂s where
    C asks for ∂C/∂s. For squared error, whose slope is s − y, that is the slope of
    A(y) − A(s) − (y − s) A′(s), since A″(s) = 1/σ′: of the binary cross-entropy for a logistic σ,
    of a quarter of it for σ(4s − 2). In general it is no cost's slope, and the gradient is just
    the limit of EP's estimate as β → 0. Either way it is

        −(∂force/∂θ)ᵀ r + ∂C/∂θ      r = (∂T/∂s) r + ∂T/∂β  at s⁰ and β = 0, T the nudged sweep

    settled as far as float64 goes, of the ideal system.

    Returns:
      None where the cost itself is followed: the nudge is inside σ, or σ′ = 1. None too without an
      energy, where the response is no gradient: `follows` says what it is.
    """
    name = follows(system, cost)
    if not name or system.energy is None:
        return None
    ideal = system.ideal

    def init(key: Key, params: Params) -> tuple[Params, State]:
        return params, ()

    def apply(params: Params, x: Any, key: Key | None = None) -> Array:
        return free_phase(ideal, CERTIFIED, params, x).output

    def estimate(params: Params, batch: Batch, state: State, key: Key) -> tuple[Estimate, State]:
        rest = free_phase(ideal, CERTIFIED, params, batch.x)
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
        pulled = ideal.dforce(params, rest.clamped, rest.state, response)
        grads = trees.add(direct, trees.scale(-1.0 / len(rest.output), pulled))
        return Estimate(grads, value, rest.output, {"free": rest.info, "response": info}), state

    return LearningRule(name, init, apply, estimate)


def follows(system: System, cost: Cost) -> str:
    """What a nudged phase follows in place of C, in words; empty where it is C.

    Example:
      >>> from bpeq.costs import squared_error
      >>> from bpeq.layers import chain, dense, shifted_sigmoid
      >>> from bpeq.systems import hopfield
      >>> system = hopfield(chain(dense(2), shifted_sigmoid()), nudge="outside")
      >>> follows(system, squared_error())
      'a quarter of the binary cross-entropy (to first order: the nudge is outside σ)'
    """
    if system.traits.nudge_outside in ("", "linear"):
        return ""
    plain = cost.name == "squared_error" and system.write is not None
    what = _KNOWN.get(system.traits.nudge_outside, "") if plain else ""
    return f"{what or 'the slope (1/σ′) ∂C/∂s'} (to first order: the nudge is outside σ)"


def refuse_outside(rule: str, system: System) -> None:
    """Systems that are nudged outside of their σ, for rules whose push must enter the force.

    Raises:
      ValueError: it names the rule, the system and the rules that serve.
    """
    if system.traits.nudge_outside:
        raise ValueError(
            f"{rule}: the system {system.name!r} is nudged outside of its σ, where the push that "
            "transposes the Jacobian does not; allowed: nudge = 'inside', or the rules eqprop, "
            "continual_eqprop, vector_field_eqprop, recurrent_backprop, bptt"
        )
