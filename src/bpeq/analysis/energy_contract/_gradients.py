"""Whether all derivatives are the energy's own, and the Jacobian of the force symmetric."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bpeq.analysis.energy_contract._subject import Finding, Subject, drawn, like
from bpeq.core import trees
from bpeq.types import State

STEPS = (1e-5, 1e-7)  # a kink between the two points of the longer one is no kink to the shorter
TOLERANCE = 1e-6
POINTS = 3


def gradient_finding(subject: Subject, key: jax.Array) -> Finding:
    """−force, denergy and dforce against central differences, leaf by leaf along random lines."""
    worst, largest = "", _Error(0.0, 1.0)
    for name, error in [*_state_checks(subject, key), *_weight_checks(subject, key)]:
        if not error.size / error.limit <= largest.size / largest.limit:  # a NaN is the worst
            worst, largest = name, error
    passed = bool(largest.size <= largest.limit)
    whole = subject.system.energy is not None
    what = "∂E/∂s, ∂E/∂θ and ∂force/∂θ" if whole else "no energy; ∂force/∂θ"
    words = f"{what} agree{'' if whole else 's'} with central differences"
    if not passed:
        words = f"{worst} differs from central differences by {largest.size:.1e} of its size"
    return Finding("gradient", passed, largest.size, words)


def symmetry_finding(subject: Subject, key: jax.Array, exact: float | None) -> Finding:
    """‖J − Jᵀ‖ / ‖J‖ of the force's Jacobian J, from uᵀJv − vᵀJu for random u and v.

    Args:
      exact: the same at the equilibria from the dense Jacobian, where there is one.
    """

    @jax.jit
    def products(at: State, u: State, v: State) -> tuple[Any, Any]:
        along = [jax.jvp(subject.force, (at,), (line,))[1] for line in (u, v)]
        return trees.dot(v, along[0]), trees.dot(u, along[1])

    pairs = []
    for i in range(POINTS):
        u, v = (like(subject.inside, k) for k in jax.random.split(jax.random.fold_in(key, i)))
        at = drawn(subject, jax.random.fold_in(key, 100 + i))
        try:
            pairs.append([float(product) for product in products(at, u, v)])
        except TypeError:  # a custom_vjp has no forward mode
            pairs.append([_difference(subject, at, *lines) for lines in ((u, v), (v, u))])
    ours, theirs = np.array(pairs).T
    size = float(np.hypot(np.linalg.norm(ours), np.linalg.norm(theirs)))
    measured = float(np.linalg.norm(ours - theirs)) / max(size, 1e-300)
    figure = measured if exact is None else max(measured, exact)
    passed = bool(figure <= TOLERANCE)
    words = "the force's Jacobian is symmetric"
    if not passed:
        words = (
            f"‖J − Jᵀ‖ / ‖J‖ = {figure:.1e}: no energy has this force; EP is biased, "
            "vector_field_eqprop too, asymmetric_eqprop is not"
        )
    return Finding("symmetric", passed, figure, words)


def _difference(subject: Subject, at: State, u: State, v: State) -> float:
    """uᵀJv by a central difference."""
    h = STEPS[0]
    ahead, behind = (subject.force(trees.add(at, trees.scale(step, v))) for step in (h, -h))
    return float(trees.dot(u, trees.sub(ahead, behind))) / (2.0 * h)


def _state_checks(subject: Subject, key: jax.Array) -> Iterator[tuple[str, _Error]]:
    energy = subject.energy
    if energy is None:
        return
    measure = _measure(lambda state: jnp.sum(energy(state)))
    for i in range(POINTS):
        at = drawn(subject, jax.random.fold_in(key, i))
        slope = trees.scale(-1.0, subject.force(at))
        for name, direction in _leafwise(at, jax.random.fold_in(key, 50 + i)):
            where = f"the force at state {name}" if name else "the force"
            yield where, _error(*measure(at, slope, direction))


def _weight_checks(subject: Subject, key: jax.Array) -> Iterator[tuple[str, _Error]]:
    system, params, x, clamped = subject.system, subject.params, subject.x, subject.clamped
    at = drawn(subject, jax.random.fold_in(key, 200))
    v = like(at, jax.random.fold_in(key, 201))
    push = _measure(lambda p: trees.dot(v, system.force(p, system.clamp(p, x), at)))
    checks = [("∂force/∂θ", push, jax.jit(system.dforce)(params, clamped, at, v))]
    if system.energy is not None and system.denergy is not None:
        energy = system.energy
        phases = jax.tree.map(lambda s: s[None], at)
        weights = jnp.ones((1,), jax.tree.leaves(at)[0].dtype)
        total = _measure(lambda p: jnp.sum(energy(p, system.clamp(p, x), at)))
        slope = jax.jit(system.denergy)(params, clamped, phases, weights)
        checks.append(("∂E/∂θ", total, slope))
    for what, measure, slope in checks:
        for name, direction in _leafwise(params, jax.random.fold_in(key, 202)):
            where = f"{what} of {name}" if name else what
            yield where, _error(*measure(params, slope, direction))


def _leafwise(tree: Any, key: jax.Array) -> Iterator[tuple[str, Any]]:
    """For every leaf a direction of length 1 that moves that leaf alone."""
    leaves, structure = jax.tree.flatten(tree)
    for i, (name, leaf) in enumerate(zip(trees.names(tree), leaves, strict=True)):
        if not (leaf.size and jnp.issubdtype(leaf.dtype, jnp.inexact)):
            continue
        line = like(leaf, jax.random.fold_in(key, i))
        alone = [np.zeros(other.shape, other.dtype) for other in leaves]
        alone[i] = line / np.linalg.norm(line)
        yield name, jax.tree.unflatten(structure, alone)


class _Error(NamedTuple):
    """A relative error, and what it may be: round-off in the difference allowed for."""

    size: float
    limit: float


_Measure = Callable[[Any, Any, Any], tuple[Any, Any, Any, Any]]


def _measure(value: Callable[[Any], Any]) -> _Measure:
    """(at, slope, line) -> slope along the line, its whole size, the value, the differences."""

    steps = np.array([sign * h for h in STEPS for sign in (1.0, -1.0)])

    @jax.jit
    def measure(at: Any, slope: Any, line: Any) -> tuple[Any, Any, Any, Any]:
        values = jax.lax.map(lambda h: value(trees.add(at, trees.scale(h, line))), steps)
        differences = (values[::2] - values[1::2]) / (2.0 * steps[::2])
        return trees.dot(slope, line), jnp.sqrt(trees.dot(slope, slope)), values[0], differences

    return measure


def _error(ours: Any, whole: Any, value: Any, differences: Any) -> _Error:
    """|difference − slope along a line| over their size and a thousandth of the whole slope's.

    The better of two step lengths counts.
    """
    errors = []
    for h, theirs in zip(STEPS, differences, strict=True):
        noise = 20.0 * np.finfo(np.float64).eps * abs(float(value)) / h
        size = abs(float(ours)) + abs(float(theirs)) + 1e-3 * float(whole) + 1e-9
        errors.append(_Error(abs(float(ours - theirs)) / size, TOLERANCE + noise / size))
    ratios = [error.size / error.limit for error in errors]
    return errors[int(np.argmin(np.nan_to_num(ratios, nan=np.inf)))]
