"""What the primitives that are no contraction make of the audit's values: sums, choices, pools."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bpeq.locality._shapes import followed, gathered, moved, moves, scattered, stacked, united
from bpeq.locality._values import (
    BATCH,
    NONE,
    Atom,
    Content,
    Dims,
    Kind,
    Term,
    Units,
    Value,
    add,
    bent,
    chosen,
    either,
    labels,
    loose,
    mixed,
    opened,
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
        return value._replace(dims=first, axis=axis)
    dims = _dims(eqn, values, rank)
    for dim in dims:
        units.unite(dim)
    fold = _FOLDS.get(name, mixed)
    sizes, axis, rows = _aligned(eqn, values)
    made = Value(tuple(fold(row) for row in rows), dims, sizes, axis=axis)
    weights = frozenset[tuple[int, str]]().union(*(value.weights for value in values))
    if weights and not made.per_example and all(len(v.dims) <= rank for v in values):
        named = frozenset((leaf, name if name in _KEPT else via) for leaf, via in weights)
        made = made._replace(weights=named)
    made = made._replace(summand=frozenset().union(*(value.summand for value in values)))
    return _errors_begin(meeting(made, values, units), units)


def _dims(eqn: Any, values: Sequence[Value], rank: int) -> Dims:
    name = eqn.primitive.name
    several = [value.dims for value in values]
    if name == "gather":
        several = [moved(eqn, values[0].dims) or (), gathered(eqn, values[1].dims)]
    elif name.startswith("scatter"):
        several = [values[0].dims, scattered(eqn, values[2].dims)]
    elif name == "dynamic_slice":
        several = several[:1]
    elif name == "select_and_scatter_add":
        several = several[1:]
    return united(several, rank)


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
            return sizes, axis, _rows(values, len(sizes))
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


def _rows(values: Sequence[Value], pieces: int) -> list[tuple[Content, ...]]:
    return [
        tuple(value.contents[i if value.sizes else 0] for value in values) for i in range(pieces)
    ]


def _laid(eqn: Any, values: Sequence[Value], units: Units) -> Value:
    """Pieces one behind the other; on axis 0, where phases are, they stay apart."""
    stack = eqn.primitive.name == "stack"
    axis = eqn.params["axis"] if stack else eqn.params["dimension"]
    several = [stacked(eqn, value.dims) if stack else value.dims for value in values]
    dims = united(several, len(eqn.outvars[0].aval.shape))
    for place, dim in enumerate(dims):
        if place != axis:
            units.unite(dim)
    pieces = {(value.sizes, value.axis) for value in values}
    ((sizes, along),) = pieces if len(pieces) == 1 else {((), 0)}
    if sizes and (stack or along != axis):  # beside each other: each piece has its like there
        rows = _rows(values, len(sizes))
        along += stack and axis <= along
        return Value(tuple(either(row) for row in rows), dims, sizes, axis=along)
    contents = tuple(value.content for value in values)
    if axis == 0 and len(values) > 1:
        sizes = tuple(1 if stack else int(var.aval.shape[0]) for var in eqn.invars)
        return Value(contents, dims, sizes)
    return Value((either(contents),), dims)


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
    rows = _rows(values, len(pieces) or 1)
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


def _errors_begin(made: Value, units: Units) -> Value:
    """An output's error is one thing to read: its state and its target are inside."""
    where = units.of(made.dims)
    error = Atom("state", where, "output error")

    def beside(atom: Atom) -> bool:
        own = atom.where is None or units.find(atom.where) == where
        return atom.what != "target" and not (atom.what == "state" and own)

    def one(content: Content) -> Content:
        meets = any(atom.what == "target" for term in content.terms for atom in term)
        if content.kind != Kind.ERROR or content.carried or not meets:
            return content
        terms: frozenset[Term] = frozenset(
            frozenset({*filter(beside, term), error}) for term in content.terms
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
