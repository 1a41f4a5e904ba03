"""One walk through a traced estimate, which repeats each loop until nothing changes."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bpeq.analysis.locality import _arrays, _contents, _products
from bpeq.analysis.locality._arrays import NO_LABELS, NO_OWNERS, Units, Value, axes_of, tangled
from bpeq.analysis.locality._contents import MOVES, NOTHING, Atom, Content, Kind, Label, chosen
from bpeq.analysis.locality._entries import entries, follows
from bpeq.analysis.locality._places import Places, located, moved_places
from bpeq.analysis.locality._weights import Weights
from bpeq.core import jaxprs
from bpeq.core.jaxprs import Program, Walker, source_line

ROUNDS = 100


class Walk(Walker[Value]):
    """The values of arrays, the uses of weights, and which units are the same.

    drives: units with a forward activity that enters a relaxation as a constant.
    unseen: primitives that changed the shape of what matters and that the walk does not know.
    """

    def __init__(self, shapes: Sequence[Sequence[int]]) -> None:
        self.units = Units()
        self.weights = Weights(shapes, self.units)
        self.drives: set[Label] = set()
        self.unseen: set[str] = set()
        self._around: list[Any] = []  # the present equation, after those around it
        self._bodies: dict[int, tuple[Program, Program]] = {}  # with the original, for its id

    def literal(self, literal: Any) -> Value:
        """The value of a literal in the program.

        Args:
          literal: the literal.

        Returns:
          The value.
        """
        places = Places(lambda: jnp.asarray(literal.val, literal.aval.dtype))
        return constant(literal.aval.shape, literal.val == 0)._replace(places=places)

    def equation(self, eqn: Any, values: list[Value]) -> Sequence[Value]:
        """The values of the results of one equation.

        Args:
          eqn: the equation.
          values: the values of its operands.

        Returns:
          One value for each result.
        """
        outside, self.weights.at = self.weights.at, (*self.weights.at, id(eqn))
        self._around.append(eqn)
        results = self._inside(eqn, values)
        if results is None:
            self.weights.met, self.weights.tangled = set(), set()
            results = self._primitive(eqn, values)
            results = [self._kept(eqn, values, value, i) for i, value in enumerate(results)]
        self.weights.at = outside
        self._around.pop()
        return results

    def _described(self) -> str:
        """The present primitive, with the line of the user's code from which it comes."""
        name = str(self._around[-1].primitive.name)
        line = next(filter(None, map(source_line, reversed(self._around))), "")
        return f"{name} ({line})" if line else name

    def _call(self, program: Program, values: Sequence[Value]) -> list[Value]:
        return self.run(program.jaxpr, list(map(held, program.consts)), values)

    def _kept(self, eqn: Any, values: Sequence[Value], result: Value, out: int) -> Value:
        """The result of a primitive. Weights without a known use in it are marked as lost."""
        result = result._replace(places=moved_places(eqn, [value.places for value in values], out))
        if result.content.kind == Kind.ZERO:
            same = frozenset(range(len(result.dims)))
            return result._replace(weights=NO_OWNERS, summand=NO_OWNERS, spread=same)
        owners = result.weights
        if result.places is not None and any(tangled(leaf, result.dims) for leaf, _ in owners):
            # The axes of such weights can only be found from the places of their entries.
            several = located(result.places, self.weights.shapes)
            dims = _arrays.united(list(several.values()), len(result.dims))
            kept = frozenset(pair for pair in result.weights if pair[0] in several)
            result = result._replace(dims=dims, weights=kept)
        came = NO_OWNERS.union(*(value.weights | value.summand for value in values))
        stay = {leaf for leaf, _ in owners | result.summand}
        lost = ({leaf for leaf, _ in came} - stay - self.weights.met) | self.weights.tangled
        if lost and result.content.known:
            result = self.weights.passed(result, None, (-3, 0))
        new = {(leaf, self._described()) for leaf in lost}
        return result._replace(lost=result.lost.union(new, *(value.lost for value in values)))

    def _inside(self, eqn: Any, values: list[Value]) -> list[Value] | None:
        """The results of a primitive that holds programs; None for other primitives."""
        name, inner = eqn.primitive.name, jaxprs.inner_programs(eqn)
        if name in ("while", "scan"):
            _, consts, carry, arrays = jaxprs.split_operands(eqn, values)
            slices = list(map(self._slice, arrays))
            carry, outputs = self._loop(inner[-1], consts, carry, slices)
            rounds = list(map(self._stacked, outputs))
            return [*carry, *(_products.across(self.weights, y, [y, y], 0) for y in rounds)]
        if name == "cond":
            return self._branches(inner, values)
        if name == "custom_linear_solve":
            sizes = eqn.params["const_lengths"]
            skip = sizes.matvec + sizes.vecmat
            args = [*values[skip : skip + sizes.solve], *values[sum(sizes) :]]
            return self._call(jaxprs.opened(eqn.params["jaxprs"].solve), args)
        if inner and name not in ("reduce", "reduce_window"):
            return self._call(inner[0], values)
        return values if name in ("device_put", "optimization_barrier") else None

    def _primitive(self, eqn: Any, values: list[Value]) -> list[Value]:
        name, weights = eqn.primitive.name, self.weights
        if not values:
            return [constant(var.aval.shape) for var in eqn.outvars]
        if name == "dot_general":
            return [_products.dot(weights, eqn, *values)]
        if name == "conv_general_dilated":
            return [_products.convolution(weights, eqn, *values)]
        if name == "reduce":  # with a function of the user's; the second half are its starts
            return [_products.reduction(weights, eqn, v) for v in values[: len(eqn.outvars)]]
        if name.startswith(("reduce_", "arg")) and "axes" in eqn.params:
            return [_products.reduction(weights, eqn, value) for value in values]
        index = values[1].content if name == "gather" else NOTHING
        if values[0].weights and not values[0].content.known and (index.known or index.random):
            return [_products.looked_up(weights, eqn, *values)]
        result = entries(eqn, values, self.units)
        if name in ("stack", "concatenate"):
            axis = eqn.params["axis" if name == "stack" else "dimension"]
            result = _products.across(weights, result, values, axis)
        result = _products.combined(weights, eqn, values, result)
        if not follows(eqn) and any(v.content.known or v.weights for v in values):
            self.unseen.add(self._described())
            result = result.mapped(_unknown)
        if len(eqn.outvars) == len(values) > 1:  # such as a sort of several arrays by the first
            return [result._replace(dims=value.dims) for value in values]
        ranks = [len(var.aval.shape) for var in eqn.outvars]
        fits = [result.dims if len(result.dims) == rank else (NO_LABELS,) * rank for rank in ranks]
        return [result._replace(dims=dims) for dims in fits]

    def _branches(self, branches: Sequence[Program], values: list[Value]) -> list[Value]:
        result = self._call(branches[0], values[1:])
        for branch in branches[1:]:
            result = list(map(self._merged, result, self._call(branch, values[1:])))
        which, lost = values[0].signalled.content, values[0].lost
        return [
            v._replace(contents=(chosen(which, v.content),), sizes=(), lost=v.lost | lost)
            for v in result
        ]

    def _loop(
        self, body: Program, consts: Sequence[Value], carry: Sequence[Value], slices: list[Value]
    ) -> tuple[list[Value], list[Value]]:
        """(carry, the outputs of a round). A loop relaxes if all its rounds do the same."""
        if id(body.jaxpr) not in self._bodies:
            smaller = body._replace(jaxpr=jaxprs.without_dead_code(body.jaxpr))
            self._bodies[id(body.jaxpr)] = body, smaller
        program = self._bodies[id(body.jaxpr)][1]
        shapes = [var.aval for var in program.jaxpr.outvars[: len(carry)]]
        relaxes = not any(v.content.known or v.weights for v in slices)
        around, at = self.weights.loops, self.weights.at
        self.weights.loops = (*around, at) if relaxes else around
        carry = [value.again._replace(spread=value.spread) for value in carry]  # a constant start
        # The first pass finds what is carried, and the second whether errors are carried.
        first = [value.content.errors for value in carry]
        for again in (False, True):
            if again:
                carry = [_replaced(v, errors=e) for v, e in zip(carry, first, strict=True)]
            for _ in range(ROUNDS):
                entered = list(map(self._state, carry, shapes))
                result = self._call(program, [*consts, *entered, *slices])
                after = list(map(self._merged, carry, result[: len(carry)]))
                if after == carry:
                    break
                carry = after
        left, outputs = list(map(self._state, carry, shapes)), result[len(carry) :]
        self.weights.loops = around
        if not relaxes:
            return left, outputs
        if any(v.per_example and v.content.kind in MOVES and not v.picked for v in carry):
            self.weights.moving[at] = None
            atoms = {a for value in consts for term in value.content.terms for a in term}
            self.drives |= {a.where for a in atoms if a.phase == "forward" and a.where}
        return list(map(_settled, left)), list(map(_settled, outputs))

    def _slice(self, array: Value) -> Value:
        """The value of a slice along axis 0, which a round of a loop reads."""
        value = array.again._replace(dims=array.dims[1:])
        if not value.content.known or value.weights or value.summand:
            return value
        units = set(_arrays.labels(array.dims[:1])) - set(_arrays.labels(value.dims))
        picked = frozenset((label, self.weights.at) for label in units)
        return value._replace(picked=value.picked | picked)

    def _stacked(self, output: Value) -> Value:
        """The value of a loop's stacked outputs. Slices are put together again."""
        picks = dict[Label, set[Hashable]]()
        for label, index in output.picked:
            picks.setdefault(label, set()).add(index)
        back = frozenset(label for label, at in picks.items() if at == {self.weights.at})
        picked = frozenset(pick for pick in output.picked if pick[0] not in back)
        return output.again._replace(dims=(back, *output.dims), picked=picked)

    def _state(self, value: Value, aval: Any) -> Value:
        """The value at the start of a round: the state of its units, whatever its sources are.

        Numbers that the rounds share, such as a solver's convergence test, are dropped here.
        """
        content = value.content
        if not value.per_example or value.weights or _arrays.without_units(aval.shape, value.dims):
            return value
        if content.kind == Kind.ERROR:
            terms = (frozenset(a for a in term if a.what != "number") for term in content.terms)
            return _replaced(value, terms=frozenset(terms))
        if content.kind in MOVES and jnp.issubdtype(aval.dtype, jnp.inexact):
            atom = Atom("state", self.units.of(value), self.weights.phase(content))
            return _replaced(value, terms=frozenset({frozenset({atom})}))
        return value

    def _merged(self, a: Value, b: Value) -> Value:
        """The value of either of two branches, or of two rounds of a loop."""
        dims = tuple(x | y for x, y in zip(a.dims, b.dims, strict=True))
        for x, y in zip(*(self.units.apart(v.dims) for v in (a, b)), strict=True):
            self.units.unite(x | y)
        result = Value((_contents.join(a.content, b.content),), dims, summand=a.summand | b.summand)
        result = result._replace(picked=a.picked | b.picked)
        weights, lost = a.weights | b.weights, a.lost | b.lost
        if result.per_example:
            wide = {leaf for leaf, _ in weights if len(axes_of(leaf, dims)) > 1}
            lost |= {(leaf, "a loop or a branch") for leaf in wide}
            weights = NO_OWNERS
        return result._replace(weights=weights, lost=lost, spread=a.spread & b.spread)


