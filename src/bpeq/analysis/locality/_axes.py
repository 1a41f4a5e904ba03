"""Where the axes of an operand go in a result: the axes that index the same units."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bpeq.analysis.locality._arrays import NO_LABELS, Dims
from bpeq.analysis.locality._contents import Label


def moved(eqn: Any, dims: Dims) -> Dims | None:
    """The dims of a result that rearranges its first operand.

    Args:
      eqn: the equation.
      dims: the dims of the operand.

    Returns:
      The dims; None if the primitive is not a known rearrangement.
    """
    rule = _RULES.get(eqn.primitive.name)
    return None if rule is None else rule(eqn, dims)


def moves(eqn: Any) -> bool:
    """Whether a primitive is a known rearrangement of its first operand.

    Args:
      eqn: the equation.

    Returns:
      True if so.
    """
    return eqn.primitive.name in _RULES


def _transpose(eqn: Any, dims: Dims) -> Dims:
    return tuple(dims[i] for i in eqn.params["permutation"])


def _broadcast(eqn: Any, dims: Dims) -> Dims:
    shape, out = eqn.invars[0].aval.shape, [NO_LABELS] * len(eqn.outvars[0].aval.shape)
    for axis, place in enumerate(eqn.params["broadcast_dimensions"]):
        if shape[axis] == eqn.outvars[0].aval.shape[place]:
            out[place] = dims[axis]
    return tuple(out)


def _squeeze(eqn: Any, dims: Dims) -> Dims:
    gone = set(eqn.params["dimensions"])
    return tuple(dim for axis, dim in enumerate(dims) if axis not in gone)


def _unstack(eqn: Any, dims: Dims) -> Dims:
    return (*dims[: eqn.params["axis"]], *dims[eqn.params["axis"] + 1 :])


def _same(eqn: Any, dims: Dims) -> Dims:
    return dims


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


def _gather(eqn: Any, dims: Dims) -> Dims:
    numbers = eqn.params["dimension_numbers"]
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    kept = [dim for axis, dim in enumerate(dims) if axis not in gone]
    out = [NO_LABELS] * len(eqn.outvars[0].aval.shape)
    for place, dim in zip(numbers.offset_dims, kept, strict=True):
        out[place] = dim
    return tuple(out)


def followed(eqn: Any, axis: int, pieces: int) -> int | None:
    """Follows an axis that a primitive keeps whole.

    If the first axis is merged with axes behind it, or split, its `pieces` stay in order.

    Args:
      eqn: the equation.
      axis: the axis of the operand.
      pieces: the length of the axis.

    Returns:
      The axis of the result; None if the axis may be cut or merged.
    """
    name, before, after = eqn.primitive.name, eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    if name == "transpose":
        return int(eqn.params["permutation"].index(axis))
    if name == "broadcast_in_dim":
        return int(eqn.params["broadcast_dimensions"][axis])
    if name == "squeeze":
        return axis - sum(gone < axis for gone in eqn.params["dimensions"])
    if name == "reshape":
        return 0 if axis == 0 and after and after[0] % pieces == 0 else None
    if name in ("gather", "unstack", "rev", "tile"):
        return None
    return axis if before[axis] == after[axis] else None


def gathered(eqn: Any, index: Dims) -> Dims:
    """The dims of a look-up that come from its indices.

    Args:
      eqn: the equation.
      index: the dims of the indices.

    Returns:
      The dims.
    """
    window = set(eqn.params["dimension_numbers"].offset_dims)
    dims, rank = iter(index[:-1]), len(eqn.outvars[0].aval.shape)
    return tuple(NO_LABELS if axis in window else next(dims, NO_LABELS) for axis in range(rank))


def picked(eqn: Any, table: Dims, index: Dims) -> Dims:
    """The dims of a look-up that come from its indices, with the axes from which they pick.

    Args:
      eqn: the equation.
      table: the dims of the table.
      index: the result of `gathered`.

    Returns:
      The dims.
    """
    numbers = eqn.params["dimension_numbers"]
    over = NO_LABELS.union(
        *(table[axis] for axis in {*numbers.start_index_map, *numbers.operand_batching_dims})
    )
    return tuple(
        dim if axis in numbers.offset_dims else dim | over for axis, dim in enumerate(index)
    )


def scattered(eqn: Any, updates: Dims) -> Dims:
    """The dims of a scatter that come from its updates.

    Args:
      eqn: the equation.
      updates: the dims of the updates.

    Returns:
      The dims.
    """
    numbers = eqn.params["dimension_numbers"]
    gone = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
    window, rank = iter(numbers.update_window_dims), len(eqn.outvars[0].aval.shape)
    return tuple(NO_LABELS if axis in gone else updates[next(window)] for axis in range(rank))


def stacked(eqn: Any, dims: Dims) -> Dims:
    """The dims of an operand of a stack, with the new axis.

    Args:
      eqn: the equation.
      dims: the dims of the operand.

    Returns:
      The dims.
    """
    axis = eqn.params["axis"]
    return (*dims[:axis], NO_LABELS, *dims[axis:])


_RULES: dict[str, Callable[[Any, Dims], Dims]] = {
    "transpose": _transpose,
    "broadcast_in_dim": _broadcast,
    "squeeze": _squeeze,
    "reshape": _reshape,
    "gather": _gather,
    "unstack": _unstack,
    **dict.fromkeys(["slice", "dynamic_slice", "rev", "split", "tile", "copy"], _same),
    **dict.fromkeys(["convert_element_type", "reduce_precision", "stop_gradient"], _same),
    **dict.fromkeys(["real", "imag", "conj", "neg"], _same),
}
