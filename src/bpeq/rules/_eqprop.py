"""Equilibrium propagation: the gradient as a contrast between free and nudged equilibria."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge
from jaxtyping import Array, Inexact

from bpeq.core import sharding, trees
from bpeq.rules._auto_beta import choose, unsettled
from bpeq.rules._circle import half_circle, turn
from bpeq.rules._floor import warn_below_floor
from bpeq.rules._followed import followed
from bpeq.rules._means import mean_loss
from bpeq.rules._phases import Free, contrast, free_phase, nudged_phases
from bpeq.rules._recurrent_backprop import exact_reference
from bpeq.rules._relaxing import relaxing
from bpeq.settings import Positive, checked
from bpeq.solvers import fixed_point
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

Nudging = Literal["one-sided", "centered", "random-sign", "holomorphic", "online"]


@checked
@relaxing
def eqprop(
    system: System,
    cost: Cost,
    free: Solver | None = None,
    nudged: Solver | None = None,
    *,
    beta: Positive | Literal["auto"] = 0.1,
    nudging: Nudging = "centered",
    points: Annotated[int, Ge(2)] = 4,
    turns: Annotated[int, Ge(2)] = 2,
) -> LearningRule:
    """Equilibrium propagation: the gradient from free and nudged equilibria of F = E + βC.

    With ∂F^β = ∂E/∂θ(s^β) + β ∂C/∂θ(s^β) the estimate is

        one-sided     (∂F^β − ∂F⁰) / β            bias of order β
        centered      (∂F^β − ∂F^−β) / 2β         bias of order β²
        random-sign   one-sided at ±β, the sign drawn per estimate: no bias of order β on average
        holomorphic   (1/N) Σ_n ∂F^{β_n} / β_n    β_n = β e^{2πin/N}, n = 0 … N−1; bias of order β^N
        online        the same sum while β_n turns and the state follows it, with no phase between

    Every weight's update is local: it reads the two units that it joins, in two phases. On a dense
    connection it is the contrastive Hebbian (1/β)(s_i^β s_j^β − s_i⁰ s_j⁰). Exact as β → 0 because
    the energy makes the force's Jacobian symmetric.

    The holomorphic sum is Cauchy's integral for ∂F at β = 0. Equilibria at conjugate β are
    conjugate, so N/2 + 1 phases serve an even N and (N + 1)/2 an odd one. It is valid while β is
    less than the distance to the nearest singularity of s^β. "online" needs no free phase: by the
    mean value property the output's mean over a turn is the free output. It starts from the
    system's own start, and its error has a part that falls as the points are set closer: the
    state's lag.

    Args:
      system: it must have an energy.
      cost: compares the readout with y; it nudges per example, before the mean over the batch.
      free, nudged: solvers of the phases; None settles to a residual of 1e-6 within 1,000 sweeps.
        Nudged phases start at s⁰. With "online" `nudged` runs once at each point: `fixed_steps(1)`
        is one sweep.
      beta: β > 0, in units of energy per cost. It is traced: a new β does not compile anew. In
        float32 round-off grows as 1/β, so the smallest β is not the best; one below the dtype's
        floor earns a warning. With linear outputs and squared error the nudge contracts by β a
        sweep, so nudged phases settle for β < 1 only.
        "auto" looks for the best β anew in each estimate, walking down by halves from four times
        the last one: the difference from one β to the next is bias at first and round-off (or the
        solver's tolerance) later. What phases lack that were cut short, no such difference shows;
        they are settled on twice to see it. It costs 9 to 16 nudged solves in place of one, as the
        last β is near the best or far from it; `info` counts the sweeps of the one that is used.
      nudging: see above.
      points: N >= 2 of "holomorphic" and of a turn of "online".
      turns: of "online", >= 2; β grows from 0 along the first, and the last one is summed.

    Raises:
      ValueError: a setting out of range, a system without an energy, one that is not holomorphic
        where β is complex, or "auto" with "online".

    The estimate's info has the SolveInfos `free` `[batch]` (not with "online") and `nudged`
    `[phases, batch]`; with "auto" also `beta` and `error_bar`, the estimated relative error of the
    whole gradient.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from bpeq.costs import squared_error
      >>> from bpeq.layers import chain, dense, tanh
      >>> from bpeq.systems import hopfield
      >>> from bpeq.types import Batch
      >>> system = hopfield(chain(dense(4), tanh(), dense(1)))
      >>> rule = eqprop(system, squared_error(), beta=0.01)
      >>> params, _ = system.init(jax.random.key(0), (2,))
      >>> params, state = rule.init(jax.random.key(1), params)
      >>> batch = Batch(jnp.ones((1, 2)), jnp.ones((1, 1)))
      >>> estimate, _ = rule.estimate(params, batch, state, jax.random.key(2))
      >>> bool(estimate.info["nudged"].converged.all())
      True

    Source: Scellier & Bengio 2017, Equilibrium propagation: bridging the gap between energy-based
    models and backpropagation; centered: Laborieux et al. 2021, Scaling equilibrium propagation to
    deep ConvNets by drastically reducing its gradient estimator bias; holomorphic and online:
    Laborieux & Zenke 2022, Holomorphic equilibrium propagation computes exact gradients through
    finite size oscillations.
    """
    _refuse(system, nudging, beta)
    settle_free = fixed_point() if free is None else free
    settle_nudged = fixed_point() if nudged is None else nudged

    def init(key: Key, params: Params) -> tuple[Params, State]:
        dtype = jnp.result_type(*jax.tree.leaves(params))
        first = 1.0 if beta == "auto" else float(beta)
        warn_below_floor("eqprop", "beta", first, dtype)
        return params, {"beta": jnp.asarray(first, dtype)}

    def apply(params: Params, x: Any, key: Key | None = None) -> Array:
        return free_phase(system, settle_free, params, x).output

    def contrasted(
        params: Params, batch: Batch, rest: Free, b: Array, start: State | None = None
    ) -> _Contrasted:
        """The estimate from nudged phases at β = b, started at the free phase `rest`."""
        betas, weights = _signs(nudging, points, b)
        if jnp.iscomplexobj(betas):
            params, clamped, s0 = trees.cast((params, rest.clamped, rest.state), betas.dtype)
            rest = rest._replace(clamped=clamped, state=s0)
        phases, info = nudged_phases(
            system, cost, settle_nudged, params, rest, batch.y, betas, start
        )
        ended = phases
        if nudging in ("one-sided", "random-sign"):  # the free state is a phase, at β = 0
            phases = jax.tree.map(lambda s, s0: jnp.concatenate([s, s0[None]]), phases, rest.state)
            betas = jnp.stack([b, jnp.zeros_like(b)])
            weights = jnp.stack([1.0 / b, -1.0 / b])
        weights = weights / rest.output.shape[0]
        grads = contrast(system, cost, params, rest.clamped, batch.y, phases, betas, weights)
        return _Contrasted(trees.real(grads), ended, info, _amplitude(ended, rest.state))

    def estimate(params: Params, batch: Batch, state: State, key: Key) -> tuple[Estimate, State]:
        b = state["beta"]
        if nudging == "online":
            ended = turn(system, cost, settle_nudged, params, batch, b, points, turns)
            loss = mean_loss(cost, ended.output, batch.y)
            return Estimate(ended.grads, loss, ended.output, {"nudged": ended.info}), state
        rest = free_phase(system, settle_free, params, batch.x)
        sign = jnp.ones_like(b)
        if nudging == "random-sign":
            sign = jax.random.rademacher(key, (), b.dtype)
        info: dict[str, Any] = {"free": rest.info}
        if beta == "auto":

            def measure(b: Array) -> tuple[Params, Array]:
                made = contrasted(params, batch, rest, sign * b)
                grads, left, moved = sharding.mean(
                    (made.grads, jnp.mean(made.info.residual), jnp.mean(made.moved))
                )
                return grads, left / moved

            found = choose(measure, params, _ORDER.get(nudging, points), b)
            b = found.beta
            state = {"beta": jnp.minimum(4.0 * b, jnp.ones_like(b))}
        made = contrasted(params, batch, rest, sign * b)
        info["nudged"] = made.info
        if beta == "auto":

            def settle_on(rest: Free, phases: State) -> tuple[Free, _Contrasted]:
                rest = free_phase(system, settle_free, params, batch.x, rest.state)
                return rest, contrasted(params, batch, rest, sign * b, phases)

            later, second = settle_on(rest, made.phases)
            third = settle_on(later, second.phases)[1]
            cut_short = unsettled(*sharding.mean((made.grads, second.grads, third.grads)))
            info["beta"], info["error_bar"] = b, found.error_bar + cut_short
        loss = mean_loss(cost, rest.output, batch.y)
        return Estimate(made.grads, loss, rest.output, info), state

    smooth = [] if system.traits.not_holomorphic else ["holomorphic-4"]
    about = RuleInfo(
        exact_reference(system, cost),
        followed(system, cost),
        beta="beta",
        nudgings=("one-sided", "centered", *smooth),
        pushes_away=nudging != "one-sided",
    )
    return LearningRule("eqprop", init, apply, estimate, info=about)


class _Contrasted(NamedTuple):
    """An estimate's gradient, its nudged phases, how they settled, how far they are from s⁰."""

    grads: Params
    phases: State
    info: SolveInfo
    moved: Array


_ORDER = {"one-sided": 1, "random-sign": 1, "centered": 2}


def _signs(nudging: str, points: int, b: Array) -> tuple[Inexact[Array, " phases"], Array]:
    """(β_n, w_n) of the nudged phases; the estimate is Σ_n w_n ∂F^{β_n} where they are all."""
    if nudging == "holomorphic":
        return half_circle(points, b)
    signs = jnp.asarray([1.0, -1.0] if nudging == "centered" else [1.0], b.dtype)
    return signs * b, signs / (2.0 * b)


def _amplitude(phases: State, free: State) -> Array:
    """max |s^β − s⁰| of every phase and example, `[phases, batch]`."""
    return jax.vmap(lambda s: trees.max_abs(trees.sub(s, free)))(phases)


def _refuse(system: System, nudging: str, beta: Any) -> None:
    if system.denergy is None:
        raise ValueError(
            f"eqprop: the system {system.name!r} has no energy; rules that serve: "
            "vector_field_eqprop, asymmetric_eqprop, recurrent_backprop, bptt"
        )
    if nudging in ("holomorphic", "online") and system.traits.not_holomorphic:
        raise ValueError(f"eqprop: nudging = {nudging!r}: {system.traits.not_holomorphic}")
    if nudging == "online" and beta == "auto":
        raise ValueError("eqprop: beta = 'auto': must be a number with nudging = \"online\"")
