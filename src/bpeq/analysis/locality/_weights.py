"""Weights at work: what goes through which axis of one, and what that makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from bpeq.analysis.locality._arrays import ADDED, Dims, Owners, Units, Value, axes_of
from bpeq.analysis.locality._contents import FAR, Atom, Content, Kind, Label


class Use(NamedTuple):
    """A weight that something went through.

    contracted: the weight's axes that were summed over; none where it multiplies entry by entry.
    carried: what went through. far: how far from x. phase: its phase.
    came, within: its units before and after.
    through: a function that the weight went through, if any.
    loop: where the innermost relaxation around stands in the program; empty if there is none.
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

    at:      the equations around, the innermost last.
    loops:   the relaxations around, the innermost last.
    moving:  the relaxations that move activity, as met.
    met:     leaves that the primitive at hand uses in a way that is known.
    tangled: leaves that it uses in a way that is not known, since an axis of them is summed over
        and left at once.
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
        self._uses: dict[tuple[object, ...], Use] = {}

    def nameless(self, matrix: Value) -> Value:
        """A matrix of the program's own as a weight: the same one whenever this place is passed."""
        if self.at not in self._nameless:
            self._nameless[self.at] = len(self.ranks)
            self.ranks.append(len(matrix.dims))
            self.shapes.append((0,) * len(matrix.dims))
        leaf = self._nameless[self.at]
        dims = tuple(dim | {(leaf, axis)} for axis, dim in enumerate(matrix.dims))
        return matrix._replace(dims=dims, weights=frozenset({(leaf, "")}))

    @property
    def uses(self) -> list[Use]:
        return list(self._uses.values())

    def phase(self, content: Content) -> str:
        """The name of its phase, as `audit_locality` lists them."""
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
        """`other` sent through weights: what comes out is activity, or error, of other units.

        An axis that is neither summed over nor left was picked from by an index: what goes out
        belongs to that entry of it, or, where nothing is summed over, what came in.

        Args:
          owners: the weights.
          other: what goes through them.
          dims: of the result.
          summed, free: the weights' dims that are summed over, and those that are left.
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
            self.note(leaf, frozenset(gone or rest), came, within, through, other)
        self.tangled |= lost
        kept = tuple(frozenset(label for label in dim if label[0] not in lost) for dim in dims)
        sent = Value(
            tuple(self._passed(content, came, within) for content in other.contents),
            kept,
            other.sizes,
            axis=axis or 0,
        )
        return sent.whole if axis is None else sent

    def passed(self, value: Value) -> Value:
        """Sent through weights, it is not known how."""
        contents = tuple(self._passed(content, None, (-3, 0)) for content in value.contents)
        return value._replace(contents=contents)

    def note(
        self,
        leaf: int,
        contracted: frozenset[int],
        came: Label | None,
        within: Label | None,
        through: str,
        other: Value,
    ) -> None:
        """A use by `other`; each of its pieces is one. The other arguments are those of `Use`."""
        self.met.add(leaf)
        loop = self.loops[-1] if self.loops else ()
        for i, content in enumerate(other.contents):
            if content.known or content.random:
                carried = (content.kind, content.far, self.phase(content))
                use = Use(leaf, contracted, *carried, came, within, through, loop)
                self._uses[(*self.at, leaf, contracted, i)] = use

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
    """Every leaf once, with the function that it went through if that is the only one."""
    by: dict[int, set[str]] = {}
    for leaf, through in sorted(owners):
        by.setdefault(leaf, set()).add("" if through == ADDED else through)
    return [(leaf, ways.pop() if len(ways) == 1 else "") for leaf, ways in by.items()]
