"""Backpropagation through time: reverse mode through the sweeps of a free phase."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bpeq.rules._common import mean_loss, no_state
from bpeq.rules._phases import clamp, free_sweep, noise_key
from bpeq.rules._references import exact_reference
from bpeq.rules._relaxing import Relaxation, Start, finished, prepared
from bpeq.settings import Count, NonNegative, SettingError, checked
from bpeq.solvers import Sweep, fixed_steps
from bpeq.types import (
    Batch,
    Cost,
    Estimate,
    Key,
    LearningRule,
    Params,
    RuleInfo,
    SolveInfo,
    Solver,
    State,
    System,
)


@checked
def bptt(
    system: System,
    cost: Cost,
    *,
    sweeps: Count = 30,
    truncate: Count | None = None,
    tolerance: NonNegative = 1e-4,
    evaluation: Solver | None = None,
    start: Start = "own",
    relaxation: Relaxation = "same",
) -> LearningRule:
    """Backpropagation through time: the gradient of the cost after a fixed number of sweeps.

        s_{t+1} = T(s_t, θ),  t = 0 ... sweeps − 1        grads = dC(s_sweeps)/dθ by autodiff

    It needs no energy and no symmetry. With truncation to the last K sweeps, s_{sweeps−K} is a
    constant. At an equilibrium this is the Neumann series of `recurrent_backprop`, cut after K
    terms. If the free phase has settled, the full gradient is that of implicit differentiation.
    That is the rule's reference, so a phase that stops early shows as an error. Memory grows with
    the number of differentiated sweeps.

    Args:
      system: any system.
      cost: compares the system's readout with y.
      sweeps: number of sweeps of the free phase, >= 1.
      truncate: K, the number of last sweeps that errors pass through, 1 <= K <= sweeps; None: all.
      tolerance: residual that counts as settled in the record, in units of the state, >= 0.
      evaluation: solver of the free phases of inference, that is of `apply`; None: `sweeps` sweeps.
      start: where an estimate's free phase starts: "own", "zeros" and "feedforward" as in
        `starting_at`. "carried" and "kept" are not possible.
      relaxation: the floating type of sweeps, as in `in_short_floats`; "same": that of params.

    Returns:
      A LearningRule without a state. The estimate's info has the SolveInfo `free` `[batch]`, with
      the residual of the last sweep.

    Raises:
      ValueError: a setting is out of range; the system or the rule does not have this `start`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from bpeq.costs import squared_error
      >>> from bpeq.layers import chain, dense, tanh
      >>> from bpeq.systems import hopfield
      >>> from bpeq.types import Batch
      >>> system = hopfield(chain(dense(4), tanh(), dense(1)))
      >>> rule = bptt(system, squared_error(), sweeps=40, truncate=20)
      >>> params, state = rule.init(jax.random.key(1), system.init(jax.random.key(0), (2,))[0])
      >>> batch = Batch(jnp.ones((1, 2)), jnp.ones((1, 1)))
      >>> estimate, _ = rule.estimate(params, batch, state, jax.random.key(2))
      >>> bool(estimate.info["free"].converged.all())
      True

    Source: Werbos 1990, Backpropagation through time: what it does and how to do it; on settling
    networks, Ernoult et al. 2019, Updates of equilibrium prop match gradients of BPTT.
    """
    last = sweeps if truncate is None else truncate
    if last > sweeps:
        raise SettingError("bptt", "truncate", truncate, f"must be <= sweeps = {sweeps}")
    first = sweeps - last
    system = prepared(system, "bptt", start, relaxation, has_free=False)

    def settle(params: Params, x: Any, key: Key | None) -> tuple[Array, SolveInfo]:
        """The output after all sweeps; derivatives pass through the last ones only."""
        clamped = clamp(system, params, x, noise_key(key))
        step = free_sweep(system, params, clamped)

        def late(state: State, n: Array | int) -> State:
            return step.numbered(state, n + first)

        state = system.init_state(params, clamped)
        if first:
            early = Sweep(step.numbered, noisy=step.noisy)
            state = jax.lax.stop_gradient(fixed_steps(first)(early, state)[0])
        state, info = fixed_steps(last, tolerance=tolerance)(Sweep(late, noisy=step.noisy), state)
        return system.readout.forward(params, state)[0], jax.lax.stop_gradient(info)

    def apply(params: Params, x: Any, key: Key | None = None) -> Array:
        return settle(params, x, key)[0]

    def estimate(params: Params, batch: Batch, state: State, key: Key) -> tuple[Estimate, State]:
        def loss(params: Params) -> tuple[Array, Any]:
            output, info = settle(params, batch.x, key)
            return mean_loss(cost, output, batch.y), (output, info)

        (value, (output, info)), grads = jax.value_and_grad(loss, has_aux=True)(params)
        info = info._replace(steps=jnp.full_like(info.steps, sweeps))
        return Estimate(grads, value, output, {"free": info}), state

    def sweep_settings(n: int) -> dict[str, int]:
        return {"sweeps": n, **({} if truncate is None else {"truncate": min(truncate, n)})}

    about = RuleInfo(exact_reference(system, cost), sweep_settings=sweep_settings)
    rule = LearningRule("bptt", no_state, apply, estimate, info=about)
    return finished(rule, system, start, evaluation)
