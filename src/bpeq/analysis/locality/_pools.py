"""Sums over axes and products of two arrays: what is pooled, and who reads it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bpeq.analysis.locality._units import BATCH, NONE, Dims, Units, labels, loose
from bpeq.analysis.locality._values import Atom, Content, Value, bent, opened, times


def reduced(eqn: Any, value: Value, axes: Sequence[int]) -> Value:
    """A sum, a maximum, … over some axes."""
    content = value.content
    if eqn.primitive.name != "reduce_sum":
        content = bent(content)
    dims = tuple(dim for axis, dim in enumerate(value.dims) if axis not in set(axes))
    if all(eqn.invars[0].aval.shape[axis] == 1 for axis in axes):
        return Value((content,), dims)
    return pooled(eqn, Value((content,), dims), NONE.union(*(value.dims[axis] for axis in axes)))


def pooled(eqn: Any, made: Value, gone: frozenset[Any]) -> Value:
    """What a sum over axes has become: perhaps one number, or the same for all examples."""
    if not any(content.known for content in made.contents):
        return made.whole
    shape = eqn.outvars[0].aval.shape
    number = loose(shape, made.dims) or (labels((gone,)) and not labels(made.dims))

    def one(content: Content) -> Content:
        content = content._replace(pooled=content.known and (content.pooled or BATCH in gone))
        if not number or not content.known:
            return content
        terms = frozenset({frozenset({_number(content)})})
        return content._replace(terms=terms, errors=False)  # the number's terms tell of those

    return made._replace(contents=tuple(one(content) for content in made.contents))


def _number(content: Content) -> Atom:
    examples = any(atom.pooled for term in content.terms for atom in term)
    return Atom("number", inner=opened(content.terms), pooled=content.pooled or examples)


def product(
    values: Sequence[Value],
    dims: Dims,
    units: Units,
    summed: Sequence[tuple[int, int]],
    places: Sequence[int | None],
) -> Value:
    """A contraction of two arrays neither of which is a weight.

    Args:
      summed: pairs of axes, of either array, that are summed over together or stand for the same.
      places: where the axis of either array's pieces comes to lie; None where it is summed over.
    """
    left, right = values
    alike = left.sizes == right.sizes and (left.axis, right.axis) in summed
    pieces = left.sizes or right.sizes
    if left.sizes and right.sizes and not alike:
        values, pieces = [left.whole, right.whole], ()
    rows = beside(values, len(pieces) or 1)
    axis = places[0] if left.sizes else places[1]
    made = Value(tuple(times(*row) for row in rows), dims, pieces, axis=axis or 0)
    return meeting(made.whole if axis is None else made, values, units)


def meeting(made: Value, values: Sequence[Value], units: Units) -> Value:
    """Where something pooled over the batch is read by a single example, that is said."""
    if not made.per_example:
        return made
    statistics = frozenset(
        Atom("batch", units.of(value.dims))
        for value in values
        if value.content.pooled and not value.per_example and not value.weights
        if labels(value.dims)
    )
    return made._replace(
        contents=tuple(
            content._replace(terms=frozenset(t | statistics for t in content.terms), pooled=False)
            for content in made.contents
        )
    )


def beside(values: Sequence[Value], pieces: int) -> list[tuple[Content, ...]]:
    """The contents that meet, piece by piece."""
    return [
        tuple(value.contents[i if value.sizes else 0] for value in values) for i in range(pieces)
    ]
