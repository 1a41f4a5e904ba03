"""A loop over a batch that goes on with ever fewer examples, as these come to rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import eval_jaxpr
from jaxtyping import Array

from bpeq.types import State

PARTS = (4, 16)
"""Of a batch, the parts that go on alone until they settle."""

LEAST = 16
"""Fewer examples than this do not go on alone, unless a solver says otherwise."""

Step = Callable[[State], State]
Loop = Callable[[Step, State, Any, int], Any]


def some_of(step: Step) -> Callable[[Array], Step] | None:
    """rows -> the step on those examples alone; None where it cannot be had.

    Args:
      step: a step for a solver; a `rules` phase's has an attribute `some`.
    """
    return getattr(step, "some", None)


def run_compacting_active(
    loop: Loop,
    step: Step,
    state: State,
    carry: Any,
    parts: Sequence[int],
    axis: Callable[[Array], int] = lambda leaf: 0,
    least: int = LEAST,
) -> Any:
    """`loop` on the batch; once no more than 1/parts[0] of it is active, on these alone; and so on.

    loop(step, rest, carry, few) runs until no more than `few` are active, or it has had enough;
    `rest` is the part of `state` that belongs to its examples. `carry` is a named tuple of arrays
    with the batch on axis(array), 0 or -1, and of scalars; `active` `[batch]` says who still moves.
    A step that cannot be had for some examples stays whole.
    """
    some, batch = some_of(step), len(carry.active)
    sizes = [batch // n for n in parts if some and batch // n >= least]

    def go(step: Step, rest: State, carry: Any, rows: Array, sizes: list[int]) -> Any:
        if not sizes:
            return loop(step, rest, carry, 0)
        size, *smaller = sizes
        end = loop(step, rest, carry, size)
        count = jnp.cumsum(end.active, dtype=jnp.int32)
        place = jnp.where(end.active, count - 1, size)
        there = place < size  # all that are active, unless the loop had had enough
        # By a scatter: a sort takes as long as some sweeps. Places that stay empty are not active.
        chosen = jnp.zeros_like(rows, shape=size).at[place].set(_numbers(len(rows)), mode="drop")
        part = jax.tree.map(lambda a: _at(a, chosen, axis(a)), end)
        part = part._replace(active=_numbers(size) < count[-1])
        own, less = rows[chosen], jax.tree.map(lambda s: s[chosen], rest)
        assert some is not None
        part = go(some(own), less, part, own, smaller)
        return jax.tree.map(lambda a, b: _put(a, b, place, there, axis(a)), end, part)

    return go(step, state, carry, _numbers(batch), sizes)


def valued_as(fast: Callable[[Any], Any], plain: Callable[[Any], Any], given: Any) -> Any:
    """fast(given), with the derivatives of `plain`, its equal; both may close over arrays.

    A loop of no known length has no reverse-mode derivative; a plain scan has.
    """
    leaves, structure = jax.tree.flatten(given)

    def traced(f: Callable[[Any], Any]) -> Any:
        return jax.make_jaxpr(lambda *leaves: f(jax.tree.unflatten(structure, leaves)))(*leaves)

    quick, slow = traced(fast), traced(plain)

    @jax.custom_jvp
    def value(known: Any, leaves: Any) -> Any:
        return eval_jaxpr(quick.jaxpr, known[0], *leaves)

    @value.defjvp
    def derivative(primals: Any, tangents: Any) -> Any:
        def plainly(known: Any, leaves: Any) -> Any:
            return eval_jaxpr(slow.jaxpr, known[1], *leaves)

        return jax.jvp(plainly, primals, tangents)

    return jax.tree.unflatten(structure, value((quick.consts, slow.consts), leaves))


def _numbers(count: int) -> Array:
    return jnp.arange(count, dtype=jnp.int32)


def _at(a: Array, rows: Array, axis: int) -> Array:
    return jnp.take(a, rows, axis=axis, mode="clip") if a.ndim else a


def _put(a: Array, part: Array, place: Array, there: Array, axis: int) -> Array:
    if not a.ndim:
        return part
    mask = there.reshape(there.shape + (1,) * (a.ndim - 1)) if axis == 0 else there
    return jnp.where(mask, _at(part, place, axis), a)