def constant(shape: Sequence[int], zero: bool = False) -> Value:
    """The value of an array that depends on nothing.

    Args:
      shape: the shape of the array.
      zero: whether all its entries are 0.

    Returns:
      The value.
    """
    return Value((NOTHING if zero else Content(Kind.CONSTANT),), (NO_LABELS,) * len(shape))


def held(const: Any) -> Value:
    """The value of a constant that a program closes over.

    Args:
      const: the constant.

    Returns:
      The value.
    """
    if jnp.issubdtype(getattr(const, "dtype", bool), jax.dtypes.prng_key):
        return constant(jnp.shape(const))
    zero = hasattr(const, "any") and not bool(const.any())
    known = isinstance(const, jax.Array | np.ndarray | np.generic | int | float | bool)
    places = Places(lambda: jnp.asarray(const)) if known else None
    array = np.asarray(const) if known else np.zeros((0,))
    equal = [k for k in range(array.ndim) if array.size and (array == array.take([0], k)).all()]
    value = constant(jnp.shape(const), zero)
    return value._replace(places=places, spread=frozenset(equal if known else ()))


def _unknown(content: Content) -> Content:
    """The content after a primitive that the walk does not know."""
    mark = frozenset({Atom("unknown")} if content.known else ())
    return content._replace(terms=frozenset(term | mark for term in content.terms))


def _replaced(value: Value, **changes: Any) -> Value:
    return value._replace(contents=(value.content._replace(**changes),))


def _settled(value: Value) -> Value:
    return value.mapped(lambda content: content._replace(settled=content.known))
