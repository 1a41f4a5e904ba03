"""What the audit knows of an array of the traced estimate, and which axes index the same units."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import NamedTuple

from bpeq.analysis.locality._contents import Content, Label, either, signalled
from bpeq.analysis.locality._places import Places

Dims = tuple[frozenset[Label], ...]
Owner = tuple[int, str]
"""A leaf, with the function that was applied to it; empty without one."""
Owners = frozenset[Owner]
BATCH: Label = (-1, 0)
NO_LABELS: frozenset[Label] = frozenset()
NO_OWNERS: Owners = frozenset()
Pick = tuple[Label, Hashable]
"""Units without an axis any more, and the index of the one that an array holds; None: unknown."""
LATE = "a step late"
"""The function of a weight that a rule's state holds: the rule reads it one step late."""
ADDED = "added"
"""The function of a weight that was added, and that nothing may have multiplied since."""


class Value(NamedTuple):
    """What the audit knows of an array. Pieces concatenated on axis 0 have their own contents.

    Args:
      contents: the content of each piece.
      dims: the units that each axis indexes.
      sizes: the sizes of the pieces; empty for a single piece.
      weights: the leaves whose entries these are, each with the function applied to it; empty if
        the array is not a weight.
      summand: the leaves that were multiplied in, and whose axes are not yet summed over.
      axis: the axis on which the pieces now lie.
      lost: leaves that are in the array in an unknown way, and the places where they were lost.
      spread: axes along which the array was just repeated.
      places: computes the array without data; None: impossible.
      picked: units whose axis was cut to one entry. The array holds one of them, or a sum of some.
    """

    contents: tuple[Content, ...]
    dims: Dims
    sizes: tuple[int, ...] = ()
    weights: Owners = NO_OWNERS
    summand: Owners = NO_OWNERS
    axis: int = 0
    lost: Owners = NO_OWNERS
    spread: frozenset[int] = frozenset()
    places: Places | None = None
    picked: frozenset[Pick] = frozenset()

    @property
    def content(self) -> Content:
        """The content of all pieces together."""
        return either(self.contents)

    @property
    def whole(self) -> Value:
        """The same value as a single piece."""
        return self._replace(contents=(self.content,), sizes=(), axis=0)

    @property
    def again(self) -> Value:
        """The value as the rounds of a loop see it, without known entries."""
        return self.whole._replace(spread=frozenset(), places=None)

    def mapped(self, change: Callable[[Content], Content]) -> Value:
        """The same value with a change of the content of each piece.

        Args:
          change: the change.

        Returns:
          The value.
        """
        return self._replace(contents=tuple(map(change, self.contents)))

    @property
    def per_example(self) -> bool:
        """Whether the batch axis is one of its axes."""
        return any(BATCH in dim for dim in self.dims)

    @property
    def signalled(self) -> Value:
        """The value as other units read it: picked units are a signal."""
        return self.mapped(signalled)._replace(picked=frozenset()) if self.picked else self


def beside(values: Sequence[Value], pieces: int) -> list[tuple[Content, ...]]:
    """Pairs the contents of values, piece by piece.

    Args:
      values: the values. A value of one piece is paired with every piece.
      pieces: the number of pieces.

    Returns:
      The contents for each piece.
    """
    return [
        tuple(value.contents[i if value.sizes else 0] for value in values) for i in range(pieces)
    ]


class Units:
    """Which axes index the same units: those that are added, multiplied or contracted together."""

    def __init__(self) -> None:
        self._up: dict[Label, Label] = {}

    def find(self, label: Label) -> Label:
        """The one label that stands for all axes of the same units.

        Args:
          label: the label of an axis.

        Returns:
          The label.
        """
        while label in self._up:
            label = self._up[label]
        return label

    def unite(self, labels: Iterable[Label]) -> None:
        """Records that axes index the same units.

        Args:
          labels: the labels of the axes.
        """
        roots = sorted({self.find(label) for label in labels if label != BATCH})
        for other in roots[1:]:
            self._up[other] = roots[0]

    def unite_axes(
        self, values: Sequence[Value], several: Sequence[Dims], rank: int, but: int | None = None
    ) -> Dims:
        """Records that axes that meet in a result index the same units.

        Concatenated weights, or merged axes of a weight, share a dim, but do not index the same
        units.

        Args:
          values: the operands.
          several: the dims of each operand in the result.
          rank: the rank of the result.
          but: an axis to leave out; None: no axis.

        Returns:
          The dims of the result.
        """
        apart = [
            self.apart(dims) if value.weights else dims
            for value, dims in zip(values, several, strict=True)
        ]
        for axis, dim in enumerate(united(apart, rank)):
            if axis != but:
                self.unite(dim)
        return united(several, rank)

    def apart(self, dims: Dims) -> Dims:
        """Empties the dims of weights that index several units.

        Args:
          dims: the dims.

        Returns:
          The other dims.
        """
        return tuple(dim if len({self.find(i) for i in dim}) < 2 else NO_LABELS for dim in dims)

    def of(self, value: Value) -> Label | None:
        """The units of an array, found from its last axis first, or those picked from it.

        Args:
          value: the value of the array.

        Returns:
          The label; None if no weight shows the units.
        """
        known = labels(value.dims)
        if known:
            return self.find(known[0])
        picked = {self.find(label) for label, _ in value.picked}
        return picked.pop() if len(picked) == 1 else None


def united(several: Sequence[Dims], rank: int) -> Dims:
    """Unites the dims of arrays, axis by axis. Arrays of another rank do not count.

    Args:
      several: the dims of each array.
      rank: the rank of the result.

    Returns:
      The dims.
    """
    same = [dims for dims in several if len(dims) == rank]
    if not same:
        return (NO_LABELS,) * rank
    return tuple(NO_LABELS.union(*axis) for axis in zip(*same, strict=True))


def labels(dims: Dims) -> list[Label]:
    """The labels of an array's axes, the last axis first, without the batch.

    Args:
      dims: the dims of the array.

    Returns:
      The labels.
    """
    return [label for dim in reversed(dims) for label in sorted(dim) if label != BATCH]


def axes_of(leaf: int, dims: Iterable[frozenset[Label]]) -> set[int]:
    """The axes of a leaf that dims index.

    Args:
      leaf: the number of the leaf.
      dims: the dims.

    Returns:
      The axes.
    """
    return {axis for dim in dims for owner, axis in dim if owner == leaf}


def tangled(leaf: int, dims: Dims) -> bool:
    """Whether a dim indexes several axes of a leaf, or several dims index the same axis.

    Args:
      leaf: the number of the leaf.
      dims: the dims.

    Returns:
      True if so.
    """
    axes = [axis for dim in dims for owner, axis in dim if owner == leaf]
    return len(axes) > len(set(axes)) or any(len(axes_of(leaf, [dim])) > 1 for dim in dims)


def without_units(shape: Sequence[int], dims: Dims) -> bool:
    """Whether an array has no axis except perhaps the batch.

    Args:
      shape: the shape of the array.
      dims: its dims.

    Returns:
      True if so.
    """
    sizes = [size for size, dim in zip(shape, dims, strict=True) if BATCH not in dim]
    return not labels(dims) and all(size == 1 for size in sizes)
