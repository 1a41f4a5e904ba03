"""Contractions: of a weight with what goes through it, or of two arrays with each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bpeq.locality._entries import entries, pooled, product, reduced
from bpeq.locality._values import BATCH, NONE, NOTHING, Kind, Value, join
from bpeq.locality._weights import Weights

At = tuple[int, ...]
"""Where in the program: the equations around, the innermost last."""


def dot(weights: Weights, at: At, eqn: Any, left: Value, right: Value) -> Value:
    """`dot_general`."""
    (lc, rc), (lb, rb) = eqn.params["dimension_numbers"]
    left, right = _as_weights(weights, at, (left, lc, lb), (right, rc, rb))
    gone = NONE
    for i, j in zip(lc, rc, strict=True):
        weights.units.unite(left.dims[i] | right.dims[j])
        gone |= left.dims[i] | right.dims[j]
    batch = [left.dims[i] | right.dims[j] for i, j in zip(lb, rb, strict=True)]
    sides = [
        [dim for axis, dim in enumerate(value.dims) if axis not in {*contracted, *shared}]
        for value, contracted, shared in ((left, lc, lb), (right, rc, rb))
    ]
    dims = (*batch, *sides[0], *sides[1])
    if left.weights and right.weights:
        content = join(left.content, right.content)
        return Value((content,), dims, weights=left.weights | right.weights)
    places = [_after(left, lc, lb, 0), _after(right, rc, rb, len(sides[0]))]
    if left.weights or right.weights:
        weight, other, i = (left, right, 1) if left.weights else (right, left, 0)
        free = NONE.union(*batch, *sides[1 - i])
        return weights.send(at, weight, other, dims, free, axis=places[i])
    summed = [*zip(lc, rc, strict=True), *zip(lb, rb, strict=True)]
    return pooled(eqn, product([left, right], dims, weights.units, summed, places), gone)


Side = tuple[Value, Sequence[int], Sequence[int]]
"""An operand of a `dot_general`, the axes that are summed over, those that both have."""


def _as_weights(weights: Weights, at: At, left: Side, right: Side) -> tuple[Value, Value]:
    """The operands; a matrix that no data is in, such as a random one, is a weight to the other.

    It sends the other's units to units of its own, unless what is summed over is the batch.
    """
    made = []
    for (own, contracted, shared), (other, theirs, _) in ((left, right), (right, left)):
        free = len(own.dims) - len(contracted) - len(shared)
        over_batch = any(BATCH in other.dims[axis] for axis in theirs)
        sends = other.content.known and not over_batch and not other.weights
        plain = own.content.kind == Kind.CONSTANT and not own.weights
        if plain and sends and free and contracted:
            own = weights.nameless(at, own)
        made.append(own)
    return made[0], made[1]


def convolution(weights: Weights, at: At, eqn: Any, left: Value, right: Value) -> Value:
    """`conv_general_dilated`: its kernel's input channels are summed over, whichever they are."""
    numbers = eqn.params["dimension_numbers"]
    gone = left.dims[numbers.lhs_spec[1]] | right.dims[numbers.rhs_spec[1]]
    weights.units.unite(gone)
    made = [NONE] * len(left.dims)
    made[numbers.out_spec[0]] = left.dims[numbers.lhs_spec[0]]
    made[numbers.out_spec[1]] = features = right.dims[numbers.rhs_spec[0]]
    dims = tuple(made)
    places = [
        numbers.out_spec[0] if left.axis == numbers.lhs_spec[0] else None,
        numbers.out_spec[1] if right.axis == numbers.rhs_spec[0] else None,
    ]
    if right.weights and not left.weights:
        return weights.send(at, right, left, dims, features, gone, places[0])
    summed = [(numbers.lhs_spec[1], numbers.rhs_spec[1])]
    return pooled(eqn, product([left, right], dims, weights.units, summed, places), gone)


def looked_up(weights: Weights, at: At, eqn: Any, table: Value, index: Value) -> Value:
    """`gather` of rows of a weight: a product with a one-hot vector."""
    made = entries(eqn, [table, index], weights.units)
    rows = set(eqn.params["dimension_numbers"].collapsed_slice_dims)
    free = NONE.union(*(dim for axis, dim in enumerate(table.dims) if axis not in rows))
    return weights.send(at, table, index.whole, made.dims, free)


def scaled(weights: Weights, at: At, values: Sequence[Value], made: Value) -> Value:
    """Entry by entry: a gain; or a matrix, whose sum over an axis may follow."""
    if not made.per_example:
        return made
    for weight, other in (values, values[::-1]):
        for leaf, through in weight.weights:
            if weights.ranks[leaf] > 1:
                made = made._replace(summand=made.summand | {(leaf, through)})
            elif not other.weights:
                weights.gain(at, leaf, through, other)
    return made


def reduction(weights: Weights, at: At, eqn: Any, value: Value, axes: Sequence[int]) -> Value:
    """A sum, a maximum, … over some axes; that of a matrix times activity is a contraction too."""
    made, gone = reduced(eqn, value, axes), NONE.union(*(value.dims[axis] for axis in axes))
    for leaf, through in value.summand:
        free = frozenset(label for dim in made.dims for label in dim if label[0] == leaf)
        if eqn.primitive.name == "reduce_sum" and free and any(o == leaf for o, _ in gone):
            weight = Value((NOTHING,), (), weights=frozenset({(leaf, through)}))
            return weights.send(at, weight, value.whole, made.dims, free)
    return made


def _after(
    value: Value, contracted: Sequence[int], shared: Sequence[int], before: int
) -> int | None:
    """Where a product has the axis on which an operand's pieces lie; `before` it the other's."""
    if value.axis in contracted:
        return None
    if value.axis in shared:
        return list(shared).index(value.axis)
    gone = {*contracted, *shared}
    return len(shared) + before + sum(i not in gone for i in range(value.axis))
