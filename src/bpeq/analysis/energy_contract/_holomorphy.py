"""Tests whether a program is complex-differentiable in the state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from bpeq.analysis.energy_contract._context import Context, Finding, normal_like
from bpeq.analysis.energy_contract._pieces import (
    IGNORED,
    PARTS,
    Operation,
    piecewise_operations,
)
from bpeq.core import trees
from bpeq.core.jaxprs import Interpreter, source_line
from bpeq.types import State

TOLERANCE = 1e-6  # the largest error of Cauchy and Riemann's equations
SPREADS = (0.3, 1.0, 3.0)  # standard deviations of the ends of the searched lines
STEPS = 33  # points of a line, between which an operation can change its piece
CIRCLE = 64  # points of a circle
RADII = (0.3, 0.1)


def holomorphic_finding(context: Context, needed: bool, key: jax.Array) -> Finding:
    """Tests Cauchy and Riemann's equations, and looks for piecewise operations in the program.

    A piecewise operation does not count if its pieces are one holomorphic function, as in the
    stable form of log Σ eˢ, which subtracts the maximum. A system that declares that it is not
    holomorphic is not searched for such operations.

    Args:
      context: the system and its states.
      needed: whether a program that is not holomorphic is a failure.
      key: draws a state, and lines from it.

    Returns:
      The finding "holomorphic".
    """
    at = context.draw(key)
    operations = piecewise_operations(lambda s: context.program(context.params, context.x, s), at)
    gap, error = _cauchy_riemann_gap(context, at, key)
    rough, declared = not gap <= TOLERANCE, context.system.traits.not_holomorphic
    joined = list[Operation]()
    if operations and not rough and not declared:
        joined = _joined_operations(context, operations, key)
        operations = [each for each in operations if each not in joined]
    if rough and not operations and not error:
        operations = _complex_parts(context, at)
    holds = not operations and not rough
    words = "complex-differentiable in the state"
    if operations:
        words = "not complex-differentiable: " + ", ".join(map(str, operations[:4]))
    elif error:
        words = f"cannot be computed on complex numbers: {error}"
    elif rough:
        words = f"Cauchy and Riemann's equations fail by {gap:.1e}"
    elif joined:
        words += f"; the pieces of {', '.join(map(str, joined[:4]))} are one function"
    if context.user_energy is None and holds == bool(declared):
        words += f"; the system says {declared or 'that it is'}"
    if holds:
        passed = None if declared and context.user_energy is None else True
    else:
        passed = False if needed else None
    return Finding("holomorphic", passed, gap, words)


def _joined_operations(
    context: Context, operations: Sequence[Operation], key: jax.Array
) -> list[Operation]:
    """The piecewise operations whose pieces are one holomorphic function.

    On lines between real states it finds places where an operation changes its piece. Around each
    it takes a circle of complex states along the line. A function f that is holomorphic inside has
    no negative powers on it: Σ_k f(z_k) e^{inθ_k} = 0 for n > 0. An operation that changes on no
    line stays unproved, and is not in the list.
    """
    run = lambda s: context.program(context.params, context.x, s)  # noqa: E731
    closed = jax.make_jaxpr(run)(context.interior)
    params, x = trees.cast((context.params, context.x), jnp.complex128)
    turns = np.exp(2j * np.pi * (np.arange(CIRCLE) + 0.5) / CIRCLE)

    @jax.jit
    def pieces(at: State) -> dict[Operation, Array]:
        search = _Pieces(operations)
        search.run(closed.jaxpr, closed.consts, jax.tree.leaves(at))
        return {one: jnp.concatenate(parts) for one, parts in search.pieces.items() if parts}

    @jax.jit
    def around(at: State, line: State, radius: Any) -> Array:
        def value(turn: Any) -> Array:
            step = trees.scale(radius * turn, trees.cast(line, jnp.complex128))
            moved = trees.add(trees.cast(at, jnp.complex128), step)
            leaves = jax.tree.leaves(context.program(params, x, moved))
            return jnp.concatenate([leaf.ravel() for leaf in leaves])

        return jax.lax.map(value, turns)

    def is_holomorphic(at: State, line: State) -> bool:
        for radius in RADII:  # a singularity may lie inside a large circle
            values = np.asarray(around(at, line, radius))
            with np.errstate(invalid="ignore"):
                powers = np.abs(np.fft.fft(values - values.mean(axis=0), axis=0))
            if powers[-CIRCLE // 4 :].max() <= TOLERANCE * max(float(powers.max()), 1e-300):
                return True
        return False

    proved: dict[Operation, bool] = {}
    for i, spread in enumerate(SPREADS):
        end = context.draw(jax.random.fold_in(key, i), spread)
        line = trees.sub(end, context.interior)

        def state(t: float, line: State = line) -> State:
            return trees.add(context.interior, trees.scale(t, line))

        rows = [pieces(state(t)) for t in np.linspace(0.0, 1.0, STEPS)]
        unit = trees.scale(1.0 / float(jnp.max(trees.max_abs(line))), line)
        for operation in (each for each in rows[0] if proved.get(each, True)):
            values = [np.asarray(row[operation]) for row in rows]
            j = next((j for j in range(1, STEPS) if (values[j] != values[j - 1]).any()), None)
            if j is None:
                continue
            low, high = (j - 1) / (STEPS - 1), j / (STEPS - 1)
            for _ in range(40):  # bisection
                middle = 0.5 * (low + high)
                same = (np.asarray(pieces(state(middle))[operation]) == values[j - 1]).all()
                low, high = (middle, high) if same else (low, middle)
            with jax.numpy_dtype_promotion("standard"):
                proved[operation] = is_holomorphic(state(high), unit)
    return [each for each in operations if proved.get(each, False)]


class _Pieces(Interpreter):
    """Runs a program on real numbers, and keeps which piece each entry of an operation takes.

    It knows no pieces of windows and of conversions to integers, and does not enter loops.
    """

    def __init__(self, operations: Sequence[Operation]) -> None:
        self._operations = operations
        self.pieces: dict[Operation, list[Array]] = {}
        self._line = ""

    def equation(self, eqn: Any, values: list[Any]) -> Sequence[Any]:
        outer, self._line = self._line, source_line(eqn, IGNORED) or self._line
        results = super().equation(eqn, values)
        operation = Operation(eqn.primitive.name, self._line)
        if operation in self._operations:
            pieces = _pieces_of(eqn, values, results)
            self.pieces.setdefault(operation, []).extend(jnp.ravel(p).astype(int) for p in pieces)
        self._line = outer
        return results


def _pieces_of(eqn: Any, values: list[Any], results: Sequence[Any]) -> list[Any]:
    """Numbers that say which piece each entry takes; empty for an unknown operation."""
    name = eqn.primitive.name
    if name in ("lt", "le", "gt", "ge", "argmax", "argmin", "floor", "ceil", "round"):
        return [results[0]]
    if name in ("max", "min"):
        return [values[0] > values[1]]
    if name in ("abs", "sign"):
        return [values[0] > 0]
    if name == "clamp":
        return [values[1] > values[0], values[1] > values[2]]
    if name in ("reduce_max", "reduce_min"):
        return [values[0] == jnp.expand_dims(results[0], eqn.params["axes"])]
    if name == "sort":
        return [jnp.argsort(values[0], axis=eqn.params["dimension"])]
    return [results[1]] if name == "top_k" else []


def _cauchy_riemann_gap(context: Context, at: State, key: jax.Array) -> tuple[float, str]:
    """|∂f/∂(imaginary) − i ∂f/∂(real)| over its size at a complex state, or the error message."""
    h, kind = 1e-5, jnp.complex128
    params, x = trees.cast((context.params, context.x), kind)
    line, off = (normal_like(at, k) for k in jax.random.split(key))
    state = trees.add(trees.cast(at, kind), trees.cast(trees.scale(1e-2j, off), kind))
    program = jax.jit(
        lambda s: [leaf.ravel() for leaf in jax.tree.leaves(context.program(params, x, s))]
    )
    slopes = []
    try:
        with jax.numpy_dtype_promotion("standard"):
            for turn in (1.0, 1j):
                step = trees.cast(trees.scale(h * turn, line), kind)
                ahead, behind = program(trees.add(state, step)), program(trees.sub(state, step))
                gap = jnp.concatenate(trees.sub(ahead, behind))
                slopes.append(np.asarray(gap) / (2 * h * turn))
    except Exception as error:  # a user's function may refuse complex numbers in any way
        return np.inf, f"{type(error).__name__}: {str(error).splitlines()[0]}"[:120]
    size = max(float(np.abs(slopes).max()), 1e-300)
    return float(np.abs(slopes[0] - slopes[1]).max() / size), ""


def _complex_parts(context: Context, at: State) -> list[Operation]:
    """The operations that split complex numbers, in the program traced at complex numbers."""
    params, x, state = trees.cast((context.params, context.x, at), jnp.complex128)
    with jax.numpy_dtype_promotion("standard"):
        return piecewise_operations(lambda s: context.program(params, x, s), state, PARTS)
