"""Whether an energy is holomorphic, or which operation it breaks by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bpeq.analysis.energy_contract._operations import PARTS, PIECES, Operation, operations
from bpeq.analysis.energy_contract._subject import Finding, Subject, drawn, like
from bpeq.core import trees
from bpeq.types import Params, State

ROUGH = 1e-6  # of Cauchy and Riemann's equations


def holomorphic_finding(
    subject: Subject, energy: Callable[..., Any] | None, needed: bool, key: jax.Array
) -> Finding:
    """Operations in pieces by the program; others by Cauchy and Riemann's equations.

    Args:
      energy: a plain one, for one example; None for a system, whose sweep, readout and ∂E/∂θ are
        what holomorphic EP runs on complex states.
      needed: whether not being holomorphic is a failure.
    """
    program = program_of(subject, energy)
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
    declared = subject.system.traits.not_holomorphic
    passed = holds or (False if needed else None)
    if energy is None and holds == bool(declared):
        words += f"; the system says {declared or 'that it is'}"
        passed = False if holds is False else None
    return Finding("holomorphic", passed, gap, words)


def program_of(subject: Subject, energy: Callable[..., Any] | None) -> Callable[..., Any]:
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
