"""The values of primitives that are not contractions: sums, choices, concatenations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bpeq.analysis.locality._arrays import (
    NO_LABELS,
    NO_OWNERS,
    Dims,
    Units,
    Value,
    beside,
    labels,
)
from bpeq.analysis.locality._axes import (
    followed,
    gathered,
    moved,
    moves,
    picked,
    scattered,
    stacked,
)
from bpeq.analysis.locality._contents import (
    Atom,
    Content,
    Kind,
    add,
    bent,
    chosen,
    either,
    mixed,
    times,
)
from bpeq.analysis.locality._places import ENTRYWISE

Fold = Callable[[Sequence[Content]], Content]
_APART = ("pad", "select_and_scatter_add", "reduce_window_max", "reduce_window_sum")
_KNOWN = (*_APART, "stack", "concatenate", "dynamic_update_slice", "scatter", "scatter-add")
_ALONG = ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "sort")
_NAMED = ("sign", "round", "abs")  # functions of a weight that a row names


def entries(eqn: Any, values: Sequence[Value], units: Units) -> Value:
    """The value of a primitive that works entry by entry, moves entries, or concatenates.

    Args:
      eqn: the equation.
      values: the operands.
      units: which axes index the same units.

    Returns:
      The value of the result.
    """
    name, rank = eqn.primitive.name, len(eqn.outvars[0].aval.shape)
    if name in ("stack", "concatenate"):
        return _laid(eqn, values, units)
    first = moved(eqn, values[0].dims)
    if first is not None and len(values) == 1:
        value, axis = values[0], 0
        if value.sizes:
            place = followed(eqn, value.axis, sum(value.sizes))
            value, axis = (value.whole, 0) if place is None else (value, place)
        return value._replace(dims=first, axis=axis, spread=_repeated(eqn, [value]))
    operands, several = zip(*_operands(eqn, values), strict=True)
    dims = units.unite_axes(operands, several, rank)
    sizes, axis, rows = _aligned(eqn, values)
    fold = _FOLDS.get(name, mixed)
    result = Value(tuple(fold(row) for row in rows), dims, sizes, axis=axis)
    owners = NO_OWNERS.union(*(value.weights for value in values))
    if owners and not result.per_example and _keeps_entries(name, values, rank):
        functions = {(leaf, name if name in _NAMED else function) for leaf, function in owners}
        result = result._replace(weights=frozenset(functions))
    if name in ENTRYWISE:
        result = result._replace(spread=_repeated(eqn, values))
    if name in ENTRYWISE or name in ("gather", "pad"):
        result = result._replace(summand=NO_OWNERS.union(*(value.summand for value in values)))
    return _with_output_errors(meeting(result, values, units), units)


def follows(eqn: Any) -> bool:
    """Whether the axes of the result are known: the primitive moves entries or keeps the shape.

    Args:
      eqn: the equation.

    Returns:
      True if so.
    """
    if eqn.primitive.name in _KNOWN or moves(eqn):
        return True
    shapes = [var.aval.shape for var in eqn.invars]
    return all(_fits(shape, out.aval.shape) for shape in shapes for out in eqn.outvars)


def meeting(result: Value, values: Sequence[Value], units: Units) -> Value:
    """Marks values that were pooled over the batch and that a single example now reads.

    Args:
      result: the value of the result.
      values: the operands.
      units: which axes index the same units.

    Returns:
      The value of the result.
    """
    if not result.per_example:
        return result
    statistics = frozenset(
        Atom("batch", units.of(value.dims))
        for value in values
        if value.content.pooled and not value.per_example and not value.weights
        if labels(value.dims)
    )
    contents = (
        content._replace(terms=frozenset(t | statistics for t in content.terms), pooled=False)
        for content in result.contents
    )
    return result._replace(contents=tuple(contents))


def _keeps_entries(name: str, values: Sequence[Value], rank: int) -> bool:
    """Whether a result's entries are those of the weights in it, along the axes that it has."""
    if name == "gather":
        return not values[1].weights
    known = name in ENTRYWISE or name in (*_KNOWN, *_ALONG, "dynamic_slice")
    return known and all(len(value.dims) <= rank for value in values)


def _operands(eqn: Any, values: Sequence[Value]) -> list[tuple[Value, Dims]]:
    """The operands, with their dims in the result."""
    name, pairs = eqn.primitive.name, [(value, value.dims) for value in values]
    if name == "gather":
        index = gathered(eqn, values[1].dims)
        if values[0].weights or values[0].summand:
            index = picked(eqn, values[0].dims, index)
        return [(values[0], moved(eqn, values[0].dims) or ()), (values[1], index)]
    if name.startswith("scatter"):
        return [pairs[0], (values[2], _scattered(eqn, values[2]))]
    if name == "dynamic_slice":
        return pairs[:1]
    return pairs[1:] if name == "select_and_scatter_add" else pairs


