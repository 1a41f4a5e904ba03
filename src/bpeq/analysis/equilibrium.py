"""Measures equilibria: their curvature, saturated units, and jumps to another branch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float

from bpeq.core import trees
from bpeq.rules import Free, free_phase, nudged_phases
from bpeq.solvers import fixed_point
from bpeq.types import Batch, Cost, Params, SolveInfo, Solver, State, System

MOST_UNITS = 3000
_SETTLE = fixed_point(1e-12, 20_000)


class Curvature(NamedTuple):
    """The Hessian H of E at the equilibrium of each example, without saturated units.

    Args:
      smallest: `[batch]`, the smallest eigenvalue of H; without an energy the smallest real part of
        the eigenvalues of −∂force/∂s. It sets the distance to the nearest pole in β, and so EP's
        bias.
      output: `[batch]`, the smallest eigenvalue of K = (G H⁻¹ Gᵀ)⁻¹, with G the readout's Jacobian.
        If the outputs are states, K is their Schur complement. With squared error a negative nudge
        leaves the curvature K − β, so β must stay below this value. It is infinite if no output
        depends on the state.
      asymmetry: `[batch]`, ‖H − Hᵀ‖ / ‖H‖; 0 with an energy.
      saturated: for each state, the share of units that a small push does not move.
      settled: `[batch]`, whether the solver reached the equilibrium to 1e-12.
      units: the number of units in the state of one example.
    """

    smallest: Float[np.ndarray, " batch"]
    output: Float[np.ndarray, " batch"]
    asymmetry: Float[np.ndarray, " batch"]
    saturated: list[float]
    settled: Bool[np.ndarray, " batch"]
    units: int


def curvature(system: System, params: Params, x: Array) -> Curvature:
    """Computes the curvature at the equilibria of a few examples, in float64, with dense matrices.

    Args:
      system: the system; for an imperfect device its ideal system is used.
      params: its weights.
      x: inputs `[batch, ...]`.

    Returns:
      The curvature of each example.

    Raises:
      ValueError: the state of one example has more than 3,000 units.

    Example (one layer of linear units: the Hessian is 1):
      >>> import jax
      >>> from bpeq.layers import chain, dense, linear
      >>> from bpeq.systems import hopfield
      >>> system = hopfield(chain(dense(2), linear()))
      >>> params, _ = system.init(jax.random.key(0), (3,))
      >>> curves = curvature(system, params, jax.numpy.ones((1, 3)))
      >>> curves.smallest.tolist(), curves.output.tolist()
      ([1.0], [1.0])
    """
    system = system.ideal
    with jax.enable_x64(True):
        params, x = trees.cast((params, x), jnp.float64)
        rest = jax.jit(lambda p, x: free_phase(system, _SETTLE, p, x))(params, x)
        units = trees.size(rest.state) // len(x)
        if units > MOST_UNITS:
            raise ValueError(
                f"curvature: {units} units in the state of one example; at most {MOST_UNITS}"
            )
        hessians, outputs, moves = jax.device_get(_jacobians(system, params, x, rest.state))
    rows = [_eigenvalues(*row, system.energy is not None) for row in zip(
        hessians, outputs, moves, strict=True
    )]  # fmt: skip
    frozen = _frozen(moves)
    sizes = [leaf[0].size for leaf in jax.tree.leaves(rest.state)]
    ends = np.cumsum(sizes)[:-1]
    smallest, output, asymmetry = np.array(rows).T
    return Curvature(
        smallest,
        output,
        asymmetry,
        saturated=[float(part.mean()) for part in np.split(frozen, ends, axis=1)],
        settled=np.asarray(rest.info.converged),
        units=units,
    )


def _jacobians(system: System, params: Params, x: Array, state: State) -> tuple[Array, ...]:
    """(−∂force/∂s, ∂output/∂s, the movement of each unit under a random push in one sweep)."""

    @jax.jit
    def one(params: Params, x: Array, state: State) -> tuple[Array, ...]:
        alone = jax.tree.map(lambda leaf: leaf[None], state)
        flat, unravel = ravel_pytree(alone)
        clamped = system.clamp(params, x[None])

        def force(flat: Array) -> Array:
            return ravel_pytree(system.force(params, clamped, unravel(flat)))[0]

        def output(flat: Array) -> Array:
            return system.readout.forward(params, unravel(flat))[0].ravel()

        def sweep(strength: Array) -> Array:
            push = unravel(strength * jax.random.normal(jax.random.key(0), flat.shape, flat.dtype))
            return ravel_pytree(system.sweep(params, clamped, alone, lambda s: push))[0]

        zero, unit = jnp.zeros((), flat.dtype), jnp.ones((), flat.dtype)
        columns = jnp.eye(len(flat), dtype=flat.dtype)
        along = jax.lax.map(lambda v: jax.jvp(force, (flat,), (v,))[1], columns, batch_size=64)
        return -along.T, jax.jacrev(output)(flat), jax.jvp(sweep, (zero,), (unit,))[1]

    return jax.lax.map(lambda a: one(params, *a), (x, state))  # one by one, to save memory


def _frozen(moves: np.ndarray) -> np.ndarray:
    """The units that a push does not move."""
    return np.abs(moves) <= 1e-10 * np.abs(moves).max(axis=-1, keepdims=True)


def _eigenvalues(
    hessian: np.ndarray, output: np.ndarray, moves: np.ndarray, symmetric: bool
) -> tuple[float, float, float]:
    """(smallest eigenvalue of H, smallest eigenvalue of K, asymmetry) of one example."""
    live = ~_frozen(moves)
    h, g = hessian[np.ix_(live, live)], output[:, live]
    if not h.size:
        return np.inf, np.inf, 0.0
    asymmetry = float(np.linalg.norm(h - h.T) / np.linalg.norm(h))
    values = np.linalg.eigvalsh((h + h.T) / 2) if symmetric else np.linalg.eigvals(h).real
    response = g @ np.linalg.solve(h, g.T)
    largest = float(np.linalg.eigvalsh((response + response.T) / 2).max())
    return float(values.min()), 1.0 / largest if largest > 0 else np.inf, asymmetry


Respond = Callable[[System, Params, Free], System]
"""(system, params, free phase) -> the system that a rule nudges; see `RuleInfo.nudged_system`."""


def jumped(
    system: System,
    cost: Cost,
    params: Params,
    batch: Batch,
    betas: Sequence[float],
    respond: Respond | None = None,
) -> Bool[np.ndarray, "betas batch"]:
    """Finds the examples that a nudge by ±β moves to another branch of equilibria.

    It settles to 1e-12 in float64. An example has jumped if a free phase that starts at s^β does
    not return to s⁰ (to 1e-6), or if the nudged phase diverges. The contrast then compares two
    different equilibria, and its error does not vanish as β → 0.

    Args:
      system: the system of the rule; for an imperfect device its ideal system is used.
      cost: the cost of the nudge.
      params: the weights.
      batch: x `[batch, ...]` and y.
      betas: the nudges, each > 0.
      respond: the rule's `info.nudged_system`; None: the rule nudges `system` itself.

    Returns:
      `[betas, batch]`, True if the example jumped.
    """
    system = system.ideal
    with jax.enable_x64(True):
        params, batch = trees.cast((params, batch), jnp.float64)

        @jax.jit
        def away(params: Params, batch: Batch, betas: Array) -> Array:
            rest = free_phase(system, _SETTLE, params, batch.x)
            nudged = system if respond is None else respond(system, params, rest)
            return jax.lax.map(lambda beta: one(params, batch, rest, nudged, beta), betas)

        def one(params: Params, batch: Batch, rest: Free, nudged: System, beta: Array) -> Array:
            sides = jnp.stack([beta, -beta])
            states, _ = nudged_phases(nudged, cost, _SETTLE, params, rest, batch.y, sides)
            back = jax.vmap(
                lambda s: _SETTLE(lambda s: system.sweep(params, rest.clamped, s), s)[0]
            )(states)
            gaps = jax.vmap(lambda s: trees.max_abs(trees.sub(s, rest.state)))(back)
            size = jax.vmap(trees.max_abs)(states)
            return jnp.max(jnp.where(jnp.isfinite(size), gaps, jnp.inf), axis=0)

        return ~(np.asarray(away(params, batch, jnp.asarray(betas, jnp.float64))) <= 1e-6)


class Nudge(NamedTuple):
    """The movement of each state under a nudge by β, and the residual of the solver.

    Args:
      amplitude: for each state, the mean over the examples of max |s^β − s⁰|.
      residual: the mean residual. If it is close to an amplitude, the contrast is noise.
    """

    amplitude: list[float]
    residual: float


def nudge_amplitude(
    system: System,
    cost: Cost,
    params: Params,
    batch: Batch,
    beta: float,
    free: Solver,
    nudged: Solver,
    respond: Respond | None = None,
) -> Nudge:
    """Measures the nudge at +β, in the dtype of params, with the solvers of a rule.

    Args:
      system: the system of the rule.
      cost: the cost of the nudge.
      params: the weights.
      batch: x `[batch, ...]` and y.
      beta: the nudge, > 0.
      free: the solver of the free phase.
      nudged: the solver of the nudged phase.
      respond: the rule's `info.nudged_system`; None: the rule nudges `system` itself.

    Returns:
      The amplitude of each state, and the residual.
    """

    @jax.jit
    def measure(params: Params, batch: Batch) -> tuple[Any, SolveInfo]:
        rest = free_phase(system, free, params, batch.x)
        dtype = rest.output.dtype
        betas = jnp.asarray([beta], dtype)
        device = system if respond is None else respond(system, params, rest)
        states, info = nudged_phases(device, cost, nudged, params, rest, batch.y, betas)
        moved = jax.tree.map(lambda s, s0: jnp.abs(s[0] - s0), states, rest.state)
        moved = [leaf.reshape(leaf.shape[0], -1).max(axis=1) for leaf in jax.tree.leaves(moved)]
        return [leaf.mean() for leaf in moved], info

    moved, info = measure(params, batch)
    return Nudge([float(leaf) for leaf in moved], float(jnp.mean(info.residual)))
