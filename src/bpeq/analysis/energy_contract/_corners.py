"""Finds the corners of an energy, and the slope that autodiff takes there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from bpeq.analysis.energy_contract._context import Context, Finding, idle_weights
from bpeq.analysis.energy_contract._crossings import AHEAD, find_crossings, jump_share, jumps
from bpeq.analysis.energy_contract.piecewise import Operation, piecewise_operations
from bpeq.core import trees
from bpeq.core.jaxprs import all_equations
from bpeq.types import State

MOST_CORNERS = 64

Corner = tuple[str, float, float]
"""(function, number, share): share is 0 if autodiff takes the slope of the outer side."""


def corner_finding(context: Context, key: jax.Array) -> Finding:
    """Finds corners of the force and, for a system, corners of σ in its sweep's response to a push.

    It tries 0, ±½, ±1 and the numbers that the program compares with. The share of a corner says
    which slope autodiff takes: 0 is the outer side, 1 the inner side, ½ the middle. For a pair of
    corners the outer side is the flat one of a clip. For a single corner it is the left side. If
    none of these numbers is a corner and the program has piecewise operations, it searches lines
    between states for a place where such an operation changes its piece.

    Args:
      context: the system and its states.
      key: draws these lines.

    Returns:
      The finding "corners".
    """
    corners = [*_force_corners(context)]
    if context.user_energy is None:
        corners += _sigma_corners(context)
    if not corners:
        return _turning_finding(context, key)
    places: dict[str, list[str]] = {}
    for name, number, share in corners:
        kind, _, leaf = name.partition(" of ")
        places.setdefault(f"{_fraction(share)} for {kind} at {number:g}", []).append(leaf)
    words = "of the outer slope (0) and the inner (1) autodiff takes " + ", ".join(
        place + (f" (state {', '.join(leaves)})" if any(leaves) else "")
        for place, leaves in places.items()
    )
    if context.user_energy is not None:
        flat = [number for _, number, share in corners if abs(share) < 1e-3]
        starts = [np.asarray(leaf[0]) for leaf in jax.tree.leaves(context.start)]
        if stuck := sum(int(np.isin(leaf, flat).sum()) for leaf in starts):
            words += f"; {stuck} units start there, where gradient flow may not leave"
    return _note([share for *_, share in corners], words)


def _turning_finding(context: Context, key: jax.Array) -> Finding:
    """The finding about piecewise operations if no tried number is a corner."""
    pieces = piecewise_operations(
        lambda s: context.program(context.params, context.x, s), context.interior
    )
    if not pieces:
        return Finding("corners", True, np.nan, "no corner found: one-sided derivatives agree")
    met = {crossing.operation: crossing for crossing in find_crossings(context, pieces, key)}
    words, shares = [], []
    for crossing in met.values():
        if crossing.jumps:
            place = f"the force jumps where {crossing.operation} turns"
            known = not np.isnan(crossing.share)
            shares.append(crossing.share)
            took = f"autodiff takes {_fraction(crossing.share)} of the jump" if known else ""
            words.append(
                f"{place}: {took}" if known else f"{place}; no state hits the place itself"
            )
    if missed := [piece for piece in pieces if piece not in met]:
        words.append(f"the program has {_listed(missed)}: no corner among the numbers tried")
    if smooth := [piece for piece, crossing in met.items() if not crossing.jumps]:
        words.append(f"the force goes on where {_listed(smooth)} turns")
    if not shares and not missed:
        return Finding("corners", True, np.nan, "; ".join(words))
    return _note([share for share in shares if not np.isnan(share)], "; ".join(words))


def _note(shares: list[float], words: str) -> Finding:
    """A note, or a failure if autodiff takes neither side's slope nor one between."""
    between = all(-1e-3 <= share <= 1 + 1e-3 for share in shares)
    figure = float(shares[0]) if shares else np.nan
    return Finding("corners", None if between else False, figure, words)


def _listed(pieces: list[Operation]) -> str:
    return ", ".join(map(str, pieces[:4])) + (", …" if len(pieces) > 4 else "")


def _fraction(share: float) -> str:
    return {0.0: "0", 0.5: "½", 1.0: "1"}.get(round(share, 3), f"{share:.2g}")


def _force_corners(context: Context) -> Iterator[Corner]:
    """The corners of the force on each leaf, with all units of the leaf at one number."""
    system, params = context.system, context.params
    leaves, structure = jax.tree.flatten(context.interior)
    numbers = _numbers(lambda s: system.force(params, context.clamped, s), context.interior)

    def force(value: float, i: int) -> np.ndarray:
        moved = [*leaves[:i], jnp.full_like(leaves[i], value), *leaves[i + 1 :]]
        state = jax.tree.unflatten(structure, moved)
        slope = np.asarray(jax.tree.leaves(context.force(state))[i])
        inside = context.energy is None or bool(jnp.isfinite(context.energy(state)).all())
        return slope if inside else np.full_like(slope, np.nan)

    for i, name in enumerate(trees.names(context.interior)):
        name = f"∂E/∂s of {name}" if name else "∂E/∂s"
        yield from _corners(name, numbers, [force(n + h, i) for n in numbers for h in _SIDES])


def _sigma_corners(context: Context) -> Iterator[Corner]:
    """The corners of σ. At zero weights and states a push is the whole input of its unit."""
    system, params, x = context.system, idle_weights(context.params), trees.zeros(context.x)
    state, clamped = trees.zeros(context.start), system.clamp(params, x)

    def sweep(value: Any) -> State:
        push = jax.tree.map(lambda s: jnp.zeros_like(s) + value, state)
        return system.sweep(params, clamped, state, lambda s: push)

    slope = jax.jit(jax.jacfwd(sweep))
    numbers = _numbers(sweep, jnp.zeros(()))
    slopes = [jax.tree.leaves(slope(jnp.asarray(n + h))) for n in numbers for h in _SIDES]
    for i, name in enumerate(trees.names(state)):
        yield from _corners(f"σ of {name}", numbers, [np.asarray(each[i]) for each in slopes])


_SIDES = (-AHEAD, 0.0, AHEAD)


def _corners(name: str, numbers: list[float], slopes: Sequence[np.ndarray]) -> Iterator[Corner]:
    """The numbers at which a slope jumps; `slopes` has three for each: left of it, at it, right."""
    corners = []
    for i, number in enumerate(numbers):
        left, here, right = slopes[3 * i : 3 * i + 3]
        jump = jumps(left, right)
        if jump.any():
            corners.append((number, jump_share(left, here, right, jump)))
    for i, (number, share) in enumerate(corners):
        upper = len(corners) > 1 and i == len(corners) - 1
        yield name, number, 1.0 - share if upper else share


def _numbers(fn: Callable[..., Any], state: Any) -> list[float]:
    """Where corners may be: common numbers, those that the program compares with, their gaps."""
    literals = {
        abs(float(np.real(var.val)))
        for eqn in all_equations(jax.make_jaxpr(fn)(state).jaxpr)
        for var in eqn.invars
        if isinstance(var, Literal) and np.ndim(var.val) == 0
    }
    literals = {value for value in literals if value <= 100}  # nor NaN
    gaps = {abs(a - b) for a in literals for b in literals}
    wanted = sorted({0.0, 0.5, 1.0} | literals | gaps)[:MOST_CORNERS]
    return sorted({*wanted, *(-value for value in wanted if value)})
