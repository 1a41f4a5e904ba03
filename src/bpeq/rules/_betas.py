"""Which β an estimate uses: a circle in the complex plane, or a search for the best one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex

from bpeq.core import trees
from bpeq.rules._common import mean_loss
from bpeq.rules._phases import (
    Free,
    clamp,
    contrast,
    in_one_piece,
    noise_key,
    nudged_phases,
    reseeded,
)
from bpeq.types import Batch, Cost, Estimate, Key, Params, SolveInfo, Solver, State, System


def half_circle(
    points: int, beta: Array
) -> tuple[Complex[Array, " phases"], Complex[Array, " phases"]]:
    """The points and weights of "holomorphic": Re Σ w_n ∂F^{β_n} = (1/N) Σ_{n<N} ∂F^{β_n} / β_n.

    β_n = β e^{2πin/N}. At conjugate β the equilibrium is conjugate. So the upper half plane is
    enough, and a point off the real axis counts twice.

    Args:
      points: N, >= 2.
      beta: β, a real scalar.

    Returns:
      (β_n, w_n), `[phases]` each, with N/2 + 1 phases for even N and (N + 1)/2 for odd N.
    """
    n = np.arange(points // 2 + 1)
    twice = np.where((n == 0) | (2 * n == points), 1.0, 2.0)
    betas = _on_circle(points, n, beta)
    return betas, jnp.asarray(twice / points, betas.dtype) / betas


def online(
    system: System, cost: Cost, solver: Solver, points: int, turns: int
) -> Callable[[Params, Batch, State, Key], tuple[Estimate, State]]:
    """The `estimate` of "online": (1/N) Σ ∂F^{β_n} / β_n along the last turn of β.

    The state follows β. The first turn is a spiral out of β = 0. A start at full β could bring a
    state that is far from rest to another branch than the free phase. The integral would then
    belong to another function. The loop adds up the sums as β turns, so memory does not grow with
    the number of points. The mean output over the turn is the free output.

    Args:
      system: a holomorphic System with an energy.
      cost: C.
      solver: runs once at each point.
      points: N per turn, >= 2.
      turns: number of turns, >= 2.

    Returns:
      (params, batch, state, key) -> (Estimate, state). The state has the radius, "beta". The
      estimate's info has the SolveInfo `nudged`, with the points of the last turn on axis 0.
    """
    system = in_one_piece(system)  # one point has too few sweeps for examples to come to rest

    def estimate(params: Params, batch: Batch, state: State, key: Key) -> tuple[Estimate, State]:
        # All that a sweep reads is complex, since the states are.
        betas = _on_circle(points, np.arange(points), state["beta"])
        params, x = trees.cast((params, batch.x), betas.dtype)
        clamped, noise = clamp(system, params, x), noise_key(key)

        def follow(at: State, b: Array, n: Array) -> tuple[State, SolveInfo]:
            rest = reseeded(system, Free(clamped, at, (), ()), noise, n)  # type: ignore[arg-type]
            phases, info = nudged_phases(system, cost, solver, params, rest, batch.y, b[None])
            return phases, jax.tree.map(lambda leaf: leaf[0], info)

        def settle(at: State, point: tuple[Array, Array]) -> tuple[State, None]:
            """One point whose contrast is not used."""
            return jax.tree.map(lambda s: s[0], follow(at, *point)[0]), None

        def add_up(carry: Any, point: tuple[Array, Array]) -> tuple[Any, SolveInfo]:
            """One point of the last turn: add its contrast and its output to the sums."""
            at, grads, output = carry
            b, _ = point
            phases, info = follow(at, *point)
            weights = 1.0 / (b[None] * points * len(batch.x))
            part = contrast(system, cost, params, clamped, batch.y, phases, b[None], weights)
            at = jax.tree.map(lambda s: s[0], phases)
            seen = system.readout.forward(params, at)[0] / points
            return (at, trees.add(grads, part), output + seen), info

        # Grow β along the first turn, let the state settle on the circle, then sum the last turn.
        at = trees.cast(system.init_state(params, clamped), betas.dtype)
        spiral = betas * jnp.arange(1, points + 1, dtype=betas.dtype) / points
        numbers = jnp.arange(turns * points)
        first, middle, last = jnp.split(numbers, [points, (turns - 1) * points])
        at, _ = jax.lax.scan(settle, at, (spiral, first))
        at, _ = jax.lax.scan(settle, at, (jnp.tile(betas, turns - 2), middle))
        output = jnp.zeros_like(system.readout.forward(params, at)[0])
        start = (at, trees.zeros(params), output)
        (_, grads, output), info = jax.lax.scan(add_up, start, (betas, last))
        loss = mean_loss(cost, output.real, batch.y)
        return Estimate(trees.real(grads), loss, output.real, {"nudged": info}), state

    return estimate


def _on_circle(points: int, n: np.ndarray, beta: Array) -> Complex[Array, " phases"]:
    """β e^{2πin/N}, exact on the axes."""
    angle = 2.0 * np.pi * n / points
    units = np.cos(angle) + 1j * np.sin(angle)
    units.real[(4 * n == points) | (4 * n == 3 * points)] = 0.0
    units.imag[2 * n == points] = 0.0
    dtype = np.result_type(beta.dtype, np.complex64)
    return beta.astype(dtype) * jnp.asarray(units, dtype)


RUNGS = 40
PATIENCE = 3


class Chosen(NamedTuple):
    """The chosen β and its estimated error.

    beta: the β with the smallest error bar.
    error_bar: the estimated relative error ‖g − g*‖ / ‖g‖ of the estimate there. It is twice what
        the differences show, so that it nearly always covers the error.
    """

    beta: Array
    error_bar: Array


class _Rung(NamedTuple):
    """One value of β: the gradient there, its distance from the rung above, and its noise ν."""

    grads: Params
    gap: Array
    noise: Array


class _Best(NamedTuple):
    """The rung with the smallest error bar: the bar, β, and the norm of the gradient."""

    bar: Array
    beta: Array
    size: Array


class _Walk(NamedTuple):
    """The state of the search over β.

    A rung is one value β_k = start / 2^k. The search judges rung k − 2 when it knows rung k.
    """

    rung: Array
    before: _Rung  # the two rungs above
    above: _Rung
    best: _Best
    worse: Array


def choose(
    measure: Callable[[Array, Array], tuple[Params, Array]], like: Params, order: int, start: Array
) -> Chosen:
    """Search for β: halve it from `start` on, and keep the rung with the smallest error bar.

    With g_k the estimate at β_k = start / 2^k and d_k = ‖g_{k−1} − g_k‖, the bar of rung k is

        d_k / (2^p − 1)  +  d_{k+2} / 2  +  ν_k ‖g_k‖

    The first term is the bias β^p A; the difference to the rung above shows it. The second term is
    the noise B/β; the two rungs below show it. ν_k is the residual of the nudged phases over their
    distance from the free state: noise that no difference shows. If ν_k is 0.1 or more, the phases
    no longer follow the nudge, and the rung does not count. The search ends after three rungs in a
    row that have no smaller bar and more noise than bias.

    Args:
      measure: (β, index of the rung) -> (gradient, ν).
      like: a tree in the gradient's shapes.
      order: p, the order of the bias in β, >= 1.
      start: the first β, > 0, a scalar array.

    Returns:
      A Chosen.
    """
    far = jnp.full_like(start, jnp.inf)
    nothing, count = trees.zeros(like), jnp.zeros((), jnp.int32)
    none = _Rung(nothing, far, far)
    walk = _Walk(count, none, none, _Best(far, start, jnp.ones_like(start)), count)

    def go_on(walk: _Walk) -> Array:
        return (walk.rung < RUNGS) & (walk.worse < PATIENCE)

    def step(walk: _Walk) -> _Walk:
        grads, noise = measure(start * 2.0 ** (-walk.rung.astype(start.dtype)), walk.rung)
        gap = jnp.where(walk.rung > 0, _norm(trees.sub(walk.above.grads, grads)), far)
        # Judge the rung two above: the two rungs below it are now known.
        size, bias = _norm(walk.before.grads), walk.before.gap / (2.0**order - 1.0)
        noise_there = gap / 2.0 + walk.before.noise * size
        better = (bias + noise_there < walk.best.bar) & (walk.before.noise < 0.1)  # not for a NaN
        # A rung is lost only if noise dominates there; a large bias still falls further down.
        lost = ~better & jnp.isfinite(walk.best.bar) & ~(noise_there < bias)
        judged = _Best(
            bias + noise_there, start * 2.0 ** (2.0 - walk.rung.astype(start.dtype)), size
        )
        best = jax.tree.map(partial(jnp.where, better), judged, walk.best)
        worse = jnp.where(lost, walk.worse + 1, 0)
        return _Walk(walk.rung + 1, walk.above, _Rung(grads, gap, noise), best, worse)

    end = jax.lax.while_loop(go_on, step, walk)
    return Chosen(end.best.beta, 2.0 * end.best.bar / end.best.size)


def unsettled(first: Params, second: Params, third: Params) -> Array:
    """The relative error of phases that stopped early, from three estimates.

    An error of the free phase moves all phases alike. A nudged phase lacks, after k sweeps, a part
    that grows as β. In the estimate both errors are independent of β, so `choose` cannot see them.
    Two further relaxations, each as long as the first, show them. With d and d' the steps from one
    estimate to the next and q = d'/d, a geometric series has d / (1 − q) left. q is limited to 0.9:
    at round-off there is no series, and q is near 1.

    Args:
      first: the estimate.
      second: the estimate after one further relaxation.
      third: the estimate after two.

    Returns:
      A scalar, relative to the norm of `first`.
    """
    step, after = _norm(trees.sub(second, first)), _norm(trees.sub(third, second))
    # Gradients can be exactly zero. The divisors are then 1, so that no NaN appears.
    ratio = jnp.where(step > 0, after / jnp.where(step > 0, step, jnp.ones_like(step)), 0.0)
    size = _norm(first)
    return step / (1.0 - jnp.minimum(ratio, 0.9)) / jnp.where(step == 0, jnp.ones_like(size), size)


def _norm(tree: Any) -> Array:
    """‖tree‖, over all leaves."""
    return jnp.sqrt(trees.dot(tree, tree))
