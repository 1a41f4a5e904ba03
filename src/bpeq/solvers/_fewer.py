"""A loop over a batch that drops the examples at rest and continues with those that still move."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import eval_jaxpr
from jaxtyping import Array

from bpeq.solvers._sweep import Sweep
from bpeq.types import State

PARTS = (4, 16)
"""A quarter of the batch continues alone, then a sixteenth."""

LEAST = 16
"""The default smallest number of examples that continues alone."""

Step = Callable[[State], State]
Loop = Callable[[Step, State, Any, int], Any]


def some_of(step: Step) -> Callable[[Array], Step] | None:
    """The function rows -> step on those examples alone.

    Args:
      step: a step for a solver; the rules give a `Sweep`.

    Returns:
      The function; None if the step needs the whole batch.
    """
    return step.some if isinstance(step, Sweep) else None


def run_compacting_active(
    loop: Loop,
    step: Step,
    state: State,
    carry: Any,
    parts: Sequence[int],
    axis: Callable[[Array], int] = lambda leaf: 0,
    least: int = LEAST,
) -> Any:
    """Run `loop` on the batch, then on smaller and smaller parts of it: the examples still active.

    Once no more than 1/parts[0] of the batch is active, the loop continues on these examples alone;
    then on 1/parts[1] of the batch. The results go back to the places of the examples.

    Args:
      loop: (step, rest, carry, few) -> carry. It runs until no more than `few` examples are active,
        or until its own limit. `rest` is the part of `state` of these examples.
      step: a step for a solver. If it has no `some`, the whole batch stays together.
      state: the state that the solver got.
      carry: a named tuple of scalars, and of arrays with the batch on axis(array). Its field
        `active` `[batch]` tells which examples still move.
      parts: n for each time that the loop continues on an n-th of the batch.
      axis: array of the carry -> its batch axis, 0 or -1.
      least: the smallest number of examples that continues alone.

    Returns:
      The carry at the end.
    """
    some, batch = some_of(step), len(carry.active)
    sizes = [batch // n for n in parts if some and batch // n >= least]

    def go(step: Step, rest: State, carry: Any, rows: Array, sizes: list[int]) -> Any:
        if not sizes:
            return loop(step, rest, carry, 0)
        size, *smaller = sizes
        end = loop(step, rest, carry, size)
        # Each active example gets one of `size` places, in order; the others get none.
        count = jnp.cumsum(end.active, dtype=jnp.int32)
        place = jnp.where(end.active, count - 1, size)
        there = place < size  # all active examples, unless the loop has reached its own limit
        # A scatter, since a sort takes as long as some sweeps. Empty places are not active.
        chosen = jnp.zeros_like(rows, shape=size).at[place].set(_numbers(len(rows)), mode="drop")
        part = jax.tree.map(lambda a: _at(a, chosen, axis(a)), end)
        part = part._replace(active=_numbers(size) < count[-1])
        own, less = rows[chosen], jax.tree.map(lambda s: s[chosen], rest)
        assert some is not None
        part = go(some(own), less, part, own, smaller)
        return jax.tree.map(lambda a, b: _put(a, b, place, there, axis(a)), end, part)

    return go(step, state, carry, _numbers(batch), sizes)


def with_derivatives_of(
    fast: Callable[[Any], Any], slow: Callable[[Any], Any], argument: Any
) -> Any:
    """fast(argument), with the derivatives of `slow`, a function with the same values.

    A loop of unknown length has no reverse-mode derivative; a scan has one. Both functions may
    close over arrays.

    Args:
      fast: gives the value.
      slow: gives the derivatives.
      argument: a tree of arrays.

    Returns:
      The value, as both functions give it.
    """
    leaves, structure = jax.tree.flatten(argument)

    def traced(f: Callable[[Any], Any]) -> Any:
        return jax.make_jaxpr(lambda *leaves: f(jax.tree.unflatten(structure, leaves)))(*leaves)

    fast_program, slow_program = traced(fast), traced(slow)

    @jax.custom_jvp
    def value(known: Any, leaves: Any) -> Any:
        return eval_jaxpr(fast_program.jaxpr, known[0], *leaves)

    @value.defjvp
    def derivative(primals: Any, tangents: Any) -> Any:
        def slowly(known: Any, leaves: Any) -> Any:
            return eval_jaxpr(slow_program.jaxpr, known[1], *leaves)

        return jax.jvp(slowly, primals, tangents)

    return jax.tree.unflatten(structure, value((fast_program.consts, slow_program.consts), leaves))


def _numbers(count: int) -> Array:
    """0, 1, ..., count − 1."""
    return jnp.arange(count, dtype=jnp.int32)


def _at(a: Array, rows: Array, axis: int) -> Array:
    """The rows of an array; a scalar as it is."""
    return jnp.take(a, rows, axis=axis, mode="clip") if a.ndim else a


def _put(a: Array, part: Array, place: Array, there: Array, axis: int) -> Array:
    """`part` put back into `a` at `there`; a scalar of the part replaces that of `a`."""
    if not a.ndim:
        return part
    mask = there.reshape(there.shape + (1,) * (a.ndim - 1)) if axis == 0 else there
    return jnp.where(mask, _at(part, place, axis), a)
