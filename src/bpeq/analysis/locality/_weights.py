"""The uses of weights: what passes through which axes of a weight, and the result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from bpeq.analysis.locality._arrays import ADDED, Dims, Owners, Units, Value, axes_of
from bpeq.analysis.locality._contents import FAR, Atom, Content, Kind, Label

Ends = tuple[Label | None, Label | None]
"""The units before a weight and the units after it."""


class Use(NamedTuple):
    """One use of a weight.

    Args:
      leaf: the number of the weight.
      contracted: its axes that were summed over; none if it multiplies entry by entry.
      carried: the kind of array that passed through it.
      far: the distance of that array from x, in weights.
      phase: the phase of that array.
      came: the units before the weight.
      within: the units after the weight.
      through: the function applied to the weight; empty without one.
      loop: the place of the innermost relaxation around it in the program; empty without one.
    """

    leaf: int
    contracted: frozenset[int]
    carried: Kind
    far: int
    phase: str
    came: Label | None
    within: Label | None
    through: str
    loop: tuple[int, ...] = ()


class Weights:
    """All uses of all weights, as last seen at each place of the program.

    uses:    the uses by their places.
    at:      the enclosing equations, the innermost last.
    loops:   the enclosing relaxations, the innermost last.
    moving:  the relaxations that move activity, in their order.
    met:     leaves that the present primitive uses in a known way.
    tangled: leaves that it uses in an unknown way, because it sums over an axis and also keeps it.

    Args:
      shapes: the shape of each leaf.
      units: which axes index the same units.
    """

    def __init__(self, shapes: Sequence[Sequence[int]], units: Units) -> None:
        self.units, self.shapes = units, [tuple(shape) for shape in shapes]
        self.ranks = [len(shape) for shape in shapes]
        self.met: set[int] = set()
        self.tangled: set[int] = set()
        self.at: tuple[int, ...] = ()
        self._nameless: dict[tuple[int, ...], int] = {}
        self.loops: tuple[tuple[int, ...], ...] = ()
        self.moving: dict[tuple[int, ...], None] = {}
        self.uses: dict[tuple[object, ...], Use] = {}

    def nameless(self, matrix: Value) -> Value:
        """Turns a matrix of the program into a weight. At one place it is always the same weight.

        Args:
          matrix: the matrix.

        Returns:
          The value with the weight as its owner.
        """
        if self.at not in self._nameless:
            self._nameless[self.at] = len(self.ranks)
            self.ranks.append(len(matrix.dims))
            self.shapes.append((0,) * len(matrix.dims))
        leaf = self._nameless[self.at]
        dims = tuple(dim | {(leaf, axis)} for axis, dim in enumerate(matrix.dims))
        return matrix._replace(dims=dims, weights=frozenset({(leaf, "")}))

    def phase(self, content: Content) -> str:
        """The phase of an array, with the names of `audit_locality`.

        Args:
          content: the content of the array.

        Returns:
          The name; empty without one.
        """
        settling = content.settled or bool(self.loops)
        if content.kind == Kind.ACTIVITY:
            return "free" if settling else "forward"
        if content.kind == Kind.NUDGED:
            return "nudged" if settling else "target"
        if content.kind == Kind.ERROR:
            return "error" if content.carried else "output error"
        return "target" if content.kind == Kind.TARGET else ""

    def send(
        self,
        owners: Owners,
        other: Value,
        dims: Dims,
        summed: Sequence[frozenset[Label]],
        free: Sequence[frozenset[Label]],
        axis: int | None = None,
    ) -> Value:
        """Sends `other` through weights. The result is activity or an error of other units.

        An axis of a weight may be neither summed over nor kept, if an index picked from it. The
        result then belongs to the picked entry or, if nothing is summed over, the input does.

        Args:
          owners: the weights.
          other: the array that passes through them.
          dims: the dims of the result.
          summed: the dims of the weights that are summed over.
          free: the dims of the weights that are kept.
          axis: the axis of the pieces of `other` in the result; None if it is summed over.

        Returns:
          The value of the result.
        """
        came, within, lost = self.units.of(other), (-3, 0), set[int]()
        for leaf, through in named(owners):
            gone, left = axes_of(leaf, summed), axes_of(leaf, free)
            rest = {*range(self.ranks[leaf])} - gone - left
            if gone & left or not (gone or left) or not (left or rest or self.ranks[leaf] < 2):
                lost.add(leaf)
                continue
            ends = {(leaf, axis) for axis in left or rest}
            within = self.units.find(max(ends, default=(leaf, -1)))
            self.note(leaf, frozenset(gone or rest), (came, within), through, other)
        self.tangled |= lost
        kept = tuple(frozenset(label for label in dim if label[0] not in lost) for dim in dims)
        contents = self.passed(other, came, within).contents
        sent = Value(contents, kept, other.sizes, axis=axis or 0)
        return sent.whole if axis is None else sent

    def note(
        self, leaf: int, contracted: frozenset[int], ends: Ends, through: str, other: Value
    ) -> None:
        """Records a use of a weight by `other`, one for each of its pieces.

        Args:
          leaf: as in `Use`.
          contracted: as in `Use`.
          ends: `came` and `within`, as in `Use`.
          through: as in `Use`.
          other: the array that passes through the weight.
        """
        self.met.add(leaf)
        loop = self.loops[-1] if self.loops else ()
        for i, content in enumerate(other.contents):
            if content.known or content.random:
                carried = (content.kind, content.far, self.phase(content))
                use = Use(leaf, contracted, *carried, *ends, through, loop)
                self.uses[(*self.at, leaf, contracted, i)] = use

    def passed(self, value: Value, came: Label | None, within: Label) -> Value:
        """The value after it passed through weights.

        Args:
          value: the value before.
          came: the units before the weights; None: unknown.
          within: the units after the weights.

        Returns:
          The value.
        """

        def one(content: Content) -> Content:
            if not content.known:
                return content
            errs = content.kind == Kind.ERROR
            after = content._replace(
                carried=content.carried or errs or content.kind == Kind.TARGET,
                far=min(content.far + 1, FAR),
                pooled=False,
                errors=content.errors or errs,
            )
            atom = Atom("state", within, self.phase(after), came if errs else None)
            return after._replace(terms=frozenset({frozenset({atom})}))

        return value.mapped(one)._replace(picked=frozenset())


def named(owners: Owners) -> list[tuple[int, str]]:
    """Lists every leaf once, with its function if it has only one.

    Args:
      owners: the leaves with their functions.

    Returns:
      Pairs of leaf and function; the function is empty if there are several.
    """
    by: dict[int, set[str]] = {}
    for leaf, through in sorted(owners):
        by.setdefault(leaf, set()).add("" if through == ADDED else through)
    return [(leaf, ways.pop() if len(ways) == 1 else "") for leaf, ways in by.items()]
