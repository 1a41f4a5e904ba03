"""What the primitives that are no contraction make of the audit's values: sums, choices, pools."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bpeq.analysis.locality._places import ENTRYWISE
from bpeq.analysis.locality._pools import beside, meeting
from bpeq.analysis.locality._shapes import (
    followed,
    gathered,
    moved,
    moves,
    picked,
    scattered,
    stacked,
    united,
)
from bpeq.analysis.locality._units import NONE, Dims, Units
from bpeq.analysis.locality._values import (
    Atom,
    Content,
    Kind,
    Term,
    Value,
    add,
    bent,
    chosen,
    either,
    mixed,
    times,
)

Fold = Callable[[Sequence[Content]], Content]
_APART = ("pad", "select_and_scatter_add", "reduce_window_max", "reduce_window_sum")
_KNOWN = (*_APART, "stack", "concatenate", "dynamic_update_slice", "scatter", "scatter-add")
_ALONG = ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "sort")
_KEPT = ("sign", "round", "abs")  # functions of a weight that a row names


def entries(eqn: Any, values: Sequence[Value], units: Units) -> Value:
    """Any primitive that works entry by entry, moves entries, or lays them beside each other."""
    name, rank = eqn.primitive.name, len(eqn.outvars[0].aval.shape)
    if name in ("stack", "concatenate"):
        return _laid(eqn, values, units)
    first = moved(eqn, values[0].dims)
    if first is not None and len(values) == 1:
        value, axis = values[0], 0
        if value.sizes:
            place = followed(eqn, value.axis, sum(value.sizes))
            value, axis = (value.whole, 0) if place is None else (value, place)
        return value._replace(dims=first, axis=axis, spread=repeated(eqn, [value]))
    several = _several(eqn, values)
    dims = united([dims for _, dims in several], rank)
    apart = united([units.apart(dims) if v.weights else dims for v, dims in several], rank)
    for dim in apart:
        units.unite(dim)
    fold = _FOLDS.get(name, mixed)
    sizes, axis, rows = _aligned(eqn, values)
    made = Value(tuple(fold(row) for row in rows), dims, sizes, axis=axis)
    weights = frozenset[tuple[int, str]]().union(*(value.weights for value in values))
    if weights and not made.per_example and _keeps(name, values, rank):
        named = frozenset((leaf, name if name in _KEPT else via) for leaf, via in weights)
        made = made._replace(weights=named)
    if name in ENTRYWISE:
        made = made._replace(spread=repeated(eqn, values))
    if name in ENTRYWISE or name in ("gather", "pad"):
        made = made._replace(summand=frozenset().union(*(value.summand for value in values)))
    return _errors_begin(meeting(made, values, units), units)


def _keeps(name: str, values: Sequence[Value], rank: int) -> bool:
    """Whether a result's entries are those of the weights in it, along the axes that it has."""
    if name == "gather":
        return not values[1].weights
    known = name in ENTRYWISE or name in _KNOWN or name in _ALONG or name == "dynamic_slice"
    return known and all(len(value.dims) <= rank for value in values)


def _several(eqn: Any, values: Sequence[Value]) -> list[tuple[Value, Dims]]:
    """The operands, with what the axes of the result have from them."""
    name = eqn.primitive.name
    if name == "gather":
        index = gathered(eqn, values[1].dims)
        if values[0].weights or values[0].summand:
            index = picked(eqn, values[0].dims, index)
        return [(values[0], moved(eqn, values[0].dims) or ()), (values[1], index)]
    if name.startswith("scatter"):
        return [(values[0], values[0].dims), (values[2], strewn(eqn, values[2]))]
    own = [(value, value.dims) for value in values]
    if name == "dynamic_slice":
        return own[:1]
    return own[1:] if name == "select_and_scatter_add" else own


def repeated(eqn: Any, values: Sequence[Value]) -> frozenset[int]:
    """Along which axes of a result all entries are the same."""
    name, after = eqn.primitive.name, eqn.outvars[0].aval.shape
    every = frozenset(range(len(after)))
    before = eqn.invars[0].aval.shape
    if name == "broadcast_in_dim":
        places = eqn.params["broadcast_dimensions"]
        return every - {
            place
            for axis, place in enumerate(places)
            if before[axis] == after[place] and axis not in values[0].spread
        }
    if name == "transpose":
        return frozenset(
            i for i, a in enumerate(eqn.params["permutation"]) if a in values[0].spread
        )
    if moves(eqn) and len(values[0].spread) == len(before):
        return every
    if name not in ENTRYWISE:
        return frozenset()
    for var, value in zip(eqn.invars, values, strict=True):
        shape = var.aval.shape
        every &= {a for a in every if not shape or a in value.spread or shape[a] < after[a]}
    return every


def strewn(eqn: Any, updates: Value) -> Dims:
    """The axes of a scatter's result; where weights are scattered, also what the indices tell."""
    dims = scattered(eqn, updates.dims)
    if not updates.weights:
        return dims
    numbers = eqn.params["dimension_numbers"]
    window = set(numbers.update_window_dims)
    over = NONE.union(*(dim for axis, dim in enumerate(updates.dims) if axis not in window))
    told = {*numbers.scatter_dims_to_operand_dims, *numbers.operand_batching_dims}
    return tuple(dim | over if axis in told else dim for axis, dim in enumerate(dims))


