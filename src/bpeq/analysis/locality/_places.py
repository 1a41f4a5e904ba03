"""Follows each entry of a weight through rearrangements, by computing with the entries' numbers.

The audit follows the axes of arrays. This is not enough if weights are concatenated, flattened or
looked up by a permutation. Then the rearrangement is computed on the numbers of their entries.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import jax.numpy as jnp
import numpy as np

# These work entry by entry: the result has the axes of the weight.
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

    Args:
      compute: computes the array.
      coded: whether its entries are numbers of weights' entries, with 0 for other entries.
    """

    def __init__(self, compute: Callable[[], Any], coded: bool = False) -> None:
        self.coded, self._compute = coded, compute

    @cached_property
    def array(self) -> Any:
        """The entries of the array."""
        return self._compute()


def moved_places(eqn: Any, operands: Sequence[Places | None], out: int) -> Places | None:
    """Applies a primitive to arrays without data.

    Args:
      eqn: the equation.
      operands: the array of each operand; None if it depends on data.
      out: the index of the result.

    Returns:
      The result; None if an operand is None, or if the primitive does more than move entries.
    """
    known, name = [place for place in operands if place is not None], eqn.primitive.name
    coded, moves = sum(place.coded for place in known), name in _MOVES
    if len(known) < len(operands) or not (moves or name in ENTRYWISE or name == "iota"):
        return None
    if coded > 1 and not moves:
        return None

    def compute() -> Any:
        if coded and not moves:  # each entry keeps its place
            entries = next(place.array for place in known if place.coded)
            return jnp.broadcast_to(entries, eqn.outvars[0].aval.shape)
        arrays = [place.array for place in known]
        if coded:  # other numbers are not entries of weights
            arrays = [
                jnp.zeros(array.shape, jnp.int32)
                if not place.coded and jnp.issubdtype(array.dtype, jnp.inexact)
                else array
                for array, place in zip(arrays, known, strict=True)
            ]
        results = eqn.primitive.bind(*arrays, **eqn.params)
        return results[out] if eqn.primitive.multiple_results else results

    return Places(compute, coded > 0)


def numbered(shapes: Sequence[Sequence[int]]) -> list[Places | None]:
    """Numbers the entries of all leaves from 1 on.

    Args:
      shapes: the shape of each leaf.

    Returns:
      The numbers of each leaf; None for all if there are more than an int32 can hold.
    """
    ends = [0, *itertools.accumulate(map(math.prod, shapes))]
    if ends[-1] >= 2**31:
        return [None] * len(shapes)

    def numbers(start: int, shape: Sequence[int]) -> Places:
        last = start + 1 + math.prod(shape)
        return Places(lambda: np.arange(start + 1, last, dtype=np.int32).reshape(shape), True)

    return list(map(numbers, ends, shapes))


def located(places: Places, shapes: Sequence[Sequence[int]]) -> dict[int, Any]:
    """Finds the leaves whose entries lie in an array.

    Args:
      places: the array of entry numbers.
      shapes: the shape of each leaf.

    Returns:
      Leaf -> dims: the axis of the leaf that varies along each axis of the array.
    """
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
    for k, n in enumerate(shape):  # an axis of length 1 never varies: it goes on such an axis
        single = [a for a in range(inside.ndim) if inside.shape[a] == 1 and not dims[a]]
        if n == 1 and single:
            dims[single[0]] = frozenset({(leaf, k)})
    return tuple(dims)
