"""What an array is made of, and how sums, products and functions change that."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

Label = tuple[int, int]
"""An axis of a leaf: (leaf, axis). A dimension that carries it indexes that axis's units."""
FAR = 1 << 20
MOST_TERMS = 128


class Kind(IntEnum):
    """What an array is made of.

    ZERO: nothing. CONSTANT: settings and random numbers. WEIGHT: made of weights. TARGET: y, before
    an output meets it. ACTIVITY: x, and no y. ERROR: an output's error, which activity and weights
    multiply and are never added to. NUDGED: activity that y has been added to.
    """

    ZERO = 0
    CONSTANT = 1
    WEIGHT = 2
    TARGET = 3
    ACTIVITY = 4
    ERROR = 5
    NUDGED = 6


MOVES = (Kind.ACTIVITY, Kind.NUDGED)


class Atom(NamedTuple):
    """One thing that is read.

    what:   "input", "target", "noise" (a random number), "state", "number" (units pooled into one)
        or "batch" (examples pooled, then read by a single one).
    where:  the state's units, as an axis that they index; None where no weight tells them.
    phase:  of a state: "forward", "free", "nudged", "target", "output error" or "error".
    source: of an error: the units that it has come from in its last step.
    inner:  of a number: the terms that were pooled into it. pooled: whether examples were.
    """

    what: str
    where: Label | None = None
    phase: str = ""
    source: Label | None = None
    inner: frozenset[frozenset[Atom]] = frozenset()
    pooled: bool = False


Term = frozenset[Atom]
"""A product: what its factors read."""
ONE: frozenset[Term] = frozenset({frozenset()})


class Content(NamedTuple):
    """kind and terms: a sum of products. The rest is how the array came about.

    carried: whether an error or a target in it has gone through a weight since y was read.
    settled: whether a relaxation stands behind it. far: weights between x and it, at least.
    pooled:  whether the batch was summed over. errors: whether an error was carried through a
        weight on the way, be it added to activity since.
    """

    kind: Kind
    terms: frozenset[Term] = ONE
    carried: bool = False
    settled: bool = False
    far: int = FAR
    pooled: bool = False
    errors: bool = False

    @property
    def known(self) -> bool:
        """Whether it depends on the data."""
        return self.kind > Kind.WEIGHT

    @property
    def random(self) -> bool:
        """Whether it depends on the key."""
        return any(atom.what == "noise" for term in self.terms for atom in term)


NOTHING = Content(Kind.ZERO, frozenset())


def unpooled(terms: frozenset[Term]) -> frozenset[Term]:
    """The terms with what was pooled into their numbers in place of these."""
    products: set[Term] = set()
    for term in terms:
        factors = [atom.inner if atom.what == "number" else {frozenset({atom})} for atom in term]
        products |= {frozenset[Atom]().union(*chosen) for chosen in itertools.product(*factors)}
    return frozenset(products)


def add(a: Content, b: Content) -> Content:
    """a + b. Where an output first meets its target, the sum is an error."""
    return _content(*_sum_kind(a, b), a, b, a.terms | b.terms)


def join(a: Content, b: Content) -> Content:
    """One or the other, entry by entry: a choice, a concatenation, two rounds of a loop."""
    kinds = {a.kind, b.kind}
    kind = max(kinds)
    if kinds & {Kind.WEIGHT, Kind.ACTIVITY} and kinds & {Kind.TARGET, Kind.ERROR}:
        kind = Kind.NUDGED
    return _content(kind, a.carried or b.carried, a, b, a.terms | b.terms)


def either(several: Sequence[Content]) -> Content:
    """One of several."""
    return functools.reduce(join, several)


def times(a: Content, b: Content) -> Content:
    """a · b: every term of one with every term of the other."""
    kinds, carried = {a.kind, b.kind}, a.carried or b.carried
    if Kind.ZERO in kinds:
        return NOTHING
    kind = max(kinds)
    if Kind.ERROR in kinds:
        kind = Kind.ERROR
    elif Kind.TARGET in kinds and kind > Kind.TARGET:
        kind = Kind.TARGET if carried else Kind.ERROR
    terms = frozenset(x | y for x, y in itertools.product(a.terms, b.terms))
    return _content(kind, carried, a, b, terms)


def bent(a: Content) -> Content:
    """A nonlinear function of a: it reads all terms together, and of nothing it is a constant."""
    if a.kind == Kind.ZERO:
        return Content(Kind.CONSTANT)
    return a._replace(terms=frozenset({frozenset().union(*a.terms)}))


def mixed(several: Sequence[Content]) -> Content:
    """A nonlinear function of several."""
    return bent(functools.reduce(add, several))


def chosen(which: Content, total: Content) -> Content:
    """`total`, as `which` has picked it out."""
    if not which.known or total.kind == Kind.ZERO:
        return total
    product = times(total, bent(which))._replace(far=total.far)
    if total.kind == Kind.ERROR:
        return product._replace(kind=Kind.ERROR, carried=total.carried)
    adds = which.kind == Kind.ERROR and total.kind == Kind.ACTIVITY
    return product._replace(kind=Kind.NUDGED) if adds else product


def _sum_kind(a: Content, b: Content) -> tuple[Kind, bool]:
    low, high = sorted((a, b), key=lambda content: content.kind)
    carried = a.carried or b.carried
    if low.kind <= Kind.CONSTANT or low.kind == high.kind:
        return high.kind, carried
    kinds = {low.kind, high.kind}
    if kinds == {Kind.TARGET, Kind.ERROR}:
        return Kind.ERROR, carried
    if Kind.TARGET in kinds:  # an output, which may be a bias alone, meets its target
        return (Kind.NUDGED if carried else Kind.ERROR), False
    return (high.kind if high.kind in MOVES and low.kind == Kind.WEIGHT else Kind.NUDGED), carried


def _content(kind: Kind, carried: bool, a: Content, b: Content, terms: frozenset[Term]) -> Content:
    if len(terms) > MOST_TERMS:  # what is read stays right; what is read together may be too much
        terms = frozenset({frozenset().union(*terms)})
    carried = carried and kind in (Kind.TARGET, Kind.ERROR)
    settled, pooled = a.settled or b.settled, a.pooled or b.pooled
    far, errors = min(a.far, b.far), a.errors or b.errors
    return Content(kind, terms, carried, settled, far, pooled, errors)
