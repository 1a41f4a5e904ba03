"""Whether an energy is holomorphic or which operation it breaks by; its corners."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal

from bpeq import trees
from bpeq.energy_contract._operations import PARTS, PIECES, Operation, operations
from bpeq.energy_contract._subject import Finding, Subject, drawn, like
from bpeq.types import Params, State

ROUGH = 1e-6  # of Cauchy and Riemann's equations
AHEAD = 1e-7  # where the two sides of a corner are looked at
MOST_CORNERS = 64


def holomorphic_finding(
    subject: Subject, energy: Callable[..., Any] | None, needed: bool, key: jax.Array
) -> Finding:
    """Operations in pieces by the program; others by Cauchy and Riemann's equations.

    Args:
      energy: a plain one, for one example; None for a system, whose sweep, readout and ∂E/∂θ are
        what holomorphic EP runs on complex states.
      needed: whether not being holomorphic is a failure.
    """
    program = _program(subject, energy)
    at = drawn(subject, key)
    found = operations(lambda s: program(subject.params, subject.x, s), at, PIECES)
    gap, error = _gap(subject, program, at, key)
    rough = not gap <= ROUGH
    if rough and not found:
        found = _parts(subject, program, at)
    holds = not found and not rough
    words = "complex-differentiable in the state"
    if found:
        words = "not complex-differentiable: " + ", ".join(map(str, found[:4]))
    elif error:
        words = f"cannot be computed on complex numbers: {error}"
    elif rough:
        words = f"Cauchy and Riemann's equations fail by {gap:.1e}"
    declared = subject.system.not_holomorphic
    passed = holds or (False if needed else None)
    if energy is None and holds == bool(declared):
        words += f"; the system says {declared or 'that it is'}"
        passed = False if holds is False else None
    return Finding("holomorphic", passed, gap, words)


def corner_finding(subject: Subject) -> Finding:
    """Corners of the force in its own state, and for a system of σ, its sweep's answer to a push.

    A corner is looked for at 0, ±½, ±1 and the numbers that the program compares with. Its share is
    0 where autodiff takes the slope of the outer side, which for a pair of corners is the flat one
    of a clip, 1 for the inner side, ½ for the middle; a single corner's outer side is the left.
    """
    found = [*_force_corners(subject), *([] if subject.plain else _sigma(subject))]
    if not found:
        return Finding("corners", True, np.nan, "no corner found: one-sided derivatives agree")
    shares = np.array([share for _, _, share in found])
    inside = bool(np.all((shares >= -1e-3) & (shares <= 1 + 1e-3)))
    where: dict[str, list[str]] = {}
    for name, corner, share in found:
        word = {0.0: "0", 0.5: "½", 1.0: "1"}.get(round(share, 3), f"{share:.2g}")
        kind, _, leaf = name.partition(" of ")
        where.setdefault(f"{word} for {kind} at {corner:g}", []).append(leaf)
    places = [
        place + (f" (state {', '.join(leaves)})" if any(leaves) else "")
        for place, leaves in where.items()
    ]
    words = "of the outer slope (0) and the inner (1) autodiff takes " + ", ".join(places)
    frozen = _frozen(subject, [corner for _, corner, share in found if abs(share) < 1e-3])
    if frozen and subject.plain:
        words += f"; {frozen} units start there, where gradient flow may not leave"
    return Finding("corners", None if inside else False, float(shares[0]), words)


def _program(subject: Subject, energy: Callable[..., Any] | None) -> Callable[..., Any]:
    """(params, x, state) -> what must be holomorphic."""
    system = subject.system
    if energy is not None:
        return lambda params, x, state: jax.vmap(energy, in_axes=(None, 0, 0))(params, state, x)

    def program(params: Params, x: Any, state: State) -> Any:
        clamped = system.clamp(params, x)
        made = [system.sweep(params, clamped, state), system.readout.forward(params, state)[0]]
        if system.denergy is not None:
            phases = jax.tree.map(lambda s: s[None], state)
            weights = jnp.ones((1,), jax.tree.leaves(state)[0].dtype)
            made.append(system.denergy(params, clamped, phases, weights))
        return made

    return program


def _gap(
    subject: Subject, program: Callable[..., Any], at: State, key: jax.Array
) -> tuple[float, str]:
    """|∂f/∂(imaginary) − i ∂f/∂(real)| over its size, at a complex state; or what went wrong."""
    h, kind = 1e-5, jnp.complex128
    params, x = trees.cast((subject.params, subject.x), kind)
    line, off = (like(at, k) for k in jax.random.split(key))
    state = trees.add(trees.cast(at, kind), trees.cast(trees.scale(1e-2j, off), kind))
    try:
        with jax.numpy_dtype_promotion("standard"):
            run = jax.jit(
                lambda s: [leaf.ravel() for leaf in jax.tree.leaves(program(params, x, s))]
            )
            slopes = []
            for turn in (1.0, 1j):
                step = trees.cast(trees.scale(h * turn, line), kind)
                ahead, behind = run(trees.add(state, step)), run(trees.sub(state, step))
                gap = jnp.concatenate(trees.sub(ahead, behind))
                slopes.append(np.asarray(gap) / (2 * h * turn))
    except Exception as error:  # whatever a user's function says to complex numbers
        return np.inf, f"{type(error).__name__}: {str(error).splitlines()[0]}"[:120]
    size = max(float(np.abs(slopes).max()), 1e-300)
    return float(np.abs(slopes[0] - slopes[1]).max() / size), ""


def _parts(subject: Subject, program: Callable[..., Any], at: State) -> list[Operation]:
    """What takes complex numbers apart, in the program as it is traced on them."""
    kind = jnp.complex128
    params, x, state = trees.cast((subject.params, subject.x, at), kind)
    try:
        with jax.numpy_dtype_promotion("standard"):
            return operations(lambda s: program(params, x, s), state, PARTS)
    except Exception:  # the same that `_gap` has told of
        return []


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
        with np.errstate(invalid="ignore"):  # outside the domain
            jump = right - left
            size = np.abs(left) + np.abs(right) + 1.0
            jumps = np.isfinite(jump) & (np.abs(jump) > 1e-4 * size)
        if jumps.any():
            share = float(np.median((here - left)[jumps] / jump[jumps]))
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
