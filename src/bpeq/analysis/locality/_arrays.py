"""What the audit knows of an array in a traced estimate, and which axes index the same units."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from bpeq.analysis.locality._contents import Content, Label, either
from bpeq.analysis.locality._places import Places

Dims = tuple[frozenset[Label], ...]
Owners = frozenset[tuple[int, str]]
"""Leaves, each with the function that it went through, if any."""
BATCH: Label = (-1, 0)
NO_LABELS: frozenset[Label] = frozenset()
NO_OWNERS: Owners = frozenset()
LATE = "a step late"
"""In place of a function: what a rule's state holds of a weight."""
ADDED = "added"
"""In place of a function: the weight was added, and nothing may have multiplied it since."""


class Value(NamedTuple):
    """An array. Pieces that were laid one behind the other on axis 0 have contents of their own.

    contents: of each piece.
    dims:    the units that each axis indexes.
    sizes:   of the pieces; empty if there is one.
    weights: the leaves whose entries these are, changed or not, with the function that they went
        through; empty for what is no weight.
    summand: the leaves that were multiplied in and whose axes are yet to be summed over.
    axis:    on which the pieces lie by now.
    lost:    leaves that are in here in a way that is no longer known; and where that was lost.
    spread:  axes along which it has just been repeated.
    places:  how to compute it, without data.
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

    @property
    def content(self) -> Content:
        """All pieces as one."""
        return either(self.contents)

    @property
    def whole(self) -> Value:
        """Without pieces."""
        return self._replace(contents=(self.content,), sizes=(), axis=0)

    @property
    def again(self) -> Value:
        """As a loop's rounds have it: of no certain entries."""
        return self.whole._replace(spread=frozenset(), places=None)

    @property
    def per_example(self) -> bool:
        """Whether the batch is one of its axes."""
        return any(BATCH in dim for dim in self.dims)


def beside(values: Sequence[Value], pieces: int) -> list[tuple[Content, ...]]:
    """The contents that meet, piece by piece."""
    return [
        tuple(value.contents[i if value.sizes else 0] for value in values) for i in range(pieces)
    ]


class Units:
    """Which axes index the same units: those that were added, multiplied or contracted together."""

    def __init__(self) -> None:
        self._up: dict[Label, Label] = {}

    def find(self, label: Label) -> Label:
        """The one label that stands for all axes of the same units."""
        while label in self._up:
            label = self._up[label]
        return label

    def unite(self, labels: Iterable[Label]) -> None:
        """Makes axes index the same units."""
        roots = sorted({self.find(label) for label in labels if label != BATCH})
        for other in roots[1:]:
            self._up[other] = roots[0]

    def unite_axes(
        self, values: Sequence[Value], several: Sequence[Dims], rank: int, but: int | None = None
    ) -> Dims:
        """Makes the axes that meet in a result, `but` one, index the same units; gives its dims.

        Weights laid end to end, or merged axes of one, share a dim and are not the same for that.
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
        """Dims of weights without those that index several units."""
        return tuple(dim if len({self.find(i) for i in dim}) < 2 else NO_LABELS for dim in dims)

    def of(self, dims: Dims) -> Label | None:
        """The units of an array, its last axis's first; None if no weight shows them."""
        known = labels(dims)
        return self.find(known[0]) if known else None


def united(several: Sequence[Dims], rank: int) -> Dims:
    """Axis by axis what any of the arrays of that rank has there; scalars have nothing."""
    same = [dims for dims in several if len(dims) == rank]
    if not same:
        return (NO_LABELS,) * rank
    return tuple(NO_LABELS.union(*axis) for axis in zip(*same, strict=True))


def labels(dims: Dims) -> list[Label]:
    """The labels of an array's axes, the last axis's first, without the batch."""
    return [label for dim in reversed(dims) for label in sorted(dim) if label != BATCH]


def axes_of(leaf: int, dims: Iterable[frozenset[Label]]) -> set[int]:
    """The axes of a leaf that dims index."""
    return {axis for dim in dims for owner, axis in dim if owner == leaf}


def tangled(leaf: int, dims: Dims) -> bool:
    """Whether a dim indexes several axes of a leaf, or several dims index the same one."""
    axes = [axis for dim in dims for owner, axis in dim if owner == leaf]
    return len(axes) > len(set(axes)) or any(len(axes_of(leaf, [dim])) > 1 for dim in dims)


def without_units(shape: Sequence[int], dims: Dims) -> bool:
    """Whether an array has nothing but perhaps a batch axis."""
    sizes = [size for size, dim in zip(shape, dims, strict=True) if BATCH not in dim]
    return not labels(dims) and all(size == 1 for size in sizes)
