"""Weights at work: what goes through which axis of one, and what that makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from bpeq.locality._values import FAR, Atom, Content, Dims, Kind, Label, Units, Value


class Use(NamedTuple):
    """A weight that something went through.

    contracted: the weight's axes that were summed over; none where it multiplies entry by entry.
    carried, far, phase: what went through, from how far from x, and of which phase it is.
    came, within: its units before and after. through: a function that the weight went through.
    loop: where the innermost relaxation around stands in the program, empty for none.
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

    loops: the relaxations around, the innermost last. moving: those that move activity, as met.
    """

    def __init__(self, ranks: Sequence[int], units: Units) -> None:
        self.units, self.ranks = units, list(ranks)
        self._nameless: dict[tuple[int, ...], int] = {}
        self.loops: tuple[tuple[int, ...], ...] = ()
        self.moving: dict[tuple[int, ...], None] = {}
        self._uses: dict[tuple[object, ...], Use] = {}

    def nameless(self, at: tuple[int, ...], matrix: Value) -> Value:
        """A matrix of the program's own as a weight: the same one whenever this place is passed."""
        if at not in self._nameless:
            self._nameless[at] = len(self.ranks)
            self.ranks.append(len(matrix.dims))
        leaf = self._nameless[at]
        dims = tuple(dim | {(leaf, axis)} for axis, dim in enumerate(matrix.dims))
        return matrix._replace(dims=dims, weights=frozenset({(leaf, "")}))

    @property
    def uses(self) -> list[Use]:
        return list(self._uses.values())

    def phase(self, content: Content) -> str:
        """What a reader calls it."""
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
        at: tuple[int, ...],
        weight: Value,
        other: Value,
        dims: Dims,
        free: frozenset[Label],
        summed: frozenset[Label] | None = None,
        axis: int | None = None,
    ) -> Value:
        """`other` sent through a weight: what comes out is activity, or error, of other units.

        Args:
          at: where in the program. dims: of the result. free: the weight's axes that are left.
          summed: those that are summed over, where that is not all others, as in a convolution.
          axis: where the pieces of `other` come to lie; None where they are summed over.
        """
        came = self.units.of(other.dims)
        for leaf, through in sorted(weight.weights):
            left = {axis for owner, axis in free if owner == leaf}
            gone = set(range(self.ranks[leaf])) - left
            if summed is not None:
                gone = {axis for owner, axis in summed if owner == leaf}
            within = self.units.find(max(((leaf, axis) for axis in left), default=(leaf, -1)))
            self.note(at, Use(leaf, frozenset(gone), *_LATER, came, within, through), other)
        contents = tuple(self._passed(content, came, within) for content in other.contents)
        made = Value(contents, dims, other.sizes, axis=axis or 0)
        return made.whole if axis is None else made

    def note(self, at: tuple[int, ...], use: Use, other: Value) -> None:
        """That `other` was there; each of its pieces is a use."""
        for i, content in enumerate(other.contents):
            if content.known or content.random:
                seen = use._replace(
                    carried=content.kind,
                    far=content.far,
                    phase=self.phase(content),
                    loop=self.loops[-1] if self.loops else (),
                )
                self._uses[(*at, use.leaf, use.contracted, i)] = seen

    def gain(self, at: tuple[int, ...], leaf: int, through: str, other: Value) -> None:
        """A weight that multiplies entry by entry."""
        units = self.units.of(other.dims)
        self.note(at, Use(leaf, frozenset(), *_LATER, units, units, through), other)

    def _passed(self, content: Content, came: Label | None, within: Label) -> Content:
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


_LATER = (Kind.CONSTANT, FAR, "")  # what `note` fills in
