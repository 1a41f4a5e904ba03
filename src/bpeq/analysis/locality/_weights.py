"""Weights at work: what goes through which axis of one, and what that makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from bpeq.analysis.locality._units import Dims, Label, Units, axes_of
from bpeq.analysis.locality._values import ADDED, FAR, Atom, Content, Kind, Owners, Value


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
    met, tangled: leaves that the primitive at hand uses in a way that is known; in a way that is
        not, since an axis of them is summed over and left at once.
    """

    def __init__(self, shapes: Sequence[Sequence[int]], units: Units) -> None:
        self.units, self.shapes = units, [tuple(shape) for shape in shapes]
        self.ranks = [len(shape) for shape in shapes]
        self.met: set[int] = set()
        self.tangled: set[int] = set()
        self._nameless: dict[tuple[int, ...], int] = {}
        self.loops: tuple[tuple[int, ...], ...] = ()
        self.moving: dict[tuple[int, ...], None] = {}
        self._uses: dict[tuple[object, ...], Use] = {}

    def nameless(self, at: tuple[int, ...], matrix: Value) -> Value:
        """A matrix of the program's own as a weight: the same one whenever this place is passed."""
        if at not in self._nameless:
            self._nameless[at] = len(self.ranks)
            self.ranks.append(len(matrix.dims))
            self.shapes.append((0,) * len(matrix.dims))
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
        owners: Owners,
        other: Value,
        dims: Dims,
        summed: Sequence[frozenset[Label]],
        free: Sequence[frozenset[Label]],
        axis: int | None = None,
    ) -> Value:
        """`other` sent through weights: what comes out is activity, or error, of other units.

        An axis that is neither summed over nor left was picked from by an index: what goes out
        belongs to that entry of it, or, where nothing is summed over, what came in.

        Args:
          at: where in the program. dims: of the result. summed, free: the weights' dims that are
            summed over, and those that are left.
          axis: where the pieces of `other` come to lie; None where they are summed over.
        """
        came, within, lost = self.units.of(other.dims), (-3, 0), set[int]()
        for leaf, through in named(owners):
            gone, left = axes_of(leaf, summed), axes_of(leaf, free)
            rest = {*range(self.ranks[leaf])} - gone - left
            if gone & left or not (gone or left) or not (left or rest or self.ranks[leaf] < 2):
                lost.add(leaf)
                continue
            ends = {(leaf, axis) for axis in left or rest}
            within = self.units.find(max(ends, default=(leaf, -1)))
            self.note(at, Use(leaf, frozenset(gone or rest), *_LATER, came, within, through), other)
        self.tangled |= lost
        kept = tuple(frozenset(label for label in dim if label[0] not in lost) for dim in dims)
        made = Value(
            tuple(self._passed(content, came, within) for content in other.contents),
            kept,
            other.sizes,
            axis=axis or 0,
        )
        return made.whole if axis is None else made

    def passed(self, value: Value) -> Value:
        """Sent through weights, it is not known how."""
        contents = tuple(self._passed(content, None, (-3, 0)) for content in value.contents)
        return value._replace(contents=contents)

    def note(self, at: tuple[int, ...], use: Use, other: Value) -> None:
        """That `other` was there; each of its pieces is a use."""
        self.met.add(use.leaf)
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


def named(owners: Owners) -> list[tuple[int, str]]:
    """Every leaf once; that only a function of it is there is said where it is the only one."""
    by: dict[int, set[str]] = {}
    for leaf, through in sorted(owners):
        by.setdefault(leaf, set()).add("" if through == ADDED else through)
    return [(leaf, ways.pop() if len(ways) == 1 else "") for leaf, ways in by.items()]


_LATER = (Kind.CONSTANT, FAR, "")  # what `note` fills in
