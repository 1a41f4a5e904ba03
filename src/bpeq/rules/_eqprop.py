"""Equilibrium propagation: the gradient as a contrast between free and nudged equilibria."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge
from jaxtyping import Array, Inexact

from bpeq.core import sharding, trees
from bpeq.rules._betas import choose, half_circle, online, unsettled
from bpeq.rules._common import settings_init
from bpeq.rules._phases import Free, contrast, free_phase, nudged_phases, reseeded, with_state
from bpeq.rules._references import followed, refuse_without_energy
from bpeq.rules._relaxing import Measured, Relaxation, Start, prepared, relaxing_rule
from bpeq.settings import Positive, SettingError, checked
from bpeq.solvers import fixed_point
from bpeq.types import (
    Batch,
    Cost,
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
    evaluation: Solver | None = None,
    start: Start = "own",
    relaxation: Relaxation = "same",
) -> LearningRule:
    """Equilibrium propagation: the gradient from free and nudged equilibria of F = E + βC.

    With ∂F^β = ∂E/∂θ(s^β) + β ∂C/∂θ(s^β) the estimate is

        one-sided     (∂F^β − ∂F⁰) / β            bias of order β
        centered      (∂F^β − ∂F^−β) / 2β         bias of order β²
        random-sign   one-sided at ±β, the sign drawn per estimate: no bias of order β on average
        holomorphic   (1/N) Σ_n ∂F^{β_n} / β_n    β_n = β e^{2πin/N}, n = 0 … N−1; bias of order β^N
        online        the same sum; β_n moves along the circle and the state follows it

    The update of each weight is local: it reads the two units that the weight joins, in two phases.
    On a dense connection it is the contrastive Hebbian (1/β)(s_i^β s_j^β − s_i⁰ s_j⁰). The estimate
    is exact as β → 0, because an energy makes the Jacobian of the force symmetric.

    The holomorphic sum is Cauchy's integral for ∂F at β = 0. Equilibria at conjugate β are
    conjugate. So an even N needs N/2 + 1 phases, and an odd N needs (N + 1)/2. The sum is valid if
    β is less than the distance to the nearest singularity of s^β. "online" needs no free phase: by
    the mean value property, the mean output over a turn is the free output. It starts at the
    system's own start. The state lags behind β_n; this part of the error falls with more points.

    Args:
      system: a System with an energy.
      cost: compares the readout with y. It nudges each example before the mean over the batch.
      free: solver of the free phase; None settles to a residual of 1e-6 within 1,000 sweeps.
      nudged: solver of the nudged phases, which start at s⁰; None: as for `free`. With "online" it
        runs once at each point: `fixed_steps(1)` is one sweep.
      beta: β > 0, in units of energy per cost. β is traced: a new value compiles nothing. In
        float32 round-off grows as 1/β, so the smallest β is not the best. A β below the dtype's
        floor gives a warning. With linear outputs and squared error nudged phases settle for β < 1
        only, since the nudge contracts by the factor β in each sweep.
        "auto" searches for the best β in each estimate. It starts at four times the last β and
        halves it. The difference between two values of β is bias at first; later it is round-off,
        or the solver's tolerance. Comparing values of β cannot reveal the error of phases that
        stopped early. Two further relaxations estimate it. The search costs 9 to 16 nudged solves
        instead of one, depending on how near the last β is to the best. `info` counts only the
        sweeps of the chosen β.
      nudging: one of the five estimates above.
      points: N >= 2, the number of points of "holomorphic" and of one turn of "online".
      turns: number of turns of "online", >= 2. β grows from 0 along the first turn. The sum is over
        the last turn.
      evaluation: solver of the free phases of inference, that is of `apply`; None: that of `free`.
      start: where an estimate's free phase starts: "own", "zeros" and "feedforward" as in
        `starting_at`, "carried" and "kept" as in `remembering`.
      relaxation: the floating type of sweeps, as in `in_short_floats`; "same": that of params.

    Returns:
      A LearningRule with the state {"beta": β}. The estimate's info has the SolveInfos `free`
      `[batch]` (not with "online") and `nudged` `[phases, batch]`. With "auto" it also has `beta`
      and `error_bar`, the estimated relative error of the whole gradient.

    Raises:
      ValueError: a setting is out of range; the system has no energy; β is complex and the system
        is not holomorphic; "auto" is set with "online"; the system does not have this `start`.

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
    system = prepared(system, "eqprop", start, relaxation, has_free=nudging != "online")
    _refuse(system, nudging, beta)
    # A phase that stops early spoils the contrast, so the default solver settles each phase.
    solver = fixed_point() if nudged is None else nudged

    first = 1.0 if beta == "auto" else float(beta)
    init = settings_init("eqprop", "beta", beta=first)

    def contrasted(
        params: Params, batch: Batch, rest: Free, b: Array, start: State | None = None
    ) -> _Contrasted:
        """The estimate from nudged phases at β = b, started at the free phase `rest`."""
        betas, weights = _signs(nudging, points, b)
        # At complex β the states are complex, so all that a sweep reads must be complex too.
        if jnp.iscomplexobj(betas):
            params, clamped, s0 = trees.cast((params, rest.clamped, rest.state), betas.dtype)
            rest = rest._replace(clamped=clamped, state=s0)
        ended, info = nudged_phases(system, cost, solver, params, rest, batch.y, betas, start)
        phases = ended
        if nudging in ("one-sided", "random-sign"):  # the free state is a phase, at β = 0
            phases = with_state(ended, rest.state)
            betas = jnp.stack([b, jnp.zeros_like(b)])
            weights = jnp.stack([1.0 / b, -1.0 / b])
        # `contrast` sums over the batch; gradients are batch means.
        weights = weights / rest.output.shape[0]
        grads = contrast(system, cost, params, rest.clamped, batch.y, phases, betas, weights)
        return _Contrasted(trees.real(grads), ended, info, _amplitude(ended, rest.state))

    def gradient(params: Params, batch: Batch, rest: Free, state: State, key: Key) -> Measured:
        """(contrast of ∂F at the free phase `rest`, records for the info, the rule's new state)."""
        b, sign = state["beta"], jnp.ones_like(state["beta"])
        if nudging == "random-sign":
            sign = jax.random.rademacher(key, (), b.dtype)
        # A fixed β needs one contrast and no search.
        if beta != "auto":
            made = contrasted(params, batch, rest, sign * b)
            return made.grads, {"nudged": made.info}, state

        # Search for β from large to small. Each draws new noise, so differences include it.
        def measure(b: Array, rung: Array) -> tuple[Params, Array]:
            here = reseeded(system, rest, key, 3 + rung)
            made = contrasted(params, batch, here, sign * b)
            measured = (made.grads, jnp.mean(made.info.residual), jnp.mean(made.moved))
            grads, left, moved = sharding.mean(measured)
            return grads, left / moved

        found = choose(measure, params, _ORDER.get(nudging, points), b)
        b = found.beta
        made = contrasted(params, batch, rest, sign * b)

        # Settle all phases twice more. The differences estimate the error of stopping early.
        def settle_on(rest: Free, phases: State, n: int) -> tuple[Free, _Contrasted]:
            noise = jax.random.fold_in(key, n)
            rest = free_phase(system, free or fixed_point(), params, batch.x, rest.state, noise)
            return rest, contrasted(params, batch, rest, sign * b, phases)

        later, second = settle_on(rest, made.phases, 1)
        third = settle_on(later, second.phases, 2)[1]
        cut_short = unsettled(*sharding.mean((made.grads, second.grads, third.grads)))
        info = {"nudged": made.info, "beta": b, "error_bar": found.error_bar + cut_short}
        return made.grads, info, {"beta": jnp.minimum(4.0 * b, jnp.ones_like(b))}

    # A comparison over β tries the holomorphic estimate only if complex states are allowed.
    smooth = [] if system.traits.not_holomorphic else ["holomorphic-4"]
    about = RuleInfo(
        objective=followed(system, cost),
        beta="beta",
        order=_ORDER.get(nudging, points),
        nudgings=("one-sided", "centered", *smooth),
        pushes_away=nudging != "one-sided",
    )
    rule = relaxing_rule("eqprop", system, cost, free, gradient, init, about, start, evaluation)
    if nudging != "online":
        return rule
    return rule._replace(estimate=online(system, cost, solver, points, turns))


