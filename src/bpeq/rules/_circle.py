"""Nudging on a circle in the complex plane: Cauchy's integral for ∂F at β = 0, by N points."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex

from bpeq.core import trees
from bpeq.rules._phases import Free, clamp, contrast, in_one_piece, nudged_phases, reseeded
from bpeq.types import Batch, Cost, Key, Params, SolveInfo, Solver, System


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


class Turned(NamedTuple):
    """The result of a turn of β.

    grads: the estimate. output: the mean output over the turn, which is the free output.
    info: how each point settled, points on axis 0.
    """

    grads: Params
    output: Array
    info: SolveInfo


def turn(
    system: System,
    cost: Cost,
    solver: Solver,
    params: Params,
    batch: Batch,
    beta: Array,
    points: int,
    turns: int,
    key: Key | None = None,
) -> Turned:
    """The estimate of "online": (1/N) Σ ∂F^{β_n} / β_n along the last turn, the state following β.

    The first turn is a spiral out of β = 0. A start at full β could bring a state that is far from
    rest to another branch than the free phase. The integral would then belong to another function.
    The loop adds up the sums as β turns, so memory does not grow with the number of points.

    Args:
      system: a holomorphic System with an energy.
      cost: C.
      solver: runs once at each point.
      params: θ.
      batch: inputs and targets.
      beta: the radius β, a real scalar.
      points: N per turn, >= 2.
      turns: number of turns, >= 2.
      key: key of a noisy device's noise; None: the device's own key.

    Returns:
      A Turned.
    """
    # All that a sweep reads is complex, since the states are.
    betas = _on_circle(points, np.arange(points), beta)
    params = trees.cast(params, betas.dtype)
    x = trees.cast(batch.x, betas.dtype)
    clamped = clamp(system, params, x)
    examples = batch.x.shape[0]
    system = in_one_piece(system)  # one point has too few sweeps for examples to come to rest
    numbers = jnp.arange(turns * points)

    def follow(state: Any, b: Array, n: Array) -> tuple[Any, SolveInfo]:
        rest = Free(clamped, state, (), ())  # type: ignore[arg-type]
        rest = rest if key is None else reseeded(system, rest, key, n)
        phases, info = nudged_phases(system, cost, solver, params, rest, batch.y, b[None])
        return phases, jax.tree.map(lambda leaf: leaf[0], info)

    def settle(state: Any, point: tuple[Array, Array]) -> tuple[Any, None]:
        """One point whose contrast is not used."""
        return jax.tree.map(lambda s: s[0], follow(state, *point)[0]), None

    def add_up(carry: Any, point: tuple[Array, Array]) -> tuple[Any, SolveInfo]:
        """One point of the last turn: add its contrast and its output to the sums."""
        state, grads, output = carry
        b, _ = point
        phases, info = follow(state, *point)
        weights = 1.0 / (b[None] * points * examples)
        part = contrast(system, cost, params, clamped, batch.y, phases, b[None], weights)
        state = jax.tree.map(lambda s: s[0], phases)
        seen = system.readout.forward(params, state)[0] / points
        return (state, trees.add(grads, part), output + seen), info

    # Grow β along the first turn, let the state settle on the circle, then sum the last turn.
    state = trees.cast(system.init_state(params, clamped), betas.dtype)
    spiral = betas * jnp.arange(1, points + 1, dtype=betas.dtype) / points
    first, middle, last = jnp.split(numbers, [points, (turns - 1) * points])
    state, _ = jax.lax.scan(settle, state, (spiral, first))
    state, _ = jax.lax.scan(settle, state, (jnp.tile(betas, turns - 2), middle))
    output = jnp.zeros_like(system.readout.forward(params, state)[0])
    start = (state, trees.zeros(params), output)
    (_, grads, output), info = jax.lax.scan(add_up, start, (betas, last))
    return Turned(trees.real(grads), output.real, info)


def _on_circle(points: int, n: np.ndarray, beta: Array) -> Complex[Array, " phases"]:
    """β e^{2πin/N}, exact on the axes."""
    angle = 2.0 * np.pi * n / points
    units = np.cos(angle) + 1j * np.sin(angle)
    units.real[(4 * n == points) | (4 * n == 3 * points)] = 0.0
    units.imag[2 * n == points] = 0.0
    dtype = np.result_type(beta.dtype, np.complex64)
    return beta.astype(dtype) * jnp.asarray(units, dtype)
