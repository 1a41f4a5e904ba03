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
from bpeq.rules._relaxing import Relaxation, Start, prepared, relaxing_rule
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
    """Continual EP: local in time, since every nudged sweep moves the weights by its own part.

    From the free equilibrium s_0 and with F = E + βC, for t = 0, 1, ..., sweeps − 1:

        s_{t+1} = nudged sweep of s_t under θ_t
        θ_{t+1} = θ_t − rate (1/β) ( ∂F/∂θ(s_{t+1}) − ∂F/∂θ(s_t) ),   batch means, both under θ_t

    where s_0 still belongs to the free phase: its term is ∂E/∂θ alone. The estimate is
    grads = (θ_0 − θ_end) / rate, so plain SGD at a learning rate equal to `rate` ends at the very
    weights that the nudged phase ended with; other optimizers would rescale what has physically
    happened, which is why the rule names "sgd" as its only one. As rate → 0 the sum telescopes
    to one-sided `eqprop` with as many nudged sweeps. It differs from that by order rate / β, not
    rate: moving weights shift the equilibrium by order rate, and the nudge only by order β. On
    small nets that is a relative error of 10 to 20 rate / β.

    For one example, linear outputs with a bias and squared error, driven by units h that stand
    still: what a sweep changes in an output, the next one changes again by rate K/β − β times as
    much, K = 1 + |h|². So the estimate is EP's times (1 + β)/(1 + β − rate K/β), and from
    rate K = β (1 + β) on the phase runs away. At rate = β/2 half of it or more is that error, for
    β → 0. How far beyond is too far depends on K; so a rate of β/2 or more earns a warning and is
    no error. Bounded units stop a runaway at their bounds: no loss shows it, training just fails.

    Args:
      system: it must have an energy.
      cost: compares the readout with y; it nudges per example.
      free: solver of s_0; None settles to a residual of 1e-6 within 1,000 sweeps.
      beta: β > 0, in units of energy per cost; traced. In float32 round-off grows as 1/β.
      sweeps: of the nudged phase, >= 1.
      rate: learning rate inside the phase, > 0, in units of θ² per cost; traced. Far below β / 10
        for a gradient; equal to the optimizer's for the weights that the phase itself ends with.
      tolerance: what counts as settled in the record, in units of the state, >= 0.
      evaluation: solver of the free phases of inference, that is of `apply`; None: that of `free`.
      start: where an estimate's free phase starts: "own", "zeros" and "feedforward" as
        `starting_at` has them, "carried" and "kept" as `remembering` has them.
      relaxation: the floating type of sweeps, as `in_short_floats` has it; "same": that of params.

    Raises:
      ValueError: a setting out of range, or a system without an energy.

    The estimate's info has the SolveInfos `free` `[batch]` and `nudged` `[1, batch]`; the latter's
    residual is that of the last sweep.

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
            said = "the weights outrun the nudge; the estimate is mostly that error"
            warnings.warn(
                f"continual_eqprop: rate = {rate:g} is beta / 2 = {beta / 2:g} or more: {said}",
                Caution,
                stacklevel=2,
            )
        return params, state

    def gradient(
        params: Params, batch: Batch, rest: Free, state: State, key: Key
    ) -> tuple[Params, dict[str, Any], State]:
        b, examples = state["beta"], rest.output.shape[0]
        weights = jnp.stack([1.0 / b, -1.0 / b]) / examples

        # The sum of the parts is carried, not θ_t: θ_0 − θ_t would lose its digits at a small rate.
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
    name = "continual_eqprop"
    return relaxing_rule(
        name,
        system,
        cost,
        free,
        gradient,
        init=init,
        info=about,
        start=start,
        evaluation=evaluation,
    )
