"""The sources of an array, and how sums, products and functions change them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import NamedTuple

Label = tuple[int, int]
"""An axis of a leaf: (leaf, axis). A dimension with this label indexes the units of that axis."""
FAR = 1 << 20
MOST_TERMS = 128


class Kind(IntEnum):
    """The kind of an array's sources.

    ZERO: no source. CONSTANT: settings and random numbers. WEIGHT: weights. TARGET: y, before it
    meets an output. ACTIVITY: x without y. ERROR: an output's error, possibly multiplied by
    activity and weights, but not added to them. NUDGED: activity to which y was added.
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
    """One thing that a gradient reads.

    Args:
      what: "input", "target", "noise" (a random number), "state", "number" (units pooled into one),
        "signal" (one of several units, or a sum over some, read by other units), "batch" (examples
        pooled, then read by a single example) or "unknown" (an unknown primitive).
      where: the units of the state, as an axis that they index; None if no weight shows them.
      phase: of a state: "forward", "free", "nudged", "target", "output error" or "error".
      source: of an error: the units from which its last step came.
      inner: of a number or a signal: its terms.
      pooled: whether examples were pooled.
    """

    what: str
    where: Label | None = None
    phase: str = ""
    source: Label | None = None
    inner: frozenset[frozenset[Atom]] = frozenset()
    pooled: bool = False


Term = frozenset[Atom]
"""A product: the atoms that its factors read."""
ONE: frozenset[Term] = frozenset({frozenset()})


class Content(NamedTuple):
    """A sum of products, with the history of the array.

    Args:
      kind: the kind of its sources.
      terms: the products.
      carried: whether an error or a target in it has passed through a weight since y was read.
      settled: whether it comes from a relaxation.
      far: the least number of weights between x and it.
      pooled: whether it was summed over the batch.
      errors: whether an error has passed through a weight on the way, even if it was added to
        activity later.
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
    """Replaces numbers and signals by their terms.

    Args:
      terms: the terms.

    Returns:
      The terms without numbers and signals.
    """
    return replaced(terms, lambda a: a.inner if a.inner else frozenset({frozenset({a})}))


def replaced(terms: frozenset[Term], inside: Callable[[Atom], frozenset[Term]]) -> frozenset[Term]:
    """Replaces every atom of products by a sum of products.

    Args:
      terms: the products.
      inside: the sum for an atom.

    Returns:
      The products, multiplied out.
    """
    products: set[Term] = set()
    for term in terms:
        factors = map(inside, term)
        products |= {frozenset[Atom]().union(*chosen) for chosen in itertools.product(*factors)}
    return frozenset(products)


def signalled(content: Content) -> Content:
    """The content as a signal that other units read.

    Args:
      content: a content.

    Returns:
      The content with a single atom; the content itself if it does not depend on data.
    """
    if not content.known:
        return content
    examples = any(atom.pooled for term in content.terms for atom in term)
    inner = unpooled(content.terms)
    atom = Atom("signal", inner=inner, pooled=content.pooled or examples)
    return content._replace(terms=frozenset({frozenset({atom})}))


def add(a: Content, b: Content) -> Content:
    """The content of a + b. If an output meets its target here, the sum is an error.

    Args:
      a: a content.
      b: a content.

    Returns:
      The content of the sum.
    """
    return _content(*_sum_kind(a, b), a, b, a.terms | b.terms)


def join(a: Content, b: Content) -> Content:
    """The content of a or b, entry by entry: a choice, a concatenation, two rounds of a loop.

    Args:
      a: a content.
      b: a content.

    Returns:
      The content.
    """
    kinds = {a.kind, b.kind}
    kind = max(kinds)
    if kinds & {Kind.WEIGHT, Kind.ACTIVITY} and kinds & {Kind.TARGET, Kind.ERROR}:
        kind = Kind.NUDGED
    return _content(kind, a.carried or b.carried, a, b, a.terms | b.terms)


def either(several: Sequence[Content]) -> Content:
    """The content of one of several arrays.

    Args:
      several: the contents.

    Returns:
      The content.
    """
    return functools.reduce(join, several)


def times(a: Content, b: Content) -> Content:
    """The content of a · b: every term of a with every term of b.

    Args:
      a: a content.
      b: a content.

    Returns:
      The content of the product.
    """
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
    """The content of a nonlinear function of a. It reads all terms together.

    Args:
      a: a content. A function of nothing is a constant.

    Returns:
      The content.
    """
    if a.kind == Kind.ZERO:
        return Content(Kind.CONSTANT)
    return a._replace(terms=frozenset({frozenset().union(*a.terms)}))


def mixed(several: Sequence[Content]) -> Content:
    """The content of a nonlinear function of several arrays.

    Args:
      several: the contents.

    Returns:
      The content.
    """
    return bent(functools.reduce(add, several))


def chosen(which: Content, total: Content) -> Content:
    """The content of `total` after `which` has selected its entries.

    Args:
      which: the content of the selector.
      total: the content of the entries.

    Returns:
      The content.
    """
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
    if Kind.TARGET in kinds:  # an output, perhaps only a bias, meets its target
        return (Kind.NUDGED if carried else Kind.ERROR), False
    return (high.kind if high.kind in MOVES and low.kind == Kind.WEIGHT else Kind.NUDGED), carried


def _content(kind: Kind, carried: bool, a: Content, b: Content, terms: frozenset[Term]) -> Content:
    if len(terms) > MOST_TERMS:  # the atoms stay right, but too many may count as read together
        terms = frozenset({frozenset().union(*terms)})
    carried = carried and kind in (Kind.TARGET, Kind.ERROR)
    settled, pooled = a.settled or b.settled, a.pooled or b.pooled
    far, errors = min(a.far, b.far), a.errors or b.errors
    return Content(kind, terms, carried, settled, far, pooled, errors)
