"""Finds the piecewise operations of a program that depend on the state, and their lines."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bpeq.core import jaxprs

_PIECES = """
    abs sign max min clamp floor ceil round rem nextafter reduce_max reduce_min argmax argmin sort
    top_k approx_top_k reduce_window_max reduce_window_min select_and_scatter_add
    select_and_gather_add cummax cummin
"""
PIECES = frozenset(_PIECES.split())
"""Piecewise functions of real numbers. Each piece is holomorphic, but the whole is not."""
PARTS = frozenset(["real", "imag", "conj", "abs"])
"""Operations that split complex numbers."""
IGNORED = (os.path.join(os.path.dirname(os.path.abspath(__file__)), ""),)
"""Folders whose lines do not belong to the user."""
_STEPS = frozenset(["sign", "floor", "ceil", "round"])  # constant between their jumps
_LOGIC = frozenset(["and", "or", "not", "broadcast_in_dim", "reshape", "squeeze", "transpose"])
_ORDER = frozenset(["lt", "le", "gt", "ge"])
_GUARDS = frozenset(["eq", "ne", "is_finite", "stop_gradient"])
_HOLOMORPHIC = frozenset(["logaddexp", "softplus", "spence", "xlogy", "xlog1py"])
_POSITIVE = frozenset(["exp", "exp2", "cosh", "logistic"])
_KEEP_POSITIVE = """
    add mul div sqrt reduce_sum reduce_prod broadcast_in_dim reshape transpose squeeze slice
    concatenate convert_element_type dot_general
"""
_STAYS_POSITIVE = frozenset(_KEEP_POSITIVE.split())


class Operation(NamedTuple):
    """A primitive, and the line of the program that uses it.

    Args:
      name: the name of the primitive.
      where: the file and the line; empty if unknown.
    """

    name: str
    where: str

    def __str__(self) -> str:
        return f"{self.name} ({self.where})" if self.where else self.name


class _Known(NamedTuple):
    """What is known of an array.

    depends: whether it depends on the state. positive: whether all entries are positive. order: the
    comparison that produced it; None if it is not from a comparison.
    """

    depends: bool = False
    positive: bool = False
    order: Operation | None = None


def piecewise_operations(
    fn: Callable[..., Any], state: Any, names: frozenset[str] = PIECES
) -> list[Operation]:
    """Finds the primitives in `names` that fn(state) applies to arrays that depend on the state.

    With `PIECES` it also finds choices, loops and integers that depend on comparisons of the state.
    An order comparison counts at the operation that chooses by it. These do not count: == and ≠,
    which differ at single points only; anything that reaches the result only through
    `stop_gradient` (otherwise autodiff would be wrong); the inside of functions known to be
    holomorphic, such as log(eᵃ + eᵇ).

    Args:
      fn: a function of the state that JAX can trace.
      state: a tree of arrays.
      names: the names of primitives.

    Returns:
      The operations, each once, in the order of the program.

    Example:
      >>> import jax.numpy as jnp
      >>> [each.name for each in piecewise_operations(lambda s: jnp.abs(s).sum(), jnp.ones(2))]
      ['abs']
    """
    jaxpr = jaxprs.without_dead_code(jax.make_jaxpr(fn)(state).jaxpr)
    walk = _Walk(names)
    walk.run(jaxpr, [_Known()] * len(jaxpr.constvars), [_Known(True)] * len(jaxpr.invars))
    return list(walk.operations)


class _Walk(jaxprs.Walker[_Known]):
    """Follows arrays that depend on the state. It keeps an order comparison until it is used."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names, self._choices = names, names >= PIECES
        self.operations: dict[Operation, None] = {}
        self._line = ""
        self._matters: set[Any] = set()

    def literal(self, literal: Any) -> _Known:
        return _Known(positive=bool(jnp.all(literal.val > 0)))

    def run(self, jaxpr: Any, consts: Sequence[_Known], args: Sequence[_Known]) -> list[_Known]:
        outside, self._matters = self._matters, jaxprs.live(jaxpr, _GUARDS)[0]
        results = super().run(jaxpr, consts, args)
        self._matters = outside
        return results

    def equation(self, eqn: Any, values: list[_Known]) -> list[_Known]:
        if eqn not in self._matters:
            return [_Known()] * len(eqn.outvars)
        outer, self._line = self._line, jaxprs.source_line(eqn, IGNORED) or self._line
        results = self._results(eqn, values)
        self._line = outer
        return results

    def _results(self, eqn: Any, values: list[_Known]) -> list[_Known]:
        name, outs = eqn.primitive.name, len(eqn.outvars)
        positive = name in _POSITIVE
        positive |= name in _STAYS_POSITIVE and all(value.positive for value in values)
        touched = [value for value in values if value.depends]
        if not touched or name in _GUARDS:
            return [_Known(positive=positive)] * outs
        if name in ("while", "scan"):
            return self._loop(eqn, values)
        if inner := jaxprs.inner_programs(eqn):
            if name == "cond":
                return self._branches(inner, values)
            if _is_holomorphic(inner[0].jaxpr):
                return [_Known(True)] * outs
            return self._inside(inner[0], values)
        if name in _ORDER and self._choices:
            return [_Known(True, order=Operation(name, self._line))]
        orders = [value.order for value in values if value.order is not None]
        if orders and name in _LOGIC:
            return [_Known(True, order=orders[0])]
        self.operations.update(dict.fromkeys(orders))
        if name in self._names and not (name == "abs" and touched[0].positive):
            self._add(name)
        only_orders = orders and all(value.order is not None for value in touched)
        whole = not all(jnp.issubdtype(var.aval.dtype, jnp.inexact) for var in eqn.outvars)
        if whole and not only_orders and name == "convert_element_type" and self._choices:
            self._add("convert_element_type to whole numbers")
        return [_Known(not (only_orders or whole or name in _STEPS), positive)] * outs

    def _add(self, name: str) -> None:
        self.operations[Operation(name, self._line)] = None

    def _inside(self, program: Any, values: Sequence[_Known]) -> list[_Known]:
        return self.run(program.jaxpr, [_Known()] * len(program.jaxpr.constvars), values)

    def _branches(self, branches: Sequence[Any], values: list[_Known]) -> list[_Known]:
        if values[0].depends and self._choices:
            self.operations[values[0].order or Operation("cond", self._line)] = None
        rows = [self._inside(branch, values[1:]) for branch in branches]
        return [_Known(any(v.depends for v in column)) for column in zip(*rows, strict=True)]

    def _loop(self, eqn: Any, values: list[_Known]) -> list[_Known]:
        inner, (tested, consts, carry, slices) = (
            jaxprs.inner_programs(eqn),
            jaxprs.split_operands(eqn, values),
        )
        state, results = [_Known(value.depends) for value in carry], list[_Known]()
        for _ in range(len(state) + 1):  # a round carries what depends one step further at least
            results = self._inside(inner[-1], [*consts, *state, *slices])
            state = [_Known(a.depends or b.depends) for a, b in zip(state, results, strict=False)]
        if len(inner) > 1 and self._choices:
            condition = _Walk(self._names)
            if condition._inside(inner[0], [*tested, *state])[0].depends:
                self._add("while")
        return [*state, *results[len(state) :]]


def _is_holomorphic(jaxpr: Any) -> bool:
    """Whether it is a holomorphic function of JAX that is computed in pieces."""
    name, _, place = (getattr(jaxpr.debug_info, "func_src_info", None) or "").partition(" at ")
    return name in _HOLOMORPHIC and place.startswith(os.path.dirname(jax.__file__))
