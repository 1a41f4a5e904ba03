"""Which entry of which weight lies where: arrays that rearrange weights, computed on numbers.

The audit follows axis by axis what an array indexes. Where weights are laid end to end, flattened
or looked up by a permutation, that is not enough: then the rearrangement is done on the numbers of
their entries.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import jax.numpy as jnp
import numpy as np

# entry by entry: what these make of a weight has its axes
_ENTRYWISE = """
    abs acos acosh add add_any and asin asinh atan atan2 atanh bitcast_convert_type cbrt ceil
    clamp complex conj convert_element_type copy cos cosh digamma div eq erf erf_inv erfc exp exp2
    expm1 floor ge gt imag integer_pow is_finite le lgamma log log1p logistic lt max min mul ne
    neg nextafter not or pow real reduce_precision rem round rsqrt select_n shift_left
    shift_right_arithmetic shift_right_logical sign sin sinh sqrt square stop_gradient sub tan
    tanh xor
"""
_MOVING = """
    broadcast_in_dim concatenate dynamic_slice dynamic_update_slice gather pad reshape rev
    select_n slice split squeeze stack tile transpose unstack
"""
ENTRYWISE, _MOVES = frozenset(_ENTRYWISE.split()), frozenset(_MOVING.split())


class Places:
    """An array without data, computed when it is needed.

    coded: whether its entries are numbers of weights' entries, 0 for what is none of them.
    """

    def __init__(self, compute: Callable[[], Any], coded: bool = False) -> None:
        self.coded, self._compute = coded, compute

    @cached_property
    def array(self) -> Any:
        """The entries."""
        return self._compute()


def moved_places(eqn: Any, operands: Sequence[Places | None], out: int) -> Places | None:
    """What a primitive makes of such arrays; None if it takes others, or does more than move.

    Args:
      eqn: the equation.
      operands: of each operand.
      out: which of its results is meant.
    """
    known, name = [place for place in operands if place is not None], eqn.primitive.name
    coded, moves = sum(place.coded for place in known), name in _MOVES
    if len(known) < len(operands) or not (moves or name in ENTRYWISE or name == "iota"):
        return None
    if coded > 1 and not moves:
        return None

    def compute() -> Any:
        if coded and not moves:  # each entry stays where it is
            entries = next(place.array for place in known if place.coded)
            return jnp.broadcast_to(entries, eqn.outvars[0].aval.shape)
        arrays = [place.array for place in known]
        if coded:  # other numbers may come between, but are no entries
            arrays = [
                jnp.zeros(array.shape, jnp.int32)
                if not place.coded and jnp.issubdtype(array.dtype, jnp.inexact)
                else array
                for array, place in zip(arrays, known, strict=True)
            ]
        made = eqn.primitive.bind(*arrays, **eqn.params)
        return made[out] if eqn.primitive.multiple_results else made

    return Places(compute, coded > 0)


def numbered(shapes: Sequence[Sequence[int]]) -> list[Places | None]:
    """The leaves, their entries numbered through all of them from 1."""
    ends = [0, *itertools.accumulate(map(math.prod, shapes))]
    if ends[-1] >= 2**31:
        return [None] * len(shapes)

    def numbers(start: int, shape: Sequence[int]) -> Places:
        last = start + 1 + math.prod(shape)
        return Places(lambda: np.arange(start + 1, last, dtype=np.int32).reshape(shape), True)

    return list(map(numbers, ends, shapes))


def located(places: Places, shapes: Sequence[Sequence[int]]) -> dict[int, Any]:
    """The leaves of which entries lie in an array, and its dims: along which axis each varies."""
    array, dims, start = np.asarray(places.array), {}, 0
    for leaf, shape in enumerate(shapes):
        size = math.prod(shape)
        inside = (array > start) & (array <= start + size)
        if size and inside.any():
            index = np.unravel_index(np.where(inside, array - 1 - start, 0), shape)
            dims[leaf] = _varying(leaf, inside, index, shape)
        start += size
    return dims


def _varying(leaf: int, inside: Any, index: Sequence[Any], shape: Sequence[int]) -> Any:
    dims: list[frozenset[tuple[int, int]]] = [frozenset()] * inside.ndim
    for k, along in enumerate(index):
        for axis in range(inside.ndim):
            low = np.where(inside, along, shape[k]).min(axis)
            if (np.where(inside, along, -1).max(axis) > low).any():
                dims[axis] |= {(leaf, k)}
    for k, n in enumerate(shape):  # an axis of one entry varies nowhere: it lies on one like it
        single = [a for a in range(inside.ndim) if inside.shape[a] == 1 and not dims[a]]
        if n == 1 and single:
            dims[single[0]] = frozenset({(leaf, k)})
    return tuple(dims)
