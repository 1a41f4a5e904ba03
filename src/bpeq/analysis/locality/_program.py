"""A rule's estimate as a program: traced, and walked with what is known of its arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters.partial_eval import dce_jaxpr

from bpeq.analysis.locality._constants import fixed
from bpeq.analysis.locality._places import numbered
from bpeq.analysis.locality._units import BATCH, NONE, axes_of
from bpeq.analysis.locality._values import ADDED, FAR, LATE, Atom, Content, Kind, Value
from bpeq.analysis.locality._walk import Walk
from bpeq.core.tracing import carries_all
from bpeq.types import Batch, Key, Params, State

UNSUMMED = "a product with a part of a weight"
_WORDS = {
    Kind.TARGET: "targets",
    Kind.ACTIVITY: "activity",
    Kind.ERROR: "errors",
    Kind.NUDGED: "activity with errors in it",
}


class Program:
    """An estimate and its arguments. count, kept: the leaves of params, and of the rule's state."""

    def __init__(
        self, estimate: Callable[..., Any], params: Params, batch: Batch, state: State, key: Key
    ) -> None:
        self._estimate, self._given = estimate, (params, batch, state, key)
        self.count, self.kept = len(jax.tree.leaves(params)), len(jax.tree.leaves(state))
        self.fixtures = 0

    def gradients(self, late: Mapping[int, Value], states: bool) -> tuple[Walk, list[Value]]:
        """A walk to the gradients, the leaves `late` of the state being what they are given as.

        states: whether it goes on to the new state, whose activity is read a step late.
        """
        end = None if states else 1
        walk, made = self._walk(lambda made: (made[0].grads, made[1])[:end], late)
        for i, value in enumerate(made[: self.count]):
            own = {p[0] for p in value.summand if p[1] != ADDED and _picked(walk, p[0], value)}
            made[i] = value._replace(lost=value.lost | {(leaf, UNSUMMED) for leaf in own})
        return walk, made[: self.count]

    def states(self, late: Mapping[int, Value]) -> list[Value]:
        """The leaves of the new state."""
        return self._walk(lambda made: made[1], late)[1]

    def _walk(
        self, part: Callable[[Any], Any], late: Mapping[int, Value]
    ) -> tuple[Walk, list[Value]]:
        with carries_all.on():
            closed = jax.make_jaxpr(lambda *given: part(self._estimate(*given)))(*self._given)
        outputs = [True] * len(closed.jaxpr.outvars)
        jaxpr, _ = dce_jaxpr(closed.jaxpr, outputs, instantiate=True)
        avals: list[Any] = [var.aval for var in jaxpr.invars]
        end = self.count + self.kept
        weights, rest = avals[: self.count], avals[self.count :]
        states = rest[2 : 2 + self.kept]
        fixtures: list[Any] = [var.aval for var in jaxpr.constvars]
        self.fixtures = len(fixtures)
        shapes = [aval.shape for aval in (*weights, *states, *fixtures)]
        walk, places = Walk(shapes), numbered(shapes)
        consts = [
            _weight(end + i, aval, least=2)._replace(places=fixed(const).places)
            if fixed(const).content.kind
            else fixed(const)
            for i, (const, aval) in enumerate(zip(closed.consts, fixtures, strict=True))
        ]
        noise = Content(Kind.CONSTANT, frozenset({frozenset({Atom("noise")})}))
        own = [late.get(i) or _weight(self.count + i, aval, 2) for i, aval in enumerate(states)]
        args = [
            *(_weight(i, aval, 1)._replace(places=places[i]) for i, aval in enumerate(weights)),
            _data(rest[0], Kind.ACTIVITY, "input", 0),
            _data(rest[1], Kind.TARGET, "target", FAR),
            *own,
            *(Value((noise,), (NONE,) * len(aval.shape)) for aval in rest[2 + self.kept :]),
        ]
        return walk, walk.run(jaxpr, consts, args)


def carried(program: Program) -> tuple[dict[int, Value], list[tuple[int, Value]]]:
    """The leaves of the state that hold other leaves a step late; those made anew, of anything."""
    late: dict[int, Value] = {}
    made: list[Value] = []
    for _ in range(program.kept + 1):  # a leaf may hold what another one held
        made = program.states(late)
        found = {i: held for i, v in enumerate(made) if (held := _late(program.count + i, v))}
        if found == late:
            break
        late = found
    new = [(i, v) for i, v in enumerate(made) if i in late or v.content.known]
    return late, new


def what(names: list[str], made: Value, leaf: int) -> str:
    """What a new state is made of, in words."""
    found = {names[i] for i, _ in _others(leaf, made) if i < len(names)}
    data = [_WORDS[made.content.kind]] if made.content.known else []
    return ", ".join([*sorted(found), *data])


def _picked(walk: Walk, leaf: int, value: Value) -> bool:
    """Whether an axis of a weight is missing from a product that was not summed over it."""
    return len(axes_of(leaf, value.dims)) < walk.weights.ranks[leaf]


def _others(leaf: int, made: Value) -> set[tuple[int, str]]:
    return {pair for pair in made.weights | made.summand | made.lost if pair[0] != leaf}


def _late(leaf: int, made: Value) -> Value | None:
    """What a leaf of the state is to the next estimate, if it holds others."""
    if not _others(leaf, made):
        return None
    owners = frozenset((i, LATE) for i, _ in made.weights | made.summand)
    return Value(
        (Content(Kind.WEIGHT),), made.dims, weights=owners, lost=made.lost, places=made.places
    )


def _weight(leaf: int, aval: Any, least: int) -> Value:
    """An array of numbers that does not depend on the data; with fewer axes a coefficient."""
    rank = len(aval.shape)
    holds = rank >= least and jnp.issubdtype(aval.dtype, jnp.inexact)
    dims = tuple(frozenset({(leaf, axis)}) if holds else NONE for axis in range(rank))
    marked = frozenset({(leaf, "")}) if holds else frozenset[tuple[int, str]]()
    return Value((Content(Kind.WEIGHT if holds else Kind.CONSTANT),), dims, weights=marked)


def _data(aval: Any, kind: Kind, what: str, far: int) -> Value:
    terms = frozenset({frozenset({Atom(what)})})
    dims = (frozenset({BATCH}), *(NONE,) * (len(aval.shape) - 1))
    return Value((Content(kind, terms, far=far),), dims)
