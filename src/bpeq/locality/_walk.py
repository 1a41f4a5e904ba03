"""One walk through a traced estimate, its loops until a round adds nothing; it notes every use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Literal
from jax.interpreters.partial_eval import dce_jaxpr

from bpeq.locality._entries import entries, follows
from bpeq.locality._products import convolution, dot, looked_up, reduction, scaled
from bpeq.locality._values import (
    MOVES,
    NONE,
    NOTHING,
    Atom,
    Content,
    Kind,
    Label,
    Units,
    Value,
    chosen,
    join,
    loose,
)
from bpeq.locality._weights import Weights

ROUNDS = 100


class Walk:
    """The values of arrays, the uses of weights, and which units are the same.

    drives: units with a forward activity that enters a relaxation as a constant.
    unseen: primitives that changed the shape of what matters and that the walk does not know.
    """

    def __init__(self, ranks: Sequence[int]) -> None:
        self.units = Units()
        self.weights = Weights(ranks, self.units)
        self.drives: set[Label] = set()
        self.unseen: set[str] = set()
        self._bodies: dict[int, tuple[Any, Any]] = {}  # with its original, whose id it goes by
        self._at: tuple[int, ...] = ()

    def run(self, jaxpr: Any, consts: Sequence[Value], args: Sequence[Value]) -> list[Value]:
        """The values of a jaxpr's results."""
        values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

        def read(var: Any) -> Value:
            return _literal(var) if isinstance(var, Literal) else values[var]

        for eqn in jaxpr.eqns:
            outside, self._at = self._at, (*self._at, id(eqn))
            made = self._equation(eqn, [read(var) for var in eqn.invars])
            self._at = outside
            values.update(zip(eqn.outvars, made, strict=True))
        return [read(var) for var in jaxpr.outvars]

    def _equation(self, eqn: Any, values: list[Value]) -> list[Value]:
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
        if name in ("device_put", "optimization_barrier"):
            return values
        if not values:
            return [_constant(var) for var in eqn.outvars]
        if name == "dot_general":
            return [dot(self.weights, self._at, eqn, *values)]
        if name == "conv_general_dilated":
            return [convolution(self.weights, self._at, eqn, *values)]
        if name.startswith(("reduce_", "arg")) and "axes" in params:
            axes = params["axes"]
            return [reduction(self.weights, self._at, eqn, value, axes) for value in values]
        if name == "gather" and values[0].weights and not values[0].content.known:
            return [looked_up(self.weights, self._at, eqn, *values)]
        return self._others(eqn, values)

    def _others(self, eqn: Any, values: list[Value]) -> list[Value]:
        made = entries(eqn, values, self.units)
        if eqn.primitive.name == "mul":
            made = scaled(self.weights, self._at, values, made)
        if not follows(eqn) and any(v.content.known or v.weights for v in values):
            self.unseen.add(eqn.primitive.name)
        if len(eqn.outvars) == len(values) > 1:  # such as a sort of several by the first
            return [made._replace(dims=value.dims) for value in values]
        ranks = [len(var.aval.shape) for var in eqn.outvars]
        fits = [made.dims if len(made.dims) == rank else (NONE,) * rank for rank in ranks]
        return [made._replace(dims=dims) for dims in fits]

    def _call(self, inner: Any, values: Sequence[Value]) -> list[Value]:
        jaxpr, consts = _opened(inner)
        return self.run(jaxpr, consts, values)

    def _branches(self, branches: Sequence[Any], values: list[Value]) -> list[Value]:
        made = self._call(branches[0], values[1:])
        for branch in branches[1:]:
            made = list(map(self._merged, made, self._call(branch, values[1:])))
        which = values[0].content
        return [v._replace(contents=(chosen(which, v.content),), sizes=()) for v in made]

    def _scan(self, params: Any, values: list[Value]) -> list[Value]:
        start = params["num_consts"]
        first = start + params["num_carry"]
        slices = [v.whole._replace(dims=v.dims[1:]) for v in values[first:]]
        carry, ys = self._loop(params["jaxpr"], values[:start], values[start:first], slices)
        return [*carry, *(y.whole._replace(dims=(NONE, *y.dims)) for y in ys)]

    def _loop(
        self, body: Any, consts: list[Value], carry: list[Value], slices: Sequence[Value] = ()
    ) -> tuple[list[Value], list[Value]]:
        """(carry, what a round gives). A loop relaxes if all its rounds do the same thing."""
        jaxpr, inner = _opened(self._lean(body))
        shapes = [var.aval for var in jaxpr.outvars[: len(carry)]]
        relaxes = not any(v.content.known or v.weights for v in slices)
        around = self.weights.loops
        self.weights.loops = (*around, self._at) if relaxes else around
        carry = [value.whole for value in carry]
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
        for dim in dims:
            self.units.unite(dim)
        made = Value((join(a.content, b.content),), dims, summand=a.summand | b.summand)
        weights = frozenset[tuple[int, str]]() if made.per_example else a.weights | b.weights
        return made._replace(weights=weights)

    def _lean(self, closed: Any) -> Any:
        """A loop's body without what none of its results needs."""
        if id(closed) not in self._bodies:
            outputs = [True] * len(closed.jaxpr.outvars)
            jaxpr, _ = dce_jaxpr(closed.jaxpr, outputs, instantiate=True)
            self._bodies[id(closed)] = (closed, ClosedJaxpr(jaxpr, closed.consts))
        return self._bodies[id(closed)][1]


def fixed(const: Any) -> Value:
    """A constant of the program."""
    zero = hasattr(const, "any") and not bool(const.any())
    return _plain(jnp.shape(const), zero)


def _opened(inner: Any) -> tuple[Any, list[Value]]:
    if isinstance(inner, ClosedJaxpr):
        return inner.jaxpr, [fixed(const) for const in inner.consts]
    return inner, []


def _literal(var: Any) -> Value:
    return _plain(var.aval.shape, var.val == 0)


def _constant(var: Any) -> Value:
    return _plain(var.aval.shape, False)


def _plain(shape: Sequence[int], zero: bool) -> Value:
    return Value((NOTHING if zero else Content(Kind.CONSTANT),), (NONE,) * len(shape))


def _errors(value: Value, errors: bool) -> Value:
    return value._replace(contents=(value.content._replace(errors=errors),))


def _settled(value: Value) -> Value:
    return value._replace(contents=tuple(c._replace(settled=c.known) for c in value.contents))
