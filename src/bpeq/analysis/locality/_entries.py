"""The values of primitives that are not contractions: sums, choices, look-ups, concatenations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bpeq.analysis.locality import _arrays, _contents, _moves
from bpeq.analysis.locality._arrays import BATCH, NO_LABELS, NO_OWNERS, Dims, Units, Value
from bpeq.analysis.locality._contents import Atom, Content, Kind, Label, bent, chosen, either, times
from bpeq.analysis.locality._places import ENTRYWISE

_WINDOWS = ("reduce_window", "reduce_window_max", "reduce_window_min", "reduce_window_sum")
_APART = ("pad", "select_and_scatter_add", *_WINDOWS)
_KNOWN = (
    *_APART,
    "stack",
    "concatenate",
    "dynamic_update_slice",
    "scatter",
    "scatter-add",
    "top_k",
)
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
    if name in _moves.MOVED and len(values) == 1:
        value, axis = values[0], 0
        if value.sizes:
            place = _moves.followed(eqn, value.axis, sum(value.sizes))
            value, axis = (value.whole, 0) if place is None else (value, place)
        dims = _moves.MOVED[name](eqn, value.dims)
        result = value._replace(dims=dims, axis=axis, spread=_moves.repeated(eqn, [value]))
        return cut_units(eqn, [value], result, units)
    values = _as_signals(name, values)
    operands, several = zip(*_operands(eqn, values), strict=True)
    dims = units.unite_axes(operands, several, rank)
    sizes, axis, rows = _aligned(eqn, values)
    fold = _FOLDS.get(name, _contents.mixed)
    result = Value(tuple(fold(row) for row in rows), dims, sizes, axis=axis)
    owners = NO_OWNERS.union(*(value.weights for value in values))
    if owners and not result.per_example and _keeps_entries(name, values, rank):
        functions = {(leaf, name if name in _NAMED else function) for leaf, function in owners}
        result = result._replace(weights=frozenset(functions))
    if name in ENTRYWISE:
        result = result._replace(spread=_moves.repeated(eqn, values))
    if name in ENTRYWISE or name in ("gather", "pad"):
        result = result._replace(summand=NO_OWNERS.union(*(value.summand for value in values)))
    result = cut_units(eqn, values, meeting(result, values, units), units, signals=False)
    result = _with_output_errors(result, units)
    return result.signalled if _arrays.labels(result.dims) else result


def cut_units(
    eqn: Any, values: Sequence[Value], result: Value, units: Units, signals: bool = True
) -> Value:
    """Takes note of units that have no axis any more, or an axis cut to one entry.

    Such as those of d in `d[:, :1]` or in the last column of a cumulative sum. They are a signal
    as soon as other units read them.

    Args:
      eqn: the equation.
      values: the operands.
      result: the value of the result.
      units: which axes index the same units.
      signals: whether the picked units become a signal if the result has other units.

    Returns:
      The value of the result.
    """
    name, shape = eqn.primitive.name, eqn.outvars[0].aval.shape
    picked = {pick for value in values for pick in value.picked}
    if len(shape) != len(result.dims) or not result.content.known:
        return result
    narrow, wide = set[Label](), set[Label]()
    for n, dim in zip(shape, result.dims, strict=True):
        (wide if n > 1 else narrow).update(map(units.find, dim))
    cut = set[Label]()
    for var, value in zip(eqn.invars, values, strict=True):
        if not value.content.known or value.weights or value.summand:
            continue
        for axis, (n, dim) in enumerate(zip(var.aval.shape, value.dims, strict=True)):
            # Every m-th entry of examples and units on one axis: the units are cut.
            fewer = name == "slice" and shape[axis] < n and BATCH in dim
            for label in {units.find(i) for i in dim if i != BATCH} - (set() if fewer else wide):
                if n > 1 or label not in narrow:
                    cut.add(label)
                    picked.add((label, _index(eqn, values, axis, n)))
    dims = tuple(
        dim if n > 1 and BATCH not in dim else frozenset(i for i in dim if units.find(i) not in cut)
        for n, dim in zip(shape, result.dims, strict=True)
    )
    wide = {units.find(i) for n, dim in zip(shape, dims, strict=True) if n > 1 for i in dim}
    left = frozenset(pick for pick in picked if units.find(pick[0]) not in wide)
    result = result._replace(dims=dims, picked=left)
    return result.signalled if signals and _arrays.labels(dims) else result


def _index(eqn: Any, values: Sequence[Value], axis: int, n: int) -> int | None:
    """Which entry of an axis a primitive picks; None: unknown."""
    name = eqn.primitive.name
    if n == 1:
        return 0
    if name == "slice":
        return int(eqn.params["start_indices"][axis])
    at = {"dynamic_slice": axis + 1, "gather": 1}.get(name)
    places = None if at is None else values[at].places
    if places is None or np.size(places.array) != 1:
        return None
    return int(np.ravel(places.array)[0])


def _as_signals(name: str, values: Sequence[Value]) -> Sequence[Value]:
    """The operands of a primitive that works entry by entry, where one unit meets several."""
    if name not in ENTRYWISE:
        return values
    many = [not v.weights and (v.content.random or bool(_arrays.labels(v.dims))) for v in values]
    return [
        value.signalled if any(many[:i]) or any(many[i + 1 :]) else value
        for i, value in enumerate(values)
    ]


def follows(eqn: Any) -> bool:
    """Whether the axes of the result are known: the primitive moves entries or keeps the shape.

    Args:
      eqn: the equation.

    Returns:
      True if so.
    """
    shapes = [var.aval.shape for var in eqn.invars]
    fits = all(_fits(shape, out.aval.shape) for shape in shapes for out in eqn.outvars)
    return fits or eqn.primitive.name in _KNOWN or eqn.primitive.name in _moves.MOVED


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
        Atom("batch", units.of(value))
        for value in values
        if value.content.pooled and not value.per_example and not value.weights
        if _arrays.labels(value.dims)
    )
    return result.mapped(
        lambda c: c._replace(terms=frozenset(t | statistics for t in c.terms), pooled=False)
    )


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
        return [
            (values[0], _moves.gathered(eqn, values[0].dims)),
            (values[1], _picked(eqn, *values)),
        ]
    if name.startswith("scatter"):
        return [pairs[0], (values[2], _scattered(eqn, values[2]))]
    if name == "dynamic_slice":
        return pairs[:1]
    return pairs[1:] if name == "select_and_scatter_add" else pairs


def _picked(eqn: Any, table: Value, index: Value) -> Dims:
    """The dims of a look-up that come from its indices. In weights they pick from axes."""
    numbers, over = eqn.params["dimension_numbers"], NO_LABELS
    axes = {*numbers.start_index_map, *numbers.operand_batching_dims}
    if table.weights or table.summand or len(axes) == 1:
        over = over.union(*(table.dims[axis] for axis in axes))
    dims, rank = iter(index.dims[:-1]), len(eqn.outvars[0].aval.shape)
    return tuple(
        NO_LABELS if axis in numbers.offset_dims else next(dims, NO_LABELS) | over
        for axis in range(rank)
    )


def _scattered(eqn: Any, updates: Value) -> Dims:
    """The dims of a scatter. If weights are scattered, they include the units of the indices."""
    numbers = eqn.params["dimension_numbers"]
    batching = numbers.operand_batching_dims
    gone = {*numbers.inserted_window_dims, *batching}
    window, rank = iter(numbers.update_window_dims), len(eqn.outvars[0].aval.shape)
    dims = [NO_LABELS if axis in gone else updates.dims[next(window)] for axis in range(rank)]
    if updates.weights:
        rest = {*range(len(updates.dims))} - {*numbers.update_window_dims}
        for axis in {*numbers.scatter_dims_to_operand_dims, *batching}:
            dims[axis] = dims[axis].union(*(updates.dims[other] for other in rest))
    return tuple(dims)


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
            return sizes, axis, _arrays.beside(values, len(sizes))
    return (), 0, [tuple(value.content for value in values)]


def _fits(shape: Sequence[int], out: Sequence[int]) -> bool:
    """Whether each entry of a result uses one entry of the operand."""
    if len(shape) != len(out):
        return not shape
    return all(size in (1, n) for size, n in zip(shape, out, strict=True))


def _laid(eqn: Any, values: Sequence[Value], units: Units) -> Value:
    """Concatenates pieces. On axis 0, which holds phases, they stay separate."""
    stack = eqn.primitive.name == "stack"
    axis = eqn.params["axis" if stack else "dimension"]
    new = (NO_LABELS,) if stack else ()
    several = [(*value.dims[:axis], *new, *value.dims[axis:]) for value in values]
    dims = units.unite_axes(values, several, len(eqn.outvars[0].aval.shape), axis)
    contents = tuple(value.content for value in values)
    sizes, along = values[0].sizes, values[0].axis
    alike = all((value.sizes, value.axis) == (sizes, along) for value in values)
    if alike and sizes and (stack or along != axis):
        # Beside each other: each piece has its like there.
        contents = tuple(map(either, _arrays.beside(values, len(sizes))))
        along += stack and axis <= along
    elif axis == 0 and len(values) > 1:
        sizes, along = tuple(1 if stack else int(var.aval.shape[0]) for var in eqn.invars), 0
    else:
        contents, sizes, along = (either(contents),), (), 0
    summand = NO_OWNERS.union(*(value.summand for value in values))
    back = _rejoined(values)
    dims = (*dims[:axis], dims[axis] | back, *dims[axis + 1 :])
    result = Value(contents, dims, sizes, summand=summand, axis=along)
    result = cut_units(eqn, values, result, units)
    if result.per_example:
        return result
    return result._replace(weights=NO_OWNERS.union(*(value.weights for value in values)))


def _rejoined(values: Sequence[Value]) -> frozenset[Label]:
    """The units of which each piece holds one, another one in each piece."""
    labels = frozenset[Label].intersection(*(frozenset(p[0] for p in v.picked) for v in values))
    back = set[Label]()
    for label in labels if len(values) > 1 else ():
        indices = [[index for other, index in v.picked if other == label] for v in values]
        single = all(len(each) == 1 and each[0] is not None for each in indices)
        if single and len({each[0] for each in indices}) == len(values):
            back.add(label)
    return frozenset(back)


def _with_output_errors(result: Value, units: Units) -> Value:
    """Replaces the state and the target inside an output's error by the error."""
    where = units.of(result)
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

    return result.mapped(one)


def _choice(row: Sequence[Content]) -> Content:
    total = either(row)
    return total if total.kind == Kind.ZERO else bent(total)


_FOLDS: dict[str, Callable[[Sequence[Content]], Content]] = {
    **dict.fromkeys(["add", "sub", "add_any", "complex"], lambda row: _contents.add(*row)),
    **dict.fromkeys(["max", "min", "clamp"], _choice),
    **dict.fromkeys(["mul", "select_and_scatter_add"], lambda row: times(*row)),
    **dict.fromkeys(["dynamic_slice", "cumsum"], lambda row: row[0]),
    "div": lambda row: times(row[0], bent(row[1])),
    "pad": either,
    "select_n": lambda row: chosen(row[0], either(row[1:])),
    "gather": lambda row: chosen(row[1], row[0]),
    "dynamic_update_slice": lambda row: either(row[:2]),
    "scatter": lambda row: either([row[0], chosen(row[1], row[2])]),
    "scatter-add": lambda row: _contents.add(row[0], chosen(row[1], row[2])),
}
"""The content of a result from the contents of its operands."""
