"""Checks whether an energy is holomorphic, and names the operation that is not."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from bpeq.analysis.energy_contract._context import Context, Finding, draw_state, normal_like
from bpeq.analysis.energy_contract.piecewise import PARTS, Operation, piecewise_operations
from bpeq.core import trees
from bpeq.types import State

TOLERANCE = 1e-6  # the largest error of Cauchy and Riemann's equations


def holomorphic_finding(context: Context, needed: bool, key: jax.Array) -> Finding:
    """Looks for piecewise operations in the program, and tests Cauchy and Riemann's equations.

    Args:
      context: the system and its states.
      needed: whether a program that is not holomorphic is a failure.
      key: draws a state, and lines from it.

    Returns:
      The finding "holomorphic".
    """
    at = draw_state(context, key)
    operations = piecewise_operations(lambda s: context.program(context.params, context.x, s), at)
    gap, error = _cauchy_riemann_gap(context, at, key)
    rough = not gap <= TOLERANCE
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
    declared = context.system.traits.not_holomorphic
    passed = holds or (False if needed else None)
    if context.user_energy is None and holds == bool(declared):
        words += f"; the system says {declared or 'that it is'}"
        passed = None if holds else False
    return Finding("holomorphic", passed, gap, words)


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
