"""What the axes of an array index: the units that an axis of a weight connects."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Label = tuple[int, int]
"""An axis of a leaf: (leaf, axis). A dimension that carries it indexes that axis's units."""
Dims = tuple[frozenset[Label], ...]
BATCH: Label = (-1, 0)
NONE: frozenset[Label] = frozenset()


class Units:
    """Which axes index the same units: those that were added, multiplied or contracted together."""

    def __init__(self) -> None:
        self._up: dict[Label, Label] = {}

    def find(self, label: Label) -> Label:
        while label in self._up:
            label = self._up[label]
        return label

    def unite(self, labels: Iterable[Label]) -> None:
        roots = sorted({self.find(label) for label in labels if label != BATCH})
        for other in roots[1:]:
            self._up[other] = roots[0]

    def apart(self, dims: Dims) -> Dims:
        """Dims of weights without those that index several units.

        Weights laid end to end, or merged axes of one, share a dim and are not the same for that.
        """
        return tuple(dim if len({self.find(i) for i in dim}) < 2 else NONE for dim in dims)

    def of(self, dims: Dims) -> Label | None:
        """The units of an array, its last axis's first; None where no weight tells them."""
        found = labels(dims)
        return self.find(found[0]) if found else None


def labels(dims: Dims) -> list[Label]:
    """The labels of an array's axes, the last axis's first; the batch is none."""
    return [label for dim in reversed(dims) for label in sorted(dim) if label != BATCH]


def axes_of(leaf: int, dims: Iterable[frozenset[Label]]) -> set[int]:
    """The axes of a leaf that dims index."""
    return {axis for dim in dims for owner, axis in dim if owner == leaf}


def tangled(leaf: int, dims: Dims) -> bool:
    """Whether a dim indexes several axes of a leaf, or several dims index the same one."""
    own = [axis for dim in dims for owner, axis in dim if owner == leaf]
    return len(own) > len(set(own)) or any(len(axes_of(leaf, [dim])) > 1 for dim in dims)


def loose(shape: Sequence[int], dims: Dims) -> bool:
    """Whether an array has no units: nothing but perhaps a batch axis."""
    sizes = [size for size, dim in zip(shape, dims, strict=True) if BATCH not in dim]
    return not labels(dims) and all(size == 1 for size in sizes)
