"""Traces a rule's estimate, and walks through it with what is known of its arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from bpeq.analysis.locality._arrays import (
    ADDED,
    BATCH,
    LATE,
    NO_LABELS,
    Owners,
    Value,
    axes_of,
)
from bpeq.analysis.locality._contents import FAR, Atom, Content, Kind
from bpeq.analysis.locality._places import numbered
from bpeq.analysis.locality._walk import Walk, constant, held
from bpeq.core.jaxprs import without_dead_code
from bpeq.core.tracing import carries_all
from bpeq.types import Batch, Key, Params, State

UNSUMMED = "a product with a part of a weight"
_NOUNS = {
    Kind.TARGET: "targets",
    Kind.ACTIVITY: "activity",
    Kind.ERROR: "errors",
    Kind.NUDGED: "activity with errors in it",
}


class TracedEstimate:
    """An estimate and its arguments.

    `count` is the number of leaves of params, and `states` that of the rule's state. `constants` is
    the number of constants of the program, after a walk.

    Args:
      estimate: the rule's estimate.
      params: its parameters.
      batch: at least two examples.
      state: the rule's state.
      key: the random key.
    """

    def __init__(
        self, estimate: Callable[..., Any], params: Params, batch: Batch, state: State, key: Key
    ) -> None:
        self._estimate, self._arguments = estimate, (params, batch, state, key)
        self.count, self.states = len(jax.tree.leaves(params)), len(jax.tree.leaves(state))
        self.constants = 0

    def gradients(self, late: Mapping[int, Value], with_state: bool) -> tuple[Walk, list[Value]]:
        """Walks to the gradients.

        Args:
          late: the leaves of the state that hold weights, and what they hold.
          with_state: whether to walk on to the new state, whose activity is read one step late.

        Returns:
          The walk, and what it knows of each gradient.
        """
        end = None if with_state else 1
        walk, values = self._walk(lambda result: (result[0].grads, result[1])[:end], late)
        for i, value in enumerate(values[: self.count]):
            # A product that lacks an axis of a weight, although it was not summed over it.
            pending = {leaf for leaf, function in value.summand if function != ADDED}
            lost = {n for n in pending if len(axes_of(n, value.dims)) < walk.weights.ranks[n]}
            values[i] = value._replace(lost=value.lost | {(leaf, UNSUMMED) for leaf in lost})
        return walk, values[: self.count]

    def late_leaves(self) -> tuple[dict[int, Value], list[tuple[int, Value]]]:
        """Finds the leaves of the state that hold other leaves one step late, and leaves made anew.

        Returns:
          The former by their number, and the latter as pairs of number and value.
        """
        late: dict[int, Value] = {}
        values: list[Value] = []
        for _ in range(self.states + 1):  # a leaf may hold the earlier content of another leaf
            values = self._walk(lambda result: result[1], late)[1]
            holding = {i: v for i, v in enumerate(values) if _others(self.count + i, v)}
            before, late = late, {i: _held_late(value) for i, value in holding.items()}
            if late == before:
                break
        return late, [(i, v) for i, v in enumerate(values) if i in late or v.content.known]

    def _walk(
        self, part: Callable[[Any], Any], late: Mapping[int, Value]
    ) -> tuple[Walk, list[Value]]:
        with carries_all.on():
            closed = jax.make_jaxpr(lambda *args: part(self._estimate(*args)))(*self._arguments)
        jaxpr = without_dead_code(closed.jaxpr)
        avals: list[Any] = [var.aval for var in jaxpr.invars]
        fixed: list[Any] = [var.aval for var in jaxpr.constvars]
        self.constants, end = len(fixed), self.count + self.states
        weights, (x, y), rest = avals[: self.count], avals[self.count :][:2], avals[end + 2 :]
        states = avals[self.count + 2 : end + 2]
        shapes = [aval.shape for aval in (*weights, *states, *fixed)]
        walk, places = Walk(shapes), numbered(shapes)
        noise = Content(Kind.CONSTANT, frozenset({frozenset({Atom("noise")})}))
        consts = []
        for i, (const, aval) in enumerate(zip(closed.consts, fixed, strict=True)):
            value = held(const)  # a matrix of the program, unless it is zero
            matrix = _leaf(end + i, aval, 2)._replace(places=value.places)
            consts.append(matrix if value.content.kind else value)
        args = [
            *(_leaf(i, aval, 1)._replace(places=places[i]) for i, aval in enumerate(weights)),
            _data(x, Kind.ACTIVITY, "input", 0),
            _data(y, Kind.TARGET, "target", FAR),
            *(late.get(i) or _leaf(self.count + i, aval, 2) for i, aval in enumerate(states)),
            *(Value((noise,), (NO_LABELS,) * len(aval.shape)) for aval in rest),
        ]
        return walk, walk.run(jaxpr, consts, args)


def contents_of(names: Sequence[str], value: Value, leaf: int) -> str:
    """Names the sources of a new state: other leaves, and a noun for data.

    Args:
      names: the names of all leaves.
      value: what is known of the new state.
      leaf: the number of this leaf.

    Returns:
      The text.
    """
    leaves = {names[i] for i, _ in _others(leaf, value) if i < len(names)}
    data = [_NOUNS[value.content.kind]] if value.content.known else []
    return ", ".join([*sorted(leaves), *data])


def _others(leaf: int, value: Value) -> Owners:
    owners = value.weights | value.summand | value.lost
    return frozenset(pair for pair in owners if pair[0] != leaf)


def _held_late(value: Value) -> Value:
    """What a leaf of the state, which holds other leaves, is to the next estimate."""
    owners = frozenset((i, LATE) for i, _ in value.weights | value.summand)
    weight, places = (Content(Kind.WEIGHT),), value.places
    return Value(weight, value.dims, weights=owners, lost=value.lost, places=places)


def _leaf(leaf: int, aval: Any, least: int) -> Value:
    """An array that does not depend on data. With fewer than `least` axes it is a coefficient."""
    rank = len(aval.shape)
    if rank < least or not jnp.issubdtype(aval.dtype, jnp.inexact):
        return constant(aval.shape)
    dims = tuple(frozenset({(leaf, axis)}) for axis in range(rank))
    return Value((Content(Kind.WEIGHT),), dims, weights=frozenset({(leaf, "")}))


def _data(aval: Any, kind: Kind, what: str, far: int) -> Value:
    terms = frozenset({frozenset({Atom(what)})})
    dims = (frozenset({BATCH}), *(NO_LABELS,) * (len(aval.shape) - 1))
    return Value((Content(kind, terms, far=far),), dims)
