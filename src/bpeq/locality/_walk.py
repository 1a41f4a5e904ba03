"""One walk through a traced estimate, its loops until a round adds nothing; it notes every use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Literal
from jax.interpreters.partial_eval import dce_jaxpr

from bpeq.locality._entries import entries, pooled, product, reduced
from bpeq.locality._values import (
    MOVES,
    NONE,
    NOTHING,
    Atom,
    Content,
    Dims,
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
FOLLOWED = frozenset(
    "transpose broadcast_in_dim squeeze reshape gather slice dynamic_slice rev split tile stack "
    "concatenate pad dynamic_update_slice scatter scatter-add select_and_scatter_add "
    "reduce_window_max reduce_window_sum add sub mul div max min clamp select_n".split()
)


class Walk:
    """The values of arrays, the uses of weights, and which units are the same.

    drives: units with a forward activity that enters a relaxation as a constant.
    """

    def __init__(self, ranks: Sequence[int]) -> None:
        self.units = Units()
        self.weights = Weights(ranks, self.units)
        self.drives: set[Label] = set()
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
            return [self._dot(eqn, *values)]
        if name == "conv_general_dilated":
            return [self._conv(eqn, *values)]
        if name.startswith(("reduce_", "arg")) and "axes" in params:
            return [self._reduce(eqn, value, params["axes"]) for value in values]
        return self._entries(eqn, values)

    def _entries(self, eqn: Any, values: list[Value]) -> list[Value]:
        name, first = eqn.primitive.name, values[0]
        made = entries(eqn, values, self.units)
        if name == "gather" and first.weights and not first.content.known:
            looked_up = set(eqn.params["dimension_numbers"].collapsed_slice_dims)
            left = [dim for axis, dim in enumerate(first.dims) if axis not in looked_up]
            free = NONE.union(*left)
            return [self.weights.send(self._at, first, values[1].whole, made.dims, free)]
        if name == "mul" and made.per_example:
            made = self._scaled(values, made)
        reshaped = any(v.aval.shape != out.aval.shape for v in eqn.invars for out in eqn.outvars)
        if name not in FOLLOWED and reshaped:
            for leaf, _ in frozenset[tuple[int, str]]().union(*(v.weights for v in values)):
                self.weights.unseen.setdefault(leaf, set()).add(name)
        if len(eqn.outvars) == len(values) > 1:  # such as a sort of several by the first
            return [made._replace(dims=value.dims) for value in values]
        return [made._replace(dims=_fitting(made.dims, var)) for var in eqn.outvars]

    def _scaled(self, values: list[Value], made: Value) -> Value:
        """Entry by entry: a gain; or a matrix, whose sum over an axis may follow."""
        for weight, other in (values, values[::-1]):
            for leaf, through in weight.weights:
                if self.weights.ranks[leaf] > 1:
                    made = made._replace(summand=made.summand | {(leaf, through)})
                elif not other.weights:
                    self.weights.gain(self._at, leaf, through, other)
        return made

    def _reduce(self, eqn: Any, value: Value, axes: Sequence[int]) -> Value:
        made, gone = reduced(eqn, value, axes), NONE.union(*(value.dims[axis] for axis in axes))
        for leaf, through in value.summand:
            free = frozenset(label for dim in made.dims for label in dim if label[0] == leaf)
            if eqn.primitive.name == "reduce_sum" and free and any(o == leaf for o, _ in gone):
                weight = Value((NOTHING,), (), weights=frozenset({(leaf, through)}))
                return self.weights.send(self._at, weight, value.whole, made.dims, free)
        return made

    def _dot(self, eqn: Any, left: Value, right: Value) -> Value:
        (lc, rc), (lb, rb) = eqn.params["dimension_numbers"]
        gone = NONE
        for i, j in zip(lc, rc, strict=True):
            self.units.unite(left.dims[i] | right.dims[j])
            gone |= left.dims[i] | right.dims[j]
        batch = [left.dims[i] | right.dims[j] for i, j in zip(lb, rb, strict=True)]
        sides = [
            [dim for axis, dim in enumerate(value.dims) if axis not in {*contracted, *shared}]
            for value, contracted, shared in ((left, lc, lb), (right, rc, rb))
        ]
        dims = (*batch, *sides[0], *sides[1])
        if left.weights and right.weights:
            content = join(left.content, right.content)
            return Value((content,), dims, weights=left.weights | right.weights)
        for weight, other, side in ((left, right, sides[0]), (right, left, sides[1])):
            if weight.weights:
                free = NONE.union(*batch, *side)
                return self.weights.send(self._at, weight, other, dims, free)
        return pooled(eqn, product([left, right], dims, self.units), gone)

    def _conv(self, eqn: Any, left: Value, right: Value) -> Value:
        numbers = eqn.params["dimension_numbers"]
        gone = left.dims[numbers.lhs_spec[1]] | right.dims[numbers.rhs_spec[1]]
        self.units.unite(gone)
        made = [NONE] * len(left.dims)
        made[numbers.out_spec[0]] = left.dims[numbers.lhs_spec[0]]
        made[numbers.out_spec[1]] = features = right.dims[numbers.rhs_spec[0]]
        dims = tuple(made)
        if right.weights and not left.weights:
            return self.weights.send(self._at, right, left, dims, features, gone)
        return pooled(eqn, product([left, right], dims, self.units), gone)

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
        self.weights.loops = (*around, self._at[-1]) if relaxes else around
        carry = [value.whole for value in carry]
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
                self.weights.moving.add(self._at[-1])
                terms = [term for value in consts for term in value.content.terms]
                self.drives |= {a.where for t in terms for a in t if a.phase == "forward" if a.where}
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


def _settled(value: Value) -> Value:
    return value._replace(contents=tuple(c._replace(settled=c.known) for c in value.contents))


def _fitting(dims: Dims, var: Any) -> Dims:
    rank = len(var.aval.shape)
    return dims if len(dims) == rank else (NONE,) * rank
