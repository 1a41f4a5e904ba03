"""Primitives that only move, cut or repeat entries: where the axes of an operand are afterwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bpeq.analysis.locality._arrays import BATCH, NO_LABELS, Dims, Value
from bpeq.analysis.locality._contents import Label
from bpeq.analysis.locality._places import ENTRYWISE

_UNMOVED = """
    slice dynamic_slice rev split tile copy convert_element_type reduce_precision stop_gradient
    real imag conj neg
"""
_MARK = frozenset({BATCH})


def followed(eqn: Any, axis: int, pieces: int) -> int | None:
    """The axis of the result that holds the same pieces; None if they may be cut or merged.

    If the first axis is merged with axes behind it, or split, its pieces stay in order.

    Args:
      eqn: the equation; its primitive is in `MOVED`.
      axis: the axis of the operand that holds the pieces.
      pieces: the sum of their sizes.

    Returns:
      The axis or None.
    """
    name, before, after = eqn.primitive.name, eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    if name == "reshape":
        return 0 if axis == 0 and after and after[0] % pieces == 0 else None
    marked = [_MARK if place == axis else NO_LABELS for place in range(len(before))]
    places = [place for place, dim in enumerate(MOVED[name](eqn, tuple(marked))) if dim]
    whole = name not in ("unstack", "rev", "tile") and places
    return places[0] if whole and before[axis] == after[places[0]] else None


def repeated(eqn: Any, values: Sequence[Value]) -> frozenset[int]:
    """The axes of a result along which all entries are equal.

    Args:
      eqn: the equation.
      values: the operands.

    Returns:
      The axes.
    """
    name, after, before = eqn.primitive.name, eqn.outvars[0].aval.shape, eqn.invars[0].aval.shape
    every, spread = frozenset(range(len(after))), values[0].spread
    if name in ("broadcast_in_dim", "transpose"):
        marked = [NO_LABELS if axis in spread else _MARK for axis in range(len(before))]
        moved = MOVED[name](eqn, tuple(marked))
        return frozenset(axis for axis in every if not moved[axis])
    if name in MOVED and len(spread) == len(before):
        return every
    if name not in ENTRYWISE:
        return frozenset()
    for var, value in zip(eqn.invars, values, strict=True):
        shape = var.aval.shape
        every &= {a for a in every if not shape or a in value.spread or shape[a] < after[a]}
    return every


def _broadcast(eqn: Any, dims: Dims) -> Dims:
    shape, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    out = [NO_LABELS] * len(after)
    for axis, place in enumerate(eqn.params["broadcast_dimensions"]):
        if shape[axis] == after[place]:
            out[place] = dims[axis]
    return tuple(out)


def _squeeze(eqn: Any, dims: Dims) -> Dims:
    gone = eqn.params["dimensions"]
    return tuple(dim for axis, dim in enumerate(dims) if axis not in gone)


def _reshape(eqn: Any, dims: Dims) -> Dims:
    """The dims after a reshape. Merged or split axes share what they index."""
    before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    if 0 in before:
        return (NO_LABELS,) * len(after)
    out: list[frozenset[Label]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        left = [i] if i < len(before) else []
        right = [j] if j < len(after) else []
        if left and right and before[i] == after[j]:
            i, j = i + 1, j + 1
        elif left and before[i] == 1:
            i, right = i + 1, []
        elif right and after[j] == 1:
            j, left = j + 1, []
        else:
            sizes = [before[i], after[j]]
            i, j = i + 1, j + 1
            while sizes[0] != sizes[1]:
                if sizes[0] < sizes[1]:
                    sizes[0] *= before[i]
                    left, i = [*left, i], i + 1
                else:
                    sizes[1] *= after[j]
                    right, j = [*right, j], j + 1
        out += [NO_LABELS.union(*(dims[axis] for axis in left))] * len(right)
    return tuple(out)


def gathered(eqn: Any, dims: Dims) -> Dims:
    """The dims of a look-up that come from its table.

    Args:
      eqn: the equation.
      dims: the dims of the table.

    Returns:
      The dims of the result; those of the indices are empty.
    """
    numbers = eqn.params["dimension_numbers"]
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    kept = [dim for axis, dim in enumerate(dims) if axis not in gone]
    out = [NO_LABELS] * len(eqn.outvars[0].aval.shape)
    for place, dim in zip(numbers.offset_dims, kept, strict=True):
        out[place] = dim
    return tuple(out)


MOVED: dict[str, Callable[[Any, Dims], Dims]] = {
    "transpose": lambda eqn, dims: tuple(dims[axis] for axis in eqn.params["permutation"]),
    "broadcast_in_dim": _broadcast,
    "squeeze": _squeeze,
    "reshape": _reshape,
    "gather": gathered,
    "unstack": lambda eqn, dims: dims[: eqn.params["axis"]] + dims[eqn.params["axis"] + 1 :],
    **dict.fromkeys(_UNMOVED.split(), lambda eqn, dims: dims),
}
"""The dims of a result that rearranges its first operand."""
