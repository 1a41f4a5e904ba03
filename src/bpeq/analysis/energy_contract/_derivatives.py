"""Checks that all derivatives are the energy's, and that the force's Jacobian is symmetric."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.random import fold_in

from bpeq.analysis.energy_contract._context import Context, Finding, is_inexact, normal_like
from bpeq.core import trees
from bpeq.types import State

STEPS = (1e-5, 1e-7)  # a corner within the longer step may lie outside the shorter one
TOLERANCE = 1e-6
POINTS = 3


class _Error(NamedTuple):
    """A relative error at one place, and its limit, with an allowance for round-off."""

    where: str
    size: float
    limit: float

    @property
    def ratio(self) -> float:
        """The error divided by its limit; NaN counts as the worst."""
        return float(np.nan_to_num(self.size / self.limit, nan=np.inf))


def gradient_finding(context: Context, key: jax.Array) -> Finding:
    """Compares −force, denergy and dforce with central differences, leaf by leaf.

    Args:
      context: the system and its states.
      key: draws states, and a random line for each leaf.

    Returns:
      The finding "gradient".
    """
    errors = [*_state_errors(context, key), *_weight_errors(context, key)]
    worst = max(errors, key=lambda error: error.ratio)
    passed = worst.ratio <= 1
    whole = context.system.energy is not None
    what = "∂E/∂s, ∂E/∂θ and ∂force/∂θ agree" if whole else "no energy; ∂force/∂θ agrees"
    words = f"{what} with central differences"
    if not passed:
        words = f"{worst.where} differs from central differences by {worst.size:.1e} of its size"
    return Finding("gradient", passed, worst.size, words)


def symmetry_finding(context: Context, key: jax.Array, dense: float | None) -> Finding:
    """Computes ‖J − Jᵀ‖ / ‖J‖ of the force's Jacobian J, from uᵀJv − vᵀJu for random u and v.

    Args:
      context: the system and its states.
      key: draws states, u and v.
      dense: the same number from the dense Jacobian at the equilibria; None without one.

    Returns:
      The finding "symmetric".
    """

    @jax.jit
    def products(at: State, u: State, v: State) -> tuple[Any, Any]:
        along = [jax.jvp(context.force, (at,), (line,))[1] for line in (u, v)]
        return trees.dot(v, along[0]), trees.dot(u, along[1])

    def difference(at: State, u: State, v: State) -> Any:
        h = STEPS[0]
        ahead, behind = (context.force(trees.add(at, trees.scale(step, v))) for step in (h, -h))
        return trees.dot(u, trees.sub(ahead, behind)) / (2.0 * h)

    pairs = []
    for i in range(POINTS):
        u, v = (normal_like(context.interior, k) for k in jax.random.split(fold_in(key, i)))
        at = context.draw(fold_in(key, 100 + i))
        try:
            pairs.append(products(at, u, v))
        except TypeError:  # a custom_vjp has no forward mode
            pairs.append((difference(at, u, v), difference(at, v, u)))
    first, second = np.array(pairs, float).T
    size = float(np.hypot(np.linalg.norm(first), np.linalg.norm(second)))
    figure = max(float(np.linalg.norm(first - second)) / max(size, 1e-300), dense or 0.0)
    passed = bool(figure <= TOLERANCE)
    words = "the force's Jacobian is symmetric"
    if not passed:
        words = (
            f"‖J − Jᵀ‖ / ‖J‖ = {figure:.1e}: no energy has this force. eqprop and "
            "vector_field_eqprop are biased, asymmetric_eqprop is not"
        )
    return Finding("symmetric", passed, figure, words)


def _state_errors(context: Context, key: jax.Array) -> Iterator[_Error]:
    energy = context.energy
    if energy is None:
        return
    measure = _measure(lambda state: jnp.sum(energy(state)))
    for i in range(POINTS):
        at = context.draw(fold_in(key, i))
        slope = trees.scale(-1.0, context.force(at))
        yield from _leaf_errors(("the force", "at state"), measure, at, slope, fold_in(key, 50 + i))


def _weight_errors(context: Context, key: jax.Array) -> Iterator[_Error]:
    system, params, x, clamped = context.system, context.params, context.x, context.clamped
    at = context.draw(fold_in(key, 200))
    v = normal_like(at, fold_in(key, 201))
    push = _measure(lambda p: trees.dot(v, system.force(p, system.clamp(p, x), at)))
    slope = jax.jit(system.dforce)(params, clamped, at, v)[0]
    yield from _leaf_errors(("∂force/∂θ", "of"), push, params, slope, fold_in(key, 202))
    if system.energy is not None and system.denergy is not None:
        energy = system.energy
        phases = jax.tree.map(lambda s: s[None], at)
        weights = jnp.ones((1,), jax.tree.leaves(at)[0].dtype)
        total = _measure(lambda p: jnp.sum(energy(p, system.clamp(p, x), at)))
        slope = jax.jit(system.denergy)(params, clamped, phases, weights)[0]
        yield from _leaf_errors(("∂E/∂θ", "of"), total, params, slope, fold_in(key, 202))


_Measure = Callable[[Any, Any], tuple[Any, Any]]


def _measure(value: Callable[[Any], Any]) -> _Measure:
    """(at, line) -> a value near `at`, and central differences along the line, one for each step.

    Integer leaves do not move.
    """
    steps = np.array([sign * h for h in STEPS for sign in (1.0, -1.0)])

    def moved(at: Any, line: Any, h: Any) -> Any:
        return jax.tree.map(lambda a, b: a + h * b if is_inexact(a) else a, at, line)

    @jax.jit
    def measure(at: Any, line: Any) -> tuple[Any, Any]:
        values = jax.lax.map(lambda h: value(moved(at, line, h)), steps)
        return values[0], (values[::2] - values[1::2]) / (2.0 * steps[::2])

    return measure


def _leaf_errors(
    what: tuple[str, str], measure: _Measure, at: Any, slope: Any, key: jax.Array
) -> Iterator[_Error]:
    """|difference − slope along a line| over their size plus a thousandth of the whole slope.

    Each line has length 1 and moves one leaf only. The better of two step lengths counts.
    """
    leaves, structure = jax.tree.flatten(at)
    slopes = [np.asarray(leaf) for leaf in jax.tree.leaves(slope)]
    floating = [leaf.size > 0 and is_inexact(leaf) for leaf in leaves]
    whole = np.sqrt(sum(float(np.sum(s * s)) for s, f in zip(slopes, floating, strict=True) if f))
    for i, name in enumerate(trees.names(at)):
        if not floating[i]:
            continue
        line = normal_like(leaves[i], fold_in(key, i))
        lines = [np.zeros(leaf.shape, leaf.dtype) for leaf in leaves]
        lines[i] = line / np.linalg.norm(line)
        ours = float(np.sum(slopes[i] * lines[i]))
        value, differences = measure(at, jax.tree.unflatten(structure, lines))
        errors = []
        for h, theirs in zip(STEPS, map(float, differences), strict=True):
            noise = 20.0 * np.finfo(np.float64).eps * abs(float(value)) / h
            size = abs(ours) + abs(theirs) + 1e-3 * whole + 1e-9
            where = " ".join([*what, name]) if name else what[0]
            errors.append(_Error(where, abs(ours - theirs) / size, TOLERANCE + noise / size))
        yield min(errors, key=lambda error: error.ratio)