class _Contrasted(NamedTuple):
    """The gradient from one set of nudged phases.

    grads: the gradient. phases: the nudged states, phases on axis 0. info: how they settled.
    moved: `[phases, batch]`, max |s^β − s⁰|.
    """

    grads: Params
    phases: State
    info: SolveInfo
    moved: Array


_ORDER = {"one-sided": 1, "random-sign": 1, "centered": 2}


def _signs(nudging: str, points: int, b: Array) -> tuple[Inexact[Array, " phases"], Array]:
    """(β_n, w_n) of the nudged phases. If all phases are nudged, it gives Σ_n w_n ∂F^{β_n}."""
    if nudging == "holomorphic":
        return half_circle(points, b)
    signs = jnp.asarray([1.0, -1.0] if nudging == "centered" else [1.0], b.dtype)
    return signs * b, signs / (2.0 * b)


def _amplitude(phases: State, free: State) -> Array:
    """max |s^β − s⁰| of each phase and example, `[phases, batch]`."""
    return jax.vmap(lambda s: trees.max_abs(trees.sub(s, free)))(phases)


def _refuse(system: System, nudging: str, beta: Any) -> None:
    """Raise a SettingError if the system or the settings do not allow this nudging."""
    refuse_without_energy("eqprop", system)
    if nudging in ("holomorphic", "online") and system.traits.not_holomorphic:
        raise SettingError("eqprop", "nudging", nudging, system.traits.not_holomorphic)
    if nudging == "online" and beta == "auto":
        remedy = 'must be a number with nudging = "online"'
        raise SettingError("eqprop", "beta", beta, remedy)