def _aligned(
    eqn: Any, values: Sequence[Value]
) -> tuple[tuple[int, ...], int, list[tuple[Content, ...]]]:
    """The contents that meet, piece by piece where the same pieces lie on the same axis."""
    shape = eqn.outvars[0].aval.shape
    found = {(value.sizes, value.axis) for value in values if value.sizes}
    entry = all(_entrywise(var.aval.shape, shape) for var in eqn.invars)
    apart = eqn.primitive.name in _APART or (entry and eqn.primitive.name not in _ALONG)
    if len(found) == 1 and apart:
        ((sizes, axis),) = found
        if all(
            v.aval.shape[axis] == shape[axis]
            for v, value in zip(eqn.invars, values, strict=True)
            if value.sizes
        ):
            return sizes, axis, beside(values, len(sizes))
    return (), 0, [tuple(value.content for value in values)]


def follows(eqn: Any) -> bool:
    """Whether it is known what becomes of the axes: a primitive that moves, or changes no shape."""
    if eqn.primitive.name in _KNOWN or moves(eqn):
        return True
    shapes = [var.aval.shape for var in eqn.invars]
    return all(_entrywise(shape, out.aval.shape) for shape in shapes for out in eqn.outvars)


def _entrywise(shape: Sequence[int], out: Sequence[int]) -> bool:
    """Whether an operand gives each entry of a result its own, or one for many."""
    if len(shape) != len(out):
        return not shape
    return all(size in (1, n) for size, n in zip(shape, out, strict=True))


def _laid(eqn: Any, values: Sequence[Value], units: Units) -> Value:
    """Pieces one behind the other; on axis 0, where phases are, they stay apart."""
    stack = eqn.primitive.name == "stack"
    axis = eqn.params["axis"] if stack else eqn.params["dimension"]
    several = [stacked(eqn, value.dims) if stack else value.dims for value in values]
    dims = united(several, len(eqn.outvars[0].aval.shape))
    apart = [units.apart(d) if v.weights else d for v, d in zip(values, several, strict=True)]
    for place, dim in enumerate(united(apart, len(dims))):
        if place != axis:
            units.unite(dim)
    made = _pieces(eqn, values, dims, axis, stack)
    pending = [value.summand for value in values]
    made = made._replace(summand=frozenset[tuple[int, str]]().union(*pending))
    if not made.per_example:
        own = [value.weights for value in values]
        made = made._replace(weights=frozenset[tuple[int, str]]().union(*own))
    return made


def _pieces(eqn: Any, values: Sequence[Value], dims: Dims, axis: int, stack: bool) -> Value:
    pieces = {(value.sizes, value.axis) for value in values}
    ((sizes, along),) = pieces if len(pieces) == 1 else {((), 0)}
    if sizes and (stack or along != axis):  # beside each other: each piece has its like there
        rows = beside(values, len(sizes))
        along += stack and axis <= along
        return Value(tuple(either(row) for row in rows), dims, sizes, axis=along)
    contents = tuple(value.content for value in values)
    if axis == 0 and len(values) > 1:
        sizes = tuple(1 if stack else int(var.aval.shape[0]) for var in eqn.invars)
        return Value(contents, dims, sizes)
    return Value((either(contents),), dims)


def _errors_begin(made: Value, units: Units) -> Value:
    """An output's error is one thing to read: its state and its target are inside."""
    where = units.of(made.dims)
    error = Atom("state", where, "output error")

    def other(atom: Atom) -> bool:
        own = atom.where is None or units.find(atom.where) == where
        return atom.what != "target" and not (atom.what == "state" and own)

    def one(content: Content) -> Content:
        meets = any(atom.what == "target" for term in content.terms for atom in term)
        if content.kind != Kind.ERROR or content.carried or not meets:
            return content
        terms: frozenset[Term] = frozenset(
            frozenset({*filter(other, term), error}) for term in content.terms
        )
        return content._replace(terms=terms)

    return made._replace(contents=tuple(one(content) for content in made.contents))


def _first(row: Sequence[Content]) -> Content:
    return row[0]


def _choice(row: Sequence[Content]) -> Content:
    total = either(row)
    return total if total.kind == Kind.ZERO else bent(total)


_FOLDS: dict[str, Fold] = {
    **dict.fromkeys(["add", "sub", "add_any"], lambda row: add(*row)),
    **dict.fromkeys(["max", "min", "clamp"], _choice),
    **dict.fromkeys(["mul", "select_and_scatter_add"], lambda row: times(*row)),
    **dict.fromkeys(["dynamic_slice", "cumsum"], _first),
    "complex": lambda row: add(*row),
    "div": lambda row: times(row[0], bent(row[1])),
    "pad": either,
    "select_n": lambda row: chosen(row[0], either(row[1:])),
    "gather": lambda row: chosen(row[1], row[0]),
    "dynamic_update_slice": lambda row: either(row[:2]),
    "scatter": lambda row: either([row[0], chosen(row[1], row[2])]),
    "scatter-add": lambda row: add(row[0], chosen(row[1], row[2])),
}
