"""One walk through a traced estimate, its loops until a round adds nothing; it notes every use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Literal
from jax.interpreters.partial_eval import dce_jaxpr

from bpeq.analysis.locality._constants import constant, literal, opened, where
from bpeq.analysis.locality._entries import entries, follows
from bpeq.analysis.locality._places import Places, located
from bpeq.analysis.locality._products import (
    NO_OWNERS,
    across,
    combined,
    convolution,
    dot,
    looked_up,
    reduction,
)
from bpeq.analysis.locality._shapes import united
from bpeq.analysis.locality._units import NONE, Label, Units, axes_of, loose, tangled
from bpeq.analysis.locality._values import MOVES, NOTHING, Atom, Kind, Owners, Value, chosen, join
from bpeq.analysis.locality._weights import Weights

ROUNDS = 100


class Walk:
    """The values of arrays, the uses of weights, and which units are the same.

    drives: units with a forward activity that enters a relaxation as a constant.
    unseen: primitives that changed the shape of what matters and that the walk does not know.
    """

    def __init__(self, shapes: Sequence[Sequence[int]]) -> None:
        self.units = Units()
        self.weights = Weights(shapes, self.units)
        self.drives: set[Label] = set()
        self.unseen: set[str] = set()
        self._bodies: dict[int, tuple[Any, Any]] = {}  # with its original, whose id it goes by
        self._at: tuple[int, ...] = ()

    def run(self, jaxpr: Any, consts: Sequence[Value], args: Sequence[Value]) -> list[Value]:
        """The values of a jaxpr's results."""
        values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

        def read(var: Any) -> Value:
            return literal(var) if isinstance(var, Literal) else values[var]

        for eqn in jaxpr.eqns:
            outside, self._at = self._at, (*self._at, id(eqn))
            given = [read(var) for var in eqn.invars]
            made = self._inside(eqn, given)
            if made is None:
                self.weights.met, self.weights.tangled = set(), set()
                made = self._equation(eqn, given)
                made = [self._kept(eqn, given, value, i) for i, value in enumerate(made)]
            self._at = outside
            values.update(zip(eqn.outvars, made, strict=True))
        return [read(var) for var in jaxpr.outvars]

    def _kept(self, eqn: Any, values: Sequence[Value], made: Value, out: int) -> Value:
        """A primitive's result, with the weights that it has made no known use of as lost in it."""
        made = made._replace(places=Places.of(eqn, [value.places for value in values], out))
        if made.content.kind == Kind.ZERO:
            same = frozenset(range(len(made.dims)))
            return made._replace(weights=NO_OWNERS, summand=NO_OWNERS, spread=same)
        found: Owners = made.weights
        if made.places is not None and any(tangled(leaf, made.dims) for leaf, _ in found):
            made = self._located(made, made.places)
        came = NO_OWNERS.union(*(value.weights | value.summand for value in values))
        stay = {leaf for leaf, _ in found | made.summand}
        lost = ({leaf for leaf, _ in came} - stay - self.weights.met) | self.weights.tangled
        if lost and made.content.known:
            made = self.weights.passed(made)
        new = {(leaf, where(eqn)) for leaf in lost}
        return made._replace(lost=made.lost.union(new, *(value.lost for value in values)))

    def _located(self, made: Value, places: Places) -> Value:
        """Weights that are laid out so that only the places of their entries tell their axes."""
        several = located(places, self.weights.shapes)
        dims = united(list(several.values()), len(made.dims))
        own = frozenset(pair for pair in made.weights if pair[0] in several)
        return made._replace(dims=dims, weights=own)

    def _inside(self, eqn: Any, values: list[Value]) -> list[Value] | None:
        """A primitive that holds programs; None for any other."""
        name, params = eqn.primitive.name, eqn.params
        if name == "while":
            before = params["cond_nconsts"]
            middle = before + params["body_nconsts"]
            return self._loop(params["body_jaxpr"], values[before:middle], values[middle:])[0]
        if name == "scan":
            return self._scan(params, values)
        if name == "cond":
            return self._branches(params["branches"], values)
        if name == "custom_linear_solve":
            sizes = params["const_lengths"]
            skip = sizes.matvec + sizes.vecmat
            given = [*values[skip : skip + sizes.solve], *values[sum(sizes) :]]
            return self._call(params["jaxprs"].solve, given)
        for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
            if key in params:
                return self._call(params[key], values)
        return values if name in ("device_put", "optimization_barrier") else None

    def _equation(self, eqn: Any, values: list[Value]) -> list[Value]:
        name = eqn.primitive.name
        if not values:
            return [constant(var) for var in eqn.outvars]
        if name == "dot_general":
            return [dot(self.weights, self._at, eqn, *values)]
        if name == "conv_general_dilated":
            return [convolution(self.weights, self._at, eqn, *values)]
        if name.startswith(("reduce_", "arg")) and "axes" in eqn.params:
            axes = eqn.params["axes"]
            return [reduction(self.weights, self._at, eqn, value, axes) for value in values]
        which = values[1].content if name == "gather" else NOTHING
        if values[0].weights and not values[0].content.known and (which.known or which.random):
            return [looked_up(self.weights, self._at, eqn, *values)]
        return self._others(eqn, values)

    def _others(self, eqn: Any, values: list[Value]) -> list[Value]:
        made = entries(eqn, values, self.units)
        if eqn.primitive.name in ("stack", "concatenate"):
            axis = eqn.params["axis" if eqn.primitive.name == "stack" else "dimension"]
            made = across(self.weights, made, values, axis)
        made = combined(self.weights, self._at, eqn, values, made)
        if not follows(eqn) and any(v.content.known or v.weights for v in values):
            self.unseen.add(eqn.primitive.name)
        if len(eqn.outvars) == len(values) > 1:  # such as a sort of several by the first
            return [made._replace(dims=value.dims) for value in values]
        ranks = [len(var.aval.shape) for var in eqn.outvars]
        fits = [made.dims if len(made.dims) == rank else (NONE,) * rank for rank in ranks]
        return [made._replace(dims=dims) for dims in fits]

    def _call(self, inner: Any, values: Sequence[Value]) -> list[Value]:
        jaxpr, consts = opened(inner)
        return self.run(jaxpr, consts, values)

    def _branches(self, branches: Sequence[Any], values: list[Value]) -> list[Value]:
        made = self._call(branches[0], values[1:])
        for branch in branches[1:]:
            made = list(map(self._merged, made, self._call(branch, values[1:])))
        which = values[0].content
        return [
            v._replace(contents=(chosen(which, v.content),), sizes=(), lost=v.lost | values[0].lost)
            for v in made
        ]

    def _scan(self, params: Any, values: list[Value]) -> list[Value]:
        start = params["num_consts"]
        first = start + params["num_carry"]
        slices = [v.again._replace(dims=v.dims[1:]) for v in values[first:]]
        carry, ys = self._loop(params["jaxpr"], values[:start], values[start:first], slices)
        rounds = [y.again._replace(dims=(NONE, *y.dims)) for y in ys]
        return [*carry, *(across(self.weights, y, [y, y], 0) for y in rounds)]

    def _loop(
        self, body: Any, consts: list[Value], carry: list[Value], slices: Sequence[Value] = ()
    ) -> tuple[list[Value], list[Value]]:
        """(carry, what a round gives). A loop relaxes if all its rounds do the same thing."""
        jaxpr, inner = opened(self._lean(body))
        shapes = [var.aval for var in jaxpr.outvars[: len(carry)]]
        relaxes = not any(v.content.known or v.weights for v in slices)
        around = self.weights.loops
        self.weights.loops = (*around, self._at) if relaxes else around
        carry = [value.again._replace(spread=value.spread) for value in carry]  # a constant start
        first = [value.content.errors for value in carry]
        for again in (False, True):  # again: whether errors are carried, now that it is known what
            if again:
                carry = list(map(_errors, carry, first))
            for _ in range(ROUNDS):
                entered = list(map(self._state, carry, shapes))
                made = self.run(jaxpr, inner, [*consts, *entered, *slices])
                after = list(map(self._merged, carry, made[: len(carry)]))
                if after == carry:
                    break
                carry = after
        left, given = list(map(self._state, carry, shapes)), made[len(carry) :]
        self.weights.loops = around
        if relaxes:
            if any(v.per_example and v.content.kind in MOVES for v in carry):
                self.weights.moving[self._at] = None
                terms = [term for value in consts for term in value.content.terms]
                self.drives |= {
                    a.where for t in terms for a in t if a.phase == "forward" if a.where
                }
            left, given = list(map(_settled, left)), list(map(_settled, given))
        return left, given

    def _state(self, value: Value, aval: Any) -> Value:
        """What a round starts from is the state of its units, whatever has made it.

        Numbers that the rounds share, such as a solver's test of who has settled, end here.
        """
        content = value.content
        if not value.per_example or value.weights or loose(aval.shape, value.dims):
            return value
        if content.kind == Kind.ERROR:
            terms = frozenset(
                frozenset(atom for atom in term if atom.what != "number") for term in content.terms
            )
        elif content.kind in MOVES and jnp.issubdtype(aval.dtype, jnp.inexact):
            atom = Atom("state", self.units.of(value.dims), self.weights.phase(content))
            terms = frozenset({frozenset({atom})})
        else:
            return value
        return value._replace(contents=(content._replace(terms=terms),))

    def _merged(self, a: Value, b: Value) -> Value:
        dims = tuple(x | y for x, y in zip(a.dims, b.dims, strict=True))
        for x, y in zip(*(self.units.apart(v.dims) for v in (a, b)), strict=True):
            self.units.unite(x | y)
        made = Value((join(a.content, b.content),), dims, summand=a.summand | b.summand)
        weights, lost = a.weights | b.weights, a.lost | b.lost
        if made.per_example:
            wide = {leaf for leaf, _ in weights if len(axes_of(leaf, dims)) > 1}
            lost |= {(leaf, "a loop or a branch") for leaf in wide}
            weights = NO_OWNERS
        return made._replace(weights=weights, lost=lost, spread=a.spread & b.spread)

    def _lean(self, closed: Any) -> Any:
        """A loop's body without what none of its results needs."""
        if id(closed) not in self._bodies:
            outputs = [True] * len(closed.jaxpr.outvars)
            jaxpr, _ = dce_jaxpr(closed.jaxpr, outputs, instantiate=True)
            self._bodies[id(closed)] = (closed, ClosedJaxpr(jaxpr, closed.consts))
        return self._bodies[id(closed)][1]


def _errors(value: Value, errors: bool) -> Value:
    return value._replace(contents=(value.content._replace(errors=errors),))


def _settled(value: Value) -> Value:
    return value._replace(contents=tuple(c._replace(settled=c.known) for c in value.contents))
