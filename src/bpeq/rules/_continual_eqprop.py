"""Continual EP: the weights move while the nudged phase runs."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bpeq.core import sharding, trees
from bpeq.rules._common import traced_settings
from bpeq.rules._phases import Free, clamp, contrast, nudged_phases, with_state
from bpeq.rules._references import followed, refuse_without_energy
from bpeq.rules._relaxing import Measured, Relaxation, Start, prepared, relaxing_rule
from bpeq.settings import Count, NonNegative, Positive, checked
from bpeq.solvers import fixed_steps
from bpeq.types import (
    Batch,
    Caution,
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
def continual_eqprop(
    system: System,
    cost: Cost,
    free: Solver | None = None,
    *,
    beta: Positive = 0.1,
    sweeps: Count = 20,
    rate: Positive = 1e-4,
    tolerance: NonNegative = 1e-4,
    evaluation: Solver | None = None,
    start: Start = "own",
    relaxation: Relaxation = "same",
) -> LearningRule:
    """Continual EP: local in time, since each nudged sweep moves the weights by its own part.

    From the free equilibrium s_0 and with F = E + βC, for t = 0, 1, ..., sweeps − 1:

        s_{t+1} = nudged sweep of s_t under θ_t
        θ_{t+1} = θ_t − rate (1/β) ( ∂F/∂θ(s_{t+1}) − ∂F/∂θ(s_t) ),   batch means, both under θ_t

        grads = (θ_0 − θ_end) / rate

    s_0 belongs to the free phase: its term is ∂E/∂θ alone. Plain SGD with a learning rate equal to
    `rate` gives exactly the weights at the end of the nudged phase. Other optimizers would rescale
    a change that has already happened. So the rule allows "sgd" only. As rate → 0 the sum
    telescopes to one-sided `eqprop` with as many nudged sweeps. The difference is of order
    rate / β, not rate: moving weights shift the equilibrium by order rate, and the nudge shifts it
    only by order β. On small nets the relative error is 10 to 20 times rate / β.

    **Stability.** Take one example, linear outputs with a bias, squared error, and constant units h
    that drive the outputs. The next sweep repeats a change of an output with the factor
    rate K/β − β, K = 1 + |h|². So the estimate is EP's times (1 + β)/(1 + β − rate K/β), and the
    phase diverges from rate K = β (1 + β) on. At rate = β/2 this error is half of the estimate or
    more, for β → 0. The limit of rate depends on K, so a rate of β/2 or more gives a warning and no
    error. Bounded units stop at their bounds. No loss shows this divergence; training just fails.

    Args:
      system: a System with an energy.
      cost: compares the readout with y; it nudges each example.
      free: solver of s_0; None settles to a residual of 1e-6 within 1,000 sweeps.
      beta: β > 0, in units of energy per cost; traced. In float32 round-off grows as 1/β.
      sweeps: number of sweeps of the nudged phase, >= 1.
      rate: learning rate inside the phase, > 0, in units of θ² per cost; traced. For a gradient it
        must be far below β / 10. For the weights at the end of the phase it must equal the
        optimizer's learning rate.
      tolerance: residual that counts as settled in the record, in units of the state, >= 0.
      evaluation: solver of the free phases of inference, that is of `apply`; None: that of `free`.
      start: where an estimate's free phase starts: "own", "zeros" and "feedforward" as in
        `starting_at`, "carried" and "kept" as in `remembering`.
      relaxation: the floating type of sweeps, as in `in_short_floats`; "same": that of params.

    Returns:
      A LearningRule with the state {"beta": β, "rate": rate}. The estimate's info has the
        SolveInfos
      `free` `[batch]` and `nudged` `[1, batch]`, the latter with the residual of the last sweep.

    Raises:
      ValueError: a setting is out of range; the system has no energy, or does not have this
        `start`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from bpeq.costs import squared_error
      >>> from bpeq.layers import chain, dense, tanh
      >>> from bpeq.systems import hopfield
      >>> from bpeq.types import Batch
      >>> system = hopfield(chain(dense(4), tanh(), dense(1)))
      >>> rule = continual_eqprop(system, squared_error(), beta=0.05, sweeps=30)
      >>> params, state = rule.init(jax.random.key(1), system.init(jax.random.key(0), (2,))[0])
      >>> batch = Batch(jnp.ones((1, 2)), jnp.ones((1, 1)))
      >>> estimate, _ = rule.estimate(params, batch, state, jax.random.key(2))
      >>> bool(estimate.info["nudged"].converged.all()), rule.info.optimizers
      (True, ('sgd',))

    Source: Ernoult, Grollier, Querlioz, Bengio & Scellier 2020, Equilibrium propagation with
    continual weight updates.
    """
    system = prepared(system, "continual_eqprop", start, relaxation)
    refuse_without_energy("continual_eqprop", system)
    once = fixed_steps(1, tolerance=tolerance)

    def init(key: Key, params: Params) -> tuple[Params, State]:
        state = traced_settings("continual_eqprop", params, "beta", beta=beta, rate=rate)
        if rate >= beta / 2:
            message = f"continual_eqprop: rate = {rate:g} is beta / 2 = {beta / 2:g} or more: "
            message += "the weights outrun the nudge; the estimate is mostly that error"
            warnings.warn(message, Caution, stacklevel=2)
        return params, state

    def gradient(params: Params, batch: Batch, rest: Free, state: State, key: Key) -> Measured:
        b, examples = state["beta"], rest.output.shape[0]
        weights = jnp.stack([1.0 / b, -1.0 / b]) / examples

        # The loop carries the sum of the parts: θ_0 − θ_t would lose its digits at a small rate.
        def one(
            carry: tuple[State, Params], at: tuple[Array, Array]
        ) -> tuple[tuple[State, Params], Any]:
            (s, total), (before, t) = carry, at
            moved = trees.sub(params, trees.scale(state["rate"], total))
            noise = jax.random.fold_in(key, t)
            now = rest._replace(clamped=clamp(system, moved, batch.x, noise), state=s)
            swept, info = nudged_phases(system, cost, once, moved, now, batch.y, b[None])
            betas, phases = jnp.stack([b, before]), with_state(swept, s)
            part = contrast(system, cost, moved, now.clamped, batch.y, phases, betas, weights)
            s = jax.tree.map(lambda after: after[0], swept)
            return (s, trees.add(total, sharding.mean(part))), info

        # β of the state before each sweep: s_0 belongs to the free phase.
        befores = jnp.full((sweeps,), b).at[0].set(0.0)
        # One scan: the nudged sweeps, each with its update of the weights.
        start = (rest.state, trees.zeros(params))
        (_, grads), infos = jax.lax.scan(one, start, (befores, jnp.arange(sweeps)))
        last = jax.tree.map(lambda record: record[-1], infos)
        info = last._replace(steps=jnp.full_like(last.steps, sweeps))
        return grads, {"nudged": info}, state

    about = RuleInfo(
        objective=followed(system, cost),
        optimizers=("sgd",),
        beta="beta",
        sweep_settings=lambda n: {"sweeps": n},
    )
    return relaxing_rule(
        "continual_eqprop", system, cost, free, gradient, init, about, start, evaluation
    )
