"""The corners of an energy, and which side's slope autodiff takes there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal

from bpeq.analysis.energy_contract._operations import PIECES, Operation, operations
from bpeq.analysis.energy_contract._smoothness import program_of
from bpeq.analysis.energy_contract._subject import Finding, Subject
from bpeq.analysis.energy_contract._switches import AHEAD, crossings, jumps
from bpeq.core import trees
from bpeq.types import State

MOST_CORNERS = 64


def corner_finding(subject: Subject, energy: Callable[..., Any] | None, key: jax.Array) -> Finding:
    """Corners of the force in its own state, and for a system of σ, its sweep's answer to a push.

    A corner is looked for at 0, ±½, ±1 and the numbers that the program compares with. Its share is
    0 where autodiff takes the slope of the outer side, which for a pair of corners is the flat one
    of a clip, 1 for the inner side, ½ for the middle; a single corner's outer side is the left.
    Where none of these is one and the program has operations in pieces, lines between states are
    searched for a place where such an operation turns.

    Args:
      energy: a plain one, for one example; None for a system.
    """
    found = [*_force_corners(subject), *([] if subject.plain else _sigma(subject))]
    if not found:
        return _elsewhere(subject, energy, key)
    shares = np.array([share for _, _, share in found])
    inside = bool(np.all((shares >= -1e-3) & (shares <= 1 + 1e-3)))
    where: dict[str, list[str]] = {}
    for name, corner, share in found:
        kind, _, leaf = name.partition(" of ")
        where.setdefault(f"{_told(share)} for {kind} at {corner:g}", []).append(leaf)
    places = [
        place + (f" (state {', '.join(leaves)})" if any(leaves) else "")
        for place, leaves in where.items()
    ]
    words = "of the outer slope (0) and the inner (1) autodiff takes " + ", ".join(places)
    frozen = _frozen(subject, [corner for _, corner, share in found if abs(share) < 1e-3])
    if frozen and subject.plain:
        words += f"; {frozen} units start there, where gradient flow may not leave"
    return Finding("corners", None if inside else False, float(shares[0]), words)


def _elsewhere(subject: Subject, energy: Callable[..., Any] | None, key: jax.Array) -> Finding:
    """What the operations in pieces say where no number was a corner."""
    program = program_of(subject, energy)
    pieces = operations(lambda s: program(subject.params, subject.x, s), subject.inside, PIECES)
    if not pieces:
        return Finding("corners", True, np.nan, "no corner found: one-sided derivatives agree")
    met = {crossing.operation: crossing for crossing in crossings(subject, pieces, key)}
    turns = [crossing for crossing in met.values() if crossing.jumps]
    missed = [piece for piece in pieces if piece not in met]
    words, passed, figure = [], None if turns or missed else True, np.nan
    for one in turns:
        told = f"the force jumps where {one.operation} turns"
        if np.isnan(one.share):
            words.append(f"{told}; what autodiff takes there was not met")
            continue
        words.append(f"{told}: autodiff takes {_told(one.share)} of the jump")
        passed = passed if -1e-3 <= one.share <= 1 + 1e-3 else False
        figure = one.share if np.isnan(figure) else figure
    if missed:
        words.append(f"the program has {_listed(missed)}: no corner among the numbers tried")
    smooth = [piece for piece, crossing in met.items() if not crossing.jumps]
    if smooth:
        words.append(f"the force goes on where {_listed(smooth)} turns")
    return Finding("corners", passed, figure, "; ".join(words))


def _listed(pieces: list[Operation]) -> str:
    return ", ".join(map(str, pieces[:4])) + (", …" if len(pieces) > 4 else "")


def _told(share: float) -> str:
    return {0.0: "0", 0.5: "½", 1.0: "1"}.get(round(share, 3), f"{share:.2g}")


def _force_corners(subject: Subject) -> Iterator[tuple[str, float, float]]:
    system, params = subject.system, subject.params
    leaves, structure = jax.tree.flatten(subject.inside)
    places = _places(lambda s: system.force(params, subject.clamped, s), subject.inside)
    for i, name in enumerate(trees.names(subject.inside)):

        def at(value: float, i: int = i) -> np.ndarray:
            moved = [*leaves[:i], jnp.full_like(leaves[i], value), *leaves[i + 1 :]]
            state = jax.tree.unflatten(structure, moved)
            slope = np.asarray(jax.tree.leaves(subject.force(state))[i])
            defined = subject.energy is None or bool(jnp.isfinite(subject.energy(state)).all())
            return slope if defined else np.full_like(slope, np.nan)

        yield from _shares(f"∂E/∂s of {name}".removesuffix(" of "), places, at)


def _sigma(subject: Subject) -> Iterator[tuple[str, float, float]]:
    """With all weights, inputs and states zero a push is the whole input of its unit."""
    system, (params, x) = subject.system, trees.zeros((subject.params, subject.x))
    state = trees.zeros(subject.start)
    clamped = system.clamp(params, x)

    def sweep(value: Any) -> State:
        push = jax.tree.map(lambda s: jnp.zeros_like(s) + value, state)
        return system.sweep(params, clamped, state, lambda s: push)

    slope = jax.jit(jax.jacfwd(sweep))
    places = _places(sweep, jnp.zeros(()))
    for i, name in enumerate(trees.names(state)):

        def at(value: float, i: int = i) -> np.ndarray:
            return np.asarray(jax.tree.leaves(slope(jnp.asarray(value)))[i])

        yield from _shares(f"σ of {name}", places, at)


def _shares(
    name: str, places: list[float], at: Callable[[float], np.ndarray]
) -> Iterator[tuple[str, float, float]]:
    """(name, corner, share) where the slope `at` jumps, counted from the outer side."""
    found = []
    for place in places:
        left, here, right = at(place - AHEAD), at(place), at(place + AHEAD)
        jump = jumps(left, right)
        if jump.any():
            share = float(np.median((here - left)[jump] / (right - left)[jump]))
            found.append((place, round(share, 6) + 0.0))  # no −0
    for i, (place, share) in enumerate(found):
        upper = len(found) > 1 and i == len(found) - 1
        yield name, place, 1.0 - share if upper else share


def _places(fn: Callable[..., Any], state: Any) -> list[float]:
    """Where corners may be: common numbers, those that the program compares with, their gaps."""
    numbers = {abs(value) for value in _literals(jax.make_jaxpr(fn)(state))}
    gaps = {abs(a - b) for a in numbers for b in numbers}
    wanted = sorted({0.0, 0.5, 1.0} | numbers | gaps)[:MOST_CORNERS]
    return sorted({*wanted, *(-value for value in wanted if value)})


def _literals(closed: Any) -> Iterator[float]:
    jaxpr = closed.jaxpr if isinstance(closed, ClosedJaxpr) else closed
    for eqn in jaxpr.eqns:
        for var in eqn.invars:
            if isinstance(var, Literal) and np.ndim(var.val) == 0:
                value = float(np.real(var.val))
                if np.isfinite(value) and abs(value) <= 100:
                    yield value
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(inner):
                yield from _literals(inner)


def _is_jaxpr(node: Any) -> bool:
    return hasattr(node, "eqns")


def _frozen(subject: Subject, corners: list[float]) -> int:
    """Units of one example that start exactly on a corner."""
    leaves = [np.asarray(leaf[0]) for leaf in jax.tree.leaves(subject.start)]
    return int(sum(np.isin(leaf, corners).sum() for leaf in leaves))
