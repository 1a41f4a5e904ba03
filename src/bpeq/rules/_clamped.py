"""Clamping the output: the phase that contrastive Hebbian and coupled learning set beside s⁰."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bpeq.rules._phases import Free
from bpeq.solvers import fixed_point
from bpeq.types import Params, SolveInfo, Solver, State, System

CERTIFIED = fixed_point(1e-12, 20_000)
"""Settles what an exact gradient stands on."""


def refuse_unclampable(rule: str, system: System) -> None:
    """Systems without an energy, and those whose output is no state.

    Raises:
      ValueError: it names the rule, the system and the rules that serve.
    """
    if system.energy is None or system.denergy is None:
        raise ValueError(
            f"{rule}: the system {system.name!r} has no energy; rules that serve: "
            "vector_field_eqprop, asymmetric_eqprop, recurrent_backprop, bptt"
        )
    if system.write is None:
        raise ValueError(
            f"{rule}: the system {system.name!r} cannot clamp its output, which is no state of "
            "it; rules that serve: eqprop, continual_eqprop, vector_field_eqprop, "
            "asymmetric_eqprop, recurrent_backprop, bptt"
        )


def clamped_phases(
    system: System, solver: Solver, params: Params, free: Free, outputs: Array
) -> tuple[State, SolveInfo]:
    """The equilibria with the output held at each of `outputs` `[phases, batch, ...]`, from s⁰.

    Phases on axis 0 of the states and of the info. An imperfect device may have another clamped
    part for each phase.
    """
    assert system.write is not None
    write, other = system.write, system.traits.device and system.traits.device.nudged

    def settle(output: Array, n: Array) -> tuple[State, SolveInfo]:
        clamped = free.clamped if other is None else other(free.clamped, n)
        return solver(
            lambda s: system.sweep(params, clamped, s, hold=True), write(free.state, output)
        )

    return jax.vmap(settle)(outputs, jnp.arange(len(outputs)))


def and_free(phases: State, free: Free) -> State:
    """The phases with s⁰ behind them, on axis 0."""
    return jax.tree.map(lambda s, s0: jnp.concatenate([s, s0[None]]), phases, free.state)