def _repeated(eqn: Any, values: Sequence[Value]) -> frozenset[int]:
    """The axes of a result along which all entries are equal."""
    name, after, before = eqn.primitive.name, eqn.outvars[0].aval.shape, eqn.invars[0].aval.shape
    every, spread = frozenset(range(len(after))), values[0].spread
    if name == "broadcast_in_dim":
        places = enumerate(eqn.params["broadcast_dimensions"])
        return every - {p for a, p in places if before[a] == after[p] and a not in spread}
    if name == "transpose":
        return frozenset(i for i, a in enumerate(eqn.params["permutation"]) if a in spread)
    if moves(eqn) and len(spread) == len(before):
        return every
    if name not in ENTRYWISE:
        return frozenset()
    for var, value in zip(eqn.invars, values, strict=True):
        shape = var.aval.shape
        every &= {a for a in every if not shape or a in value.spread or shape[a] < after[a]}
    return every


def _scattered(eqn: Any, updates: Value) -> Dims:
    """The dims of a scatter. If weights are scattered, they include the units of the indices."""
    dims = scattered(eqn, updates.dims)
    if not updates.weights:
        return dims
    numbers = eqn.params["dimension_numbers"]
    indexed = {*numbers.scatter_dims_to_operand_dims, *numbers.operand_batching_dims}
    over = NO_LABELS.union(
        *(d for axis, d in enumerate(updates.dims) if axis not in numbers.update_window_dims)
    )
    return tuple(dim | over if axis in indexed else dim for axis, dim in enumerate(dims))


def _aligned(
    eqn: Any, values: Sequence[Value]
) -> tuple[tuple[int, ...], int, list[tuple[Content, ...]]]:
    """Pairs the contents of operands, piece by piece if the same pieces lie on the same axis."""
    name, shape = eqn.primitive.name, eqn.outvars[0].aval.shape
    operands = [(value, var.aval.shape) for value, var in zip(values, eqn.invars, strict=True)]
    places = {(value.sizes, value.axis) for value in values if value.sizes}
    entrywise = name not in _ALONG and all(_fits(size, shape) for _, size in operands)
    if len(places) == 1 and (entrywise or name in _APART):
        ((sizes, axis),) = places
        if all(size[axis] == shape[axis] for value, size in operands if value.sizes):
            return sizes, axis, beside(values, len(sizes))
    return (), 0, [tuple(value.content for value in values)]


def _fits(shape: Sequence[int], out: Sequence[int]) -> bool:
    """Whether each entry of a result uses one entry of the operand."""
    if len(shape) != len(out):
        return not shape
    return all(size in (1, n) for size, n in zip(shape, out, strict=True))


def _laid(eqn: Any, values: Sequence[Value], units: Units) -> Value:
    """Concatenates pieces. On axis 0, which holds phases, they stay separate."""
    stack = eqn.primitive.name == "stack"
    axis = eqn.params["axis"] if stack else eqn.params["dimension"]
    several = [stacked(eqn, value.dims) if stack else value.dims for value in values]
    dims = units.unite_axes(values, several, len(eqn.outvars[0].aval.shape), axis)
    result = _pieces(eqn, values, dims, axis, stack)
    result = result._replace(summand=NO_OWNERS.union(*(value.summand for value in values)))
    if result.per_example:
        return result
    return result._replace(weights=NO_OWNERS.union(*(value.weights for value in values)))


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


def _with_output_errors(result: Value, units: Units) -> Value:
    """Replaces the state and the target inside an output's error by the error."""
    where = units.of(result.dims)
    error = Atom("state", where, "output error")

    def inside(atom: Atom) -> bool:
        here = atom.where is None or units.find(atom.where) == where
        return atom.what == "target" or (atom.what == "state" and here)

    def one(content: Content) -> Content:
        meets = any(atom.what == "target" for term in content.terms for atom in term)
        if content.kind != Kind.ERROR or content.carried or not meets:
            return content
        terms = (frozenset(a for a in term if not inside(a)) | {error} for term in content.terms)
        return content._replace(terms=frozenset(terms))

    return result._replace(contents=tuple(map(one, result.contents)))


def _choice(row: Sequence[Content]) -> Content:
    total = either(row)
    return total if total.kind == Kind.ZERO else bent(total)


_FOLDS: dict[str, Fold] = {
    **dict.fromkeys(["add", "sub", "add_any", "complex"], lambda row: add(*row)),
    **dict.fromkeys(["max", "min", "clamp"], _choice),
    **dict.fromkeys(["mul", "select_and_scatter_add"], lambda row: times(*row)),
    **dict.fromkeys(["dynamic_slice", "cumsum"], lambda row: row[0]),
    "div": lambda row: times(row[0], bent(row[1])),
    "pad": either,
    "select_n": lambda row: chosen(row[0], either(row[1:])),
    "gather": lambda row: chosen(row[1], row[0]),
    "dynamic_update_slice": lambda row: either(row[:2]),
    "scatter": lambda row: either([row[0], chosen(row[1], row[2])]),
    "scatter-add": lambda row: add(row[0], chosen(row[1], row[2])),
}
