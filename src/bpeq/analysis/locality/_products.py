"""Contractions: of a weight with what goes through it, or of two arrays with each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bpeq.analysis.locality._entries import entries
from bpeq.analysis.locality._places import ENTRYWISE
from bpeq.analysis.locality._pools import pooled, product, reduced
from bpeq.analysis.locality._units import BATCH, NONE, Dims, Label, axes_of, tangled
from bpeq.analysis.locality._values import ADDED, Content, Kind, Owners, Value, times
from bpeq.analysis.locality._weights import Weights, named

At = tuple[int, ...]
"""Where in the program: the equations around, the innermost last."""
NO_OWNERS: Owners = frozenset()


def dot(weights: Weights, at: At, eqn: Any, left: Value, right: Value) -> Value:
    """`dot_general`."""
    (lc, rc), (lb, rb) = eqn.params["dimension_numbers"]
    both = left.content.known and right.content.known
    left, right = settled(weights, at, left, lc, both), settled(weights, at, right, rc, both)
    left, right = _as_weights(weights, at, (left, lc, lb), (right, rc, rb))
    gone = NONE
    for i, j in zip(lc, rc, strict=True):
        weights.units.unite(_plain(weights, left)[i] | _plain(weights, right)[j])
        gone |= left.dims[i] | right.dims[j]
    batch = [left.dims[i] | right.dims[j] for i, j in zip(lb, rb, strict=True)]
    sides = [
        [dim for axis, dim in enumerate(value.dims) if axis not in {*contracted, *shared}]
        for value, contracted, shared in ((left, lc, lb), (right, rc, rb))
    ]
    dims = (*batch, *sides[0], *sides[1])
    places = [_after(left, lc, lb, 0), _after(right, rc, rb, len(sides[0]))]
    pending = left.summand | right.summand
    if left.weights or right.weights:
        first = bool(left.weights) and not (right.weights and left.content.known)
        weight, other, i = (left, right, 1) if first else (right, left, 0)
        summed, free = [weight.dims[axis] for axis in (rc, lc)[i]], [*batch, *sides[1 - i]]
        if other.content.known or (other.content.random and not other.weights):
            sent = weights.send(at, weight.weights, other, dims, summed, free, places[i])
            return sent._replace(summand=pending | other.weights)
        content = times(left.content, right.content)
        if any(
            _steady(own, over) and weight.weights
            for own, over, weight in ((left, lc, right), (right, rc, left))
        ):
            weights.met |= {leaf for leaf, _ in left.weights | right.weights}
            return Value((content,), dims)
        moved = (*batch, *_onto((left, lc, lb), (right, rc, rb)))
        return Value((content,), moved, weights=left.weights | right.weights)
    alike = [*zip(lc, rc, strict=True), *zip(lb, rb, strict=True)]
    made = product([left, right], dims, weights.units, alike, places)
    flags = [
        axis in value.spread
        for value, contracted, shared in ((left, lc, lb), (right, rc, rb))
        for axis in range(len(value.dims))
        if axis not in {*contracted, *shared}
    ]
    spread = frozenset(len(batch) + i for i, flag in enumerate(flags) if flag)
    return pooled(eqn, made, gone)._replace(summand=pending, spread=spread)


def _onto(left: Side, right: Side) -> list[frozenset[Label]]:
    """The dims of weights times constants: these mix the axes of those, and carry them on."""
    made: list[frozenset[Label]] = []
    for (own, contracted, shared), (other, theirs, _) in ((left, right), (right, left)):
        through = NONE.union(*(other.dims[axis] for axis in theirs))
        mixes = bool(other.weights) and not own.weights
        for axis, dim in enumerate(own.dims):
            if axis not in {*contracted, *shared}:
                made.append(dim | through if mixes and axis not in own.spread else dim)
    return made


def _steady(value: Value, axes: Sequence[int]) -> bool:
    """Whether it is the state of units without an input: an entry for each, the same everywhere.

    What a weight makes of it is such a state too: no column of the weight can be told from that.
    """
    rest = {*range(len(value.dims))} - {*axes}
    vector = bool(value.weights) and all(
        axes_of(leaf, [value.dims[a] for a in axes]) for leaf, _ in value.weights
    )
    return rest <= value.spread and ({*axes} <= value.spread or vector)


def settled(
    weights: Weights, at: At, value: Value, axes: Sequence[int], sends: bool = False
) -> Value:
    """`value`, some axes of which will be summed over; of weights multiplied in, a contraction.

    sends: whether something else goes through a weight that is in `value`.
    """
    summed = [value.dims[axis] for axis in axes]
    free = [dim for axis, dim in enumerate(value.dims) if axis not in {*axes}]
    own = value.summand | (value.weights if value.content.known and not sends else NO_OWNERS)
    due = frozenset(pair for pair in own if axes_of(pair[0], summed))
    if not due:
        return value
    other = value._replace(dims=tuple(summed))
    made = weights.send(at, due, other, value.dims, summed, free, value.axis)
    return made._replace(weights=value.weights - due, summand=value.summand - due)


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
    left = settled(weights, at, left, numbers.lhs_spec[1:2], right.content.known)
    gone = left.dims[numbers.lhs_spec[1]] | right.dims[numbers.rhs_spec[1]]
    weights.units.unite(
        _plain(weights, left)[numbers.lhs_spec[1]] | _plain(weights, right)[numbers.rhs_spec[1]]
    )
    made = [NONE] * len(left.dims)
    made[numbers.out_spec[0]] = left.dims[numbers.lhs_spec[0]]
    made[numbers.out_spec[1]] = features = right.dims[numbers.rhs_spec[0]]
    dims = tuple(made)
    places = [
        numbers.out_spec[0] if left.axis == numbers.lhs_spec[0] else None,
        numbers.out_spec[1] if right.axis == numbers.rhs_spec[0] else None,
    ]
    if right.weights and not left.weights:
        inside = [right.dims[numbers.rhs_spec[1]]]
        sent = weights.send(at, right.weights, left, dims, inside, [features], places[0])
        return sent._replace(summand=left.summand)
    summed = [(numbers.lhs_spec[1], numbers.rhs_spec[1])]
    return pooled(eqn, product([left, right], dims, weights.units, summed, places), gone)


def looked_up(weights: Weights, at: At, eqn: Any, table: Value, index: Value) -> Value:
    """`gather` of rows of a weight: a product with a one-hot vector."""
    made = entries(eqn, [table, index], weights.units)
    rows = set(eqn.params["dimension_numbers"].collapsed_slice_dims)
    summed = [dim for axis, dim in enumerate(table.dims) if axis in rows]
    free = [dim for axis, dim in enumerate(table.dims) if axis not in rows]
    dims = tuple(dim - NONE.union(*summed) for dim in made.dims)
    return weights.send(at, table.weights, index.whole, dims, summed, free)


def combined(weights: Weights, at: At, eqn: Any, values: Sequence[Value], made: Value) -> Value:
    """Weights that meet data entry by entry: a gain, a bias; or a matrix, whose sum may follow."""
    name, shape = eqn.primitive.name, eqn.outvars[0].aval.shape
    if name not in ENTRYWISE or len(shape) != len(made.dims):
        return made
    for i, value in enumerate(values):
        for leaf, through in named(value.weights - made.weights):
            here, rank = axes_of(leaf, value.dims), weights.ranks[leaf]
            if tangled(leaf, value.dims):
                continue
            if name not in ("mul", "div"):
                adds = name in ("add", "sub", "add_any")
                if len(here) < 2 and (len(here) == rank or (adds and not here)):
                    weights.met.add(leaf)  # a bias, or a function of one
                elif adds and len(here) < 2:  # a row: what follows may multiply it by the rest
                    made = made._replace(summand=made.summand | {(leaf, ADDED)})
                continue
            if rank and not here:
                continue
            others = [v for j, v in enumerate(values) if j != i]
            along = {a for a, dim in enumerate(value.dims) if axes_of(leaf, [dim])}
            sizes = [var.aval.shape for j, var in enumerate(eqn.invars) if j != i]
            if len(here) == rank < 2:
                if not any(v.weights for v in others) and name == "mul":
                    weights.gain(at, leaf, through, others[0])
                weights.met.add(leaf)
            elif len(here) < rank and all(
                all(a in v.spread or len(size) <= a or size[a] == 1 for a in along)
                for v, size in zip(others, sizes, strict=True)
            ):  # one unit's entries of it times what that unit sends
                free = [value.dims[a] for a in along]
                own = frozenset({(leaf, through)})
                sent = weights.send(at, own, made, made.dims, (), free, made.axis)
                made = sent._replace(contents=_numbers(made, sent), summand=made.summand)
            else:
                made = made._replace(summand=made.summand | {(leaf, through)})
    return made


def _numbers(before: Value, after: Value) -> tuple[Content, ...]:
    """A number that goes through a column of a weight is still read as one."""
    made = []
    for old, new in zip(before.contents, after.contents, strict=True):
        numbers = {atom for term in old.terms for atom in term if atom.what == "number"}
        made.append(new._replace(terms=frozenset(term | numbers for term in new.terms)))
    return tuple(made)


def across(weights: Weights, made: Value, values: Sequence[Value], axis: int) -> Value:
    """Pieces laid along an axis, with the axes of weights that each piece has one entry of."""
    laid = made.dims[axis]
    for leaf in {leaf for leaf, _ in made.weights | made.summand}:
        having = [v for v in values if any(leaf == own for own, _ in v.weights | v.summand)]
        if len(having) > 1:
            picked = {*range(weights.ranks[leaf])} - axes_of(leaf, made.dims)
            laid |= {(leaf, k) for k in picked}
    return made._replace(dims=(*made.dims[:axis], laid, *made.dims[axis + 1 :]))


def reduction(weights: Weights, at: At, eqn: Any, value: Value, axes: Sequence[int]) -> Value:
    """A sum, a maximum, … over some axes; that of a matrix times activity is a contraction too."""
    whole = {leaf for leaf, _ in value.weights if _all_of(weights, eqn, value, leaf, axes)}
    weights.met |= whole  # a number of all its entries: it has no way
    kept = frozenset(pair for pair in value.weights if pair[0] not in whole)
    value = value._replace(weights=kept)
    if eqn.primitive.name == "reduce_sum":
        value = settled(weights, at, value, axes)
    made = reduced(eqn, value, axes)
    left = value.weights if not value.per_example else NO_OWNERS
    pending = {p for p in value.summand if not axes_of(p[0], [value.dims[a] for a in axes])}
    return made._replace(weights=left, summand=frozenset(pending))


def _all_of(weights: Weights, eqn: Any, value: Value, leaf: int, axes: Sequence[int]) -> bool:
    """Whether all of a leaf is reduced, and with it no activity of single examples."""
    shape = eqn.invars[0].aval.shape
    sizes = {k: shape[axis] for axis in axes for owner, k in value.dims[axis] if owner == leaf}
    full = [sizes.get(k) == n for k, n in enumerate(weights.shapes[leaf])]
    alone = not tangled(leaf, value.dims) and (not value.content.known or value.content.pooled)
    return alone and all(full)


def _plain(weights: Weights, value: Value) -> Dims:
    return weights.units.apart(value.dims) if value.weights else value.dims


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
