"""Which entry of which weight lies where: arrays that rearrange weights, computed on numbers.

Axis by axis it is followed what an array indexes; where weights are laid end to end, flattened or
looked up by a permutation, that is not enough, and the rearrangement is done on their entries'
numbers instead.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from bpeq.analysis.locality._units import NONE, Dims, Label

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
    """An array without data: a leaf, a constant, or what a primitive makes of such arrays."""

    coded: bool

    def __init__(self, eqn: Any = None, operands: Sequence[Places] = (), out: int = 0) -> None:
        self._eqn, self._operands, self._out = eqn, operands, out
        self.coded = any(place.coded for place in operands)
        self._array: Any = None
        self._leaf: tuple[int, Sequence[int]] | None = None

    @classmethod
    def constant(cls, array: Any) -> Places:
        made = cls()
        made._array = jnp.asarray(array)
        return made

    @classmethod
    def entries(cls, start: int, shape: Sequence[int]) -> Places:
        """The numbers of a leaf's entries, from start + 1."""
        made = cls()
        made.coded, made._leaf = True, (start, shape)
        return made

    @classmethod
    def of(cls, eqn: Any, operands: Sequence[Places | None], out: int) -> Places | None:
        """What a primitive makes; None where it takes anything else, or does more than move."""
        known = [place for place in operands if place is not None]
        name = eqn.primitive.name
        if len(known) < len(operands) or name not in ENTRYWISE | _MOVES | {"iota"}:
            return None
        if sum(place.coded for place in known) > 1 and name not in _MOVES:
            return None
        return cls(eqn, known, out)

    def array(self) -> Any:
        """A constant's entries; of weights the entries' numbers, 0 for what is no entry."""
        if self._array is None:
            self._array = self._computed()
            self._eqn, self._operands = None, ()
        return self._array

    def _computed(self) -> Any:
        if self._leaf is not None:
            return _numbers(*self._leaf)
        eqn, arrays = self._eqn, [place.array() for place in self._operands]
        if self.coded and eqn.primitive.name not in _MOVES:  # each entry stays where it is
            own = next(a for a, place in zip(arrays, self._operands, strict=True) if place.coded)
            return jnp.broadcast_to(own, eqn.outvars[0].aval.shape)
        if self.coded:
            arrays = [
                jnp.zeros(array.shape, jnp.int32)
                if not place.coded and jnp.issubdtype(array.dtype, jnp.inexact)
                else array
                for array, place in zip(arrays, self._operands, strict=True)
            ]
        made = eqn.primitive.bind(*arrays, **eqn.params)
        return made[self._out] if eqn.primitive.multiple_results else made


def numbered(shapes: Sequence[Sequence[int]]) -> list[Places | None]:
    """The leaves, their entries numbered through all of them."""
    ends = [0, *itertools.accumulate(math.prod(shape) for shape in shapes)]
    if ends[-1] >= 2**31:
        return [None] * len(shapes)
    return [Places.entries(start, shape) for start, shape in zip(ends, shapes, strict=False)]


def _numbers(start: int, shape: Sequence[int]) -> Any:
    return np.arange(start + 1, start + 1 + math.prod(shape), dtype=np.int32).reshape(shape)


def located(places: Places, shapes: Sequence[Sequence[int]]) -> dict[int, Dims]:
    """The leaves of which entries lie in an array, and along which of its axes each axis varies."""
    array, found, start = np.asarray(places.array()), {}, 0
    for leaf, shape in enumerate(shapes):
        size = math.prod(shape)
        own = (array > start) & (array <= start + size)
        if size and own.any():
            index = np.unravel_index(np.where(own, array - 1 - start, 0), shape)
            found[leaf] = _varying(leaf, own, index, shape)
        start += size
    return found


def _varying(leaf: int, own: Any, index: Sequence[Any], shape: Sequence[int]) -> Dims:
    dims: list[frozenset[Label]] = [NONE] * own.ndim
    for k, along in enumerate(index):
        for axis in range(own.ndim):
            low = np.where(own, along, shape[k]).min(axis)
            if (np.where(own, along, -1).max(axis) > low).any():
                dims[axis] |= {(leaf, k)}
    for k, n in enumerate(shape):  # an axis of one entry varies nowhere: it lies on one like it
        single = [axis for axis in range(own.ndim) if own.shape[axis] == 1 and not dims[axis]]
        if n == 1 and single:
            dims[single[0]] = frozenset({(leaf, k)})
    return tuple(dims)
