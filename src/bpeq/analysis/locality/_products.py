"""Contractions: of a weight with an array that passes through it, or of two arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bpeq.analysis.locality import _arrays
from bpeq.analysis.locality._arrays import BATCH, NO_LABELS, NO_OWNERS, Dims, Owner, Value, axes_of
from bpeq.analysis.locality._contents import Atom, Content, Kind, Label, bent, times, unpooled
from bpeq.analysis.locality._entries import cut_units, entries, meeting
from bpeq.analysis.locality._places import ENTRYWISE
from bpeq.analysis.locality._weights import Weights, named

Side = tuple[Value, Sequence[int], Sequence[int]]
"""An operand of a `dot_general`, the axes that are summed over, and the batch axes."""


def dot(weights: Weights, eqn: Any, left: Value, right: Value) -> Value:
    """The value of a `dot_general`.

    Args:
      weights, eqn: the uses of weights so far, to which this one is added; the equation.
      left: the first operand.
      right: the second operand.
    """
    (lc, rc), (lb, rb) = eqn.params["dimension_numbers"]
    both = left.content.known and right.content.known
    left, right = summed_over(weights, left, lc, both), summed_over(weights, right, rc, both)
    shapes = [var.aval.shape for var in eqn.invars]
    sides = _with_matrices(weights, shapes, (left, lc, lb), (right, rc, rb))
    left, right = sides[0][0], sides[1][0]
    # Axes that are summed over together index the same units.
    gone, pairs = NO_LABELS, [*zip(lc, rc, strict=True), *zip(lb, rb, strict=True)]
    for i, j in zip(lc, rc, strict=True):
        weights.units.unite(_distinct(weights, left)[i] | _distinct(weights, right)[j])
        gone |= left.dims[i] | right.dims[j]
    batch = [left.dims[i] | right.dims[j] for i, j in zip(lb, rb, strict=True)]
    free = [_free(side) for side in sides]
    rest = [[side[0].dims[axis] for axis in axes] for side, axes in zip(sides, free, strict=True)]
    dims = (*batch, *rest[0], *rest[1])
    places = [_place(sides[0], 0), _place(sides[1], len(rest[0]))]
    pending = left.summand | right.summand
    if left.weights or right.weights:
        first = bool(left.weights) and not (right.weights and left.content.known)
        weight, other, i = (left, right, 1) if first else (right, left, 0)
        if other.content.known or (other.content.random and not other.weights):
            summed, over = [weight.dims[axis] for axis in (rc, lc)[i]], [*batch, *rest[1 - i]]
            sent = weights.send(weight.weights, other, dims, summed, over, places[i])
            return sent._replace(summand=pending | other.weights)
        content, owners = times(left.content, right.content), left.weights | right.weights
        if (_steady(left, lc) and right.weights) or (_steady(right, rc) and left.weights):
            weights.met |= {leaf for leaf, _ in owners}
            return Value((content,), dims)
        return Value((content,), (*batch, *_mixed_axes(*sides)), weights=owners)
    if both:
        left, right = left.signalled, right.signalled
    product = meeting(_product([left, right], dims, pairs, places), [left, right], weights.units)
    product = product._replace(picked=left.picked | right.picked)
    repeated = [axis in side[0].spread for side, axes in zip(sides, free, strict=True)
                for axis in axes]  # fmt: skip
    spread = frozenset(len(batch) + i for i, flag in enumerate(repeated) if flag)
    return pooled(eqn, product, gone)._replace(summand=pending, spread=spread)


def _free(side: Side) -> list[int]:
    value, contracted, shared = side
    return [axis for axis in range(len(value.dims)) if axis not in {*contracted, *shared}]


def _mixed_axes(left: Side, right: Side) -> list[frozenset[Label]]:
    """The dims of weights times constants, which mix the axes of the weights."""
    dims: list[frozenset[Label]] = []
    for side, (other, summed, _) in ((left, right), (right, left)):
        value, through = side[0], NO_LABELS.union(*(other.dims[axis] for axis in summed))
        mixes = bool(other.weights) and not value.weights
        for axis in _free(side):
            carried = mixes and axis not in value.spread
            dims.append(value.dims[axis] | through if carried else value.dims[axis])
    return dims


def _steady(value: Value, axes: Sequence[int]) -> bool:
    """Whether it is the state of units without input, with equal entries along the other axes.

    A weight turns such a state into another such state. Its columns then cannot be told apart.
    """
    rest = {*range(len(value.dims))} - {*axes}
    vector = bool(value.weights) and all(
        axes_of(leaf, [value.dims[a] for a in axes]) for leaf, _ in value.weights
    )
    return rest <= value.spread and ({*axes} <= value.spread or vector)


def summed_over(weights: Weights, value: Value, axes: Sequence[int], both: bool = False) -> Value:
    """Records a sum over axes of a product of weights and data: this is a contraction.

    Args:
      weights: the uses of weights so far; this one is added.
      value: the array.
      axes: the axes that will be summed over.
      both: whether another array passes through a weight in `value`.
    """
    owners = value.summand | (value.weights if value.content.known and not both else NO_OWNERS)
    summed = [value.dims[axis] for axis in axes]
    due = frozenset(pair for pair in owners if axes_of(pair[0], summed))
    if not due:
        return value
    free = [dim for axis, dim in enumerate(value.dims) if axis not in {*axes}]
    other = value._replace(dims=tuple(summed))
    sent = weights.send(due, other, value.dims, summed, free, value.axis)
    return sent._replace(weights=value.weights - due, summand=value.summand - due)


def _with_matrices(
    weights: Weights, shapes: Sequence[Sequence[int]], left: Side, right: Side
) -> tuple[Side, Side]:
    """The operands. A matrix without data, such as a random one, becomes a weight.

    It sends the other's units to its own units, unless the sum is over the batch. A matrix whose
    columns are equal, or that has only one, pools the units into a number.
    """
    sides = []
    for shape, side, (other, summed, _) in zip(shapes, (left, right), (right, left), strict=True):
        value, contracted, shared = side
        over_batch = any(BATCH in other.dims[axis] for axis in summed)
        sends = other.content.known and not over_batch and not other.weights
        plain = value.content.kind == Kind.CONSTANT and not value.weights
        several = any(shape[axis] > 1 and axis not in value.spread for axis in _free(side))
        if plain and sends and contracted and several:
            value = weights.nameless(value)
        sides.append((value, contracted, shared))
    return sides[0], sides[1]


def convolution(weights: Weights, eqn: Any, left: Value, right: Value) -> Value:
    """The value of a `conv_general_dilated`, which sums over the kernel's input channels.

    Args:
      weights, eqn: the uses of weights so far, to which this one is added; the equation.
      left: the input.
      right: the kernel.
    """
    numbers = eqn.params["dimension_numbers"]
    (example, channel), (out, into) = numbers.lhs_spec[:2], numbers.rhs_spec[:2]
    left = summed_over(weights, left, [channel], right.content.known)
    gone = left.dims[channel] | right.dims[into]
    weights.units.unite(_distinct(weights, left)[channel] | _distinct(weights, right)[into])
    every = [NO_LABELS] * len(left.dims)
    every[numbers.out_spec[0]], every[numbers.out_spec[1]] = left.dims[example], right.dims[out]
    dims = tuple(every)
    places = [
        numbers.out_spec[0] if left.axis == example else None,
        numbers.out_spec[1] if right.axis == out else None,
    ]
    if right.weights and not left.weights:
        summed, free = [right.dims[into]], [right.dims[out]]
        sent = weights.send(right.weights, left, dims, summed, free, places[0])
        return sent._replace(summand=left.summand)
    values = [left, right]
    if left.content.known and right.content.known:
        values = [left.signalled, right.signalled]
    result = _product(values, dims, [(channel, into)], places)
    result = result._replace(picked=values[0].picked | values[1].picked)
    return pooled(eqn, meeting(result, values, weights.units), gone)


def looked_up(weights: Weights, eqn: Any, table: Value, index: Value) -> Value:
    """The value of a `gather` of rows of a weight. It is a product with a one-hot vector.

    Args:
      weights, eqn: the uses of weights so far, to which this one is added; the equation.
      table: the weight.
      index: the indices.
    """
    dims = entries(eqn, [table, index], weights.units).dims
    rows = set(eqn.params["dimension_numbers"].collapsed_slice_dims)
    summed = [dim for axis, dim in enumerate(table.dims) if axis in rows]
    free = [dim for axis, dim in enumerate(table.dims) if axis not in rows]
    left = tuple(dim - NO_LABELS.union(*summed) for dim in dims)
    return weights.send(table.weights, index.whole, left, summed, free)


def combined(weights: Weights, eqn: Any, values: Sequence[Value], result: Value) -> Value:
    """Records weights that meet data entry by entry: a gain, a bias, or a matrix before its sum.

    Args:
      weights, eqn: the uses of weights so far, to which this one is added; the equation.
      values: the operands.
      result: the value of the result so far.
    """
    name, rank = eqn.primitive.name, len(eqn.outvars[0].aval.shape)
    if name not in ENTRYWISE or rank != len(result.dims):
        return result
    for i, value in enumerate(values):
        for leaf, through in named(value.weights - result.weights):
            if _arrays.tangled(leaf, value.dims):
                continue
            if name in ("mul", "div"):
                result = _scaled(weights, eqn, values, i, (leaf, through), result)
                continue
            here, adds = axes_of(leaf, value.dims), name in ("add", "sub", "add_any")
            if len(here) < 2 and (len(here) == weights.ranks[leaf] or (adds and not here)):
                weights.met.add(leaf)  # a bias, or a function of one
            elif adds and len(here) < 2:  # a row: a later product may use the rest
                result = result._replace(summand=result.summand | {(leaf, _arrays.ADDED)})
    return result


def _scaled(
    weights: Weights, eqn: Any, values: Sequence[Value], i: int, owner: Owner, result: Value
) -> Value:
    """The product `result` of values, where a weight is part of the i-th value."""
    leaf, through = owner
    here, rank = axes_of(leaf, values[i].dims), weights.ranks[leaf]
    if rank and not here:
        return result
    others = [(v, eqn.invars[j].aval.shape) for j, v in enumerate(values) if j != i]
    along = {axis for axis, dim in enumerate(values[i].dims) if axes_of(leaf, [dim])}
    if len(here) == rank < 2:  # a gain
        if not any(v.weights for v, _ in others) and eqn.primitive.name == "mul":
            units = weights.units.of(others[0][0])
            weights.note(leaf, frozenset(), (units, units), through, others[0][0])
        weights.met.add(leaf)
        return result
    if len(here) == rank or not all(
        a in v.spread or len(shape) <= a or shape[a] == 1 for a in along for v, shape in others
    ):
        return result._replace(summand=result.summand | {owner})
    # the weight's entries for one unit, times the activity of that unit
    free = [values[i].dims[axis] for axis in along]
    sent = weights.send(frozenset({owner}), result, result.dims, (), free, result.axis)
    contents = []
    for old, new in zip(result.contents, sent.contents, strict=True):
        numbers = {atom for term in old.terms for atom in term if atom.what == "number"}
        contents.append(new._replace(terms=frozenset(term | numbers for term in new.terms)))
    return sent._replace(contents=tuple(contents), summand=result.summand)


def across(weights: Weights, result: Value, values: Sequence[Value], axis: int) -> Value:
    """Adds to the dims of concatenated pieces the axes of which each piece has one entry.

    Args:
      weights: the uses of weights so far.
      result: the concatenated pieces.
      values: the pieces.
      axis: the axis of concatenation.
    """
    laid = result.dims[axis]
    for leaf in {leaf for leaf, _ in result.weights | result.summand}:
        having = [v for v in values if any(leaf == owner for owner, _ in v.weights | v.summand)]
        if len(having) > 1:
            picked = {*range(weights.ranks[leaf])} - axes_of(leaf, result.dims)
            laid |= {(leaf, k) for k in picked}
    return result._replace(dims=(*result.dims[:axis], laid, *result.dims[axis + 1 :]))


def reduction(weights: Weights, eqn: Any, value: Value) -> Value:
    """The value of a sum, maximum or similar. For a matrix times activity it is a contraction.

    Args:
      weights, eqn: the uses of weights so far, to which this one is added; the equation.
      value: the operand.
    """
    shape = eqn.invars[0].aval.shape
    axes = eqn.params["dimensions" if eqn.primitive.name == "reduce" else "axes"]
    adds = eqn.primitive.name == "reduce_sum"
    whole = {leaf for leaf, _ in value.weights if _all_of(weights, shape, value, leaf, axes)}
    weights.met |= whole  # a number that uses all entries has no direction
    value = value._replace(weights=frozenset(p for p in value.weights if p[0] not in whole))
    if adds:
        value = summed_over(weights, value, axes)
    gone = NO_LABELS.union(*(value.dims[axis] for axis in axes))
    dims = tuple(dim for axis, dim in enumerate(value.dims) if axis not in axes)
    result = Value((value.content if adds else bent(value.content),), dims, picked=value.picked)
    if any(shape[axis] != 1 for axis in axes):
        left = {weights.units.find(label) for label in _arrays.labels(dims)}
        if left and value.content.known and not value.weights and not value.summand:
            lost = {weights.units.find(label) for label in _arrays.labels((gone,))} - left
            result = result.mapped(lambda content: _summed_atoms(weights, content, lost))
        result = pooled(eqn, result, gone)
    else:
        result = cut_units(eqn, [value], result, weights.units)
    kept = value.weights if not value.per_example else NO_OWNERS
    pending = frozenset(pair for pair in value.summand if not axes_of(pair[0], [gone]))
    return result._replace(weights=kept, summand=pending)


def _summed_atoms(weights: Weights, content: Content, lost: set[Label]) -> Content:
    """The content after a sum over the units `lost`, whose states become signals to the others."""

    def one(atom: Atom) -> Atom:
        if atom.what != "state" or atom.where is None or weights.units.find(atom.where) not in lost:
            return atom
        inner = frozenset({frozenset({atom})})
        return Atom("signal", inner=inner, pooled=content.pooled)

    terms = frozenset(frozenset(map(one, term)) for term in content.terms)
    return content._replace(terms=terms)


def _all_of(
    weights: Weights, shape: Sequence[int], value: Value, leaf: int, axes: Sequence[int]
) -> bool:
    """Whether all entries of a leaf are reduced, without activity of single examples."""
    sizes = {k: shape[axis] for axis in axes for owner, k in value.dims[axis] if owner == leaf}
    full = [sizes.get(k) == n for k, n in enumerate(weights.shapes[leaf])]
    alone = not value.content.known or value.content.pooled
    return alone and all(full) and not _arrays.tangled(leaf, value.dims)


def pooled(eqn: Any, result: Value, gone: frozenset[Label]) -> Value:
    """Marks the result of a sum as pooled, if it is one number or the same for all examples.

    Args:
      eqn: the equation.
      result: the value of the sum.
      gone: the units that were summed over.
    """
    if not any(content.known for content in result.contents):
        return result.whole
    number = _arrays.without_units(eqn.outvars[0].aval.shape, result.dims)
    number = number or bool(_arrays.labels((gone,)) and not _arrays.labels(result.dims))

    def one(content: Content) -> Content:
        content = content._replace(pooled=content.known and (content.pooled or BATCH in gone))
        if not number or not content.known:
            return content
        examples = any(atom.pooled for term in content.terms for atom in term)
        atom = Atom("number", inner=unpooled(content.terms), pooled=content.pooled or examples)
        # the terms say whether errors are in it
        return content._replace(terms=frozenset({frozenset({atom})}), errors=False)

    return result.mapped(one)._replace(picked=frozenset() if number else result.picked)


def _product(
    values: Sequence[Value],
    dims: Dims,
    summed: Sequence[tuple[int, int]],
    places: Sequence[int | None],
) -> Value:
    """The value of a contraction of two arrays that are not weights.

    Args:
      values: the two arrays.
      dims: the dims of the result.
      summed: pairs of axes that are summed over together or are batch axes.
      places: for each array the axis of its pieces in the result; None if it is summed over.
    """
    left, right = values
    pieces = left.sizes or right.sizes
    same = left.sizes == right.sizes and (left.axis, right.axis) in summed
    if left.sizes and right.sizes and not same:
        values, pieces = [left.whole, right.whole], ()
    rows = _arrays.beside(values, len(pieces) or 1)
    axis = places[0] if left.sizes else places[1]
    result = Value(tuple(times(*row) for row in rows), dims, pieces, axis=axis or 0)
    return result.whole if axis is None else result


def _distinct(weights: Weights, value: Value) -> Dims:
    return weights.units.apart(value.dims) if value.weights else value.dims


def _place(side: Side, before: int) -> int | None:
    """Where a product has the axis on which an operand's pieces lie; `before` it the other's."""
    value, contracted, shared = side
    if value.axis in contracted:
        return None
    if value.axis in shared:
        return list(shared).index(value.axis)
    return len(shared) + before + sum(axis < value.axis for axis in _free(side))
