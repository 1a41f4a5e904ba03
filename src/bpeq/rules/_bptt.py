"""Backpropagation through time: reverse mode through the sweeps of a free phase."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bpeq.rules._means import mean_loss
from bpeq.rules._recurrent_backprop import exact_reference
from bpeq.rules._relaxing import relaxing
from bpeq.settings import Count, NonNegative, checked
from bpeq.solvers import fixed_steps
from bpeq.types import (
    Batch,
    Cost,
    Estimate,
    Key,
    LearningRule,
    Params,
    RuleInfo,
    SolveInfo,
    State,
    System,
)


@checked
@relaxing
def bptt(
    system: System,
    cost: Cost,
    *,
    sweeps: Count = 30,
    truncate: Count | None = None,
    tolerance: NonNegative = 1e-4,
) -> LearningRule:
    """Backpropagation through time: the gradient of the cost after a fixed number of sweeps.

        s_{t+1} = T(s_t, θ),  t = 0 ... sweeps − 1        grads = dC(s_sweeps)/dθ by autodiff

    It needs no energy and no symmetry. Truncated to the last K sweeps, s_{sweeps−K} is a constant;
    at an equilibrium that is the Neumann series of `recurrent_backprop` cut after K terms. Once the
    free phase has settled, the gradient is the one of implicit differentiation, which is also the
    rule's reference: a phase cut short shows there as an error. Memory grows with the sweeps that
    are differentiated.

    Args:
      system: any. cost: compares its readout with y.
      sweeps: of the free phase, >= 1.
      truncate: K, the last sweeps through which errors pass, 1 <= K <= sweeps; None is all.
      tolerance: what counts as settled in the record, in units of the state, >= 0.

    Raises:
      ValueError: a setting out of range.

    The estimate's info has the SolveInfo `free`, `[batch]`, with the residual of the last sweep.

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
        raise ValueError(f"bptt: truncate = {truncate}: must be <= sweeps = {sweeps}")
    first = sweeps - last

    def settle(params: Params, x: Any) -> tuple[Array, SolveInfo]:
        """The output after all sweeps; derivatives pass through the last ones only."""
        clamped = system.clamp(params, x)

        def sweep(state: State) -> State:
            return system.sweep(params, clamped, state)

        state = system.init_state(params, clamped)
        if first:
            state = jax.lax.stop_gradient(fixed_steps(first)(sweep, state)[0])
        state, info = fixed_steps(last, tolerance=tolerance)(sweep, state)
        return system.readout.forward(params, state)[0], jax.lax.stop_gradient(info)

    def init(key: Key, params: Params) -> tuple[Params, State]:
        return params, ()

    def apply(params: Params, x: Any, key: Key | None = None) -> Array:
        return settle(params, x)[0]

    def estimate(params: Params, batch: Batch, state: State, key: Key) -> tuple[Estimate, State]:
        def loss(params: Params) -> tuple[Array, Any]:
            output, info = settle(params, batch.x)
            return mean_loss(cost, output, batch.y), (output, info)

        (value, (output, info)), grads = jax.value_and_grad(loss, has_aux=True)(params)
        info = info._replace(steps=jnp.full_like(info.steps, sweeps))
        return Estimate(grads, value, output, {"free": info}), state

    def sweep_settings(n: int) -> dict[str, int]:
        return {"sweeps": n, **({} if truncate is None else {"truncate": min(truncate, n)})}

    about = RuleInfo(exact_reference(system, cost), sweep_settings=sweep_settings)
    return LearningRule("bptt", init, apply, estimate, info=about)
