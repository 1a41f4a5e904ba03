"""Which operations of a program are not complex-differentiable, and where they stand."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Literal
from jax.interpreters.partial_eval import dce_jaxpr

PIECES = frozenset(
    [
        *["abs", "sign", "max", "min", "clamp", "floor", "ceil", "round", "rem", "nextafter"],
        *["reduce_max", "reduce_min", "argmax", "argmin", "sort", "top_k", "approx_top_k"],
        *["reduce_window_max", "reduce_window_min", "select_and_scatter_add"],
        *["select_and_gather_add", "cummax", "cummin"],
    ]
)
"""Functions of real numbers in pieces, which are each holomorphic and do not go on as one."""
PARTS = frozenset(["real", "imag", "conj", "abs"])
"""What complex numbers are taken apart by."""
_OWN = os.path.dirname(os.path.abspath(__file__))
_JAX = os.path.dirname(os.path.abspath(jax.__file__))
_STEPS = frozenset(["sign", "floor", "ceil", "round"])  # constant between their jumps
_LOGIC = frozenset(["and", "or", "not", "broadcast_in_dim", "reshape", "squeeze", "transpose"])
_ORDER = frozenset(["lt", "le", "gt", "ge"])
_GUARDS = frozenset(["eq", "ne", "is_finite", "stop_gradient"])
_WHOLE = frozenset(["logaddexp", "softplus", "spence", "xlogy", "xlog1py"])
_POSITIVE = frozenset(["exp", "exp2", "cosh", "logistic"])
_STAYS_POSITIVE = frozenset(
    [
        *["add", "mul", "div", "sqrt", "reduce_sum", "reduce_prod", "broadcast_in_dim", "reshape"],
        *["transpose", "squeeze", "slice", "concatenate", "convert_element_type", "dot_general"],
    ]
)


class Operation(NamedTuple):
    """A primitive by name, and the line of the program that calls for it."""

    name: str
    where: str

    def __str__(self) -> str:
        return f"{self.name} ({self.where})" if self.where else self.name


class _Known(NamedTuple):
    """Of an array: whether it depends on the state; is positive; is an order comparison, and so."""

    depends: bool = False
    positive: bool = False
    order: Operation | None = None


def operations(
    fn: Callable[..., Any], state: Any, names: frozenset[str] = PIECES
) -> list[Operation]:
    """The primitives in `names` that fn(state) applies to what depends on the state.

    With `PIECES` also choices, loops and integers that comparisons of the state lead to. An order
    comparison counts where it chooses; == and ≠ do not, which differ on single points only, nor
    does what reaches the result through `stop_gradient` alone (were it to matter, autodiff would be
    wrong), nor the inside of functions that are known to be holomorphic, such as log(eᵃ + eᵇ).
    """
    closed = jax.make_jaxpr(fn)(state)
    outputs = [True] * len(closed.jaxpr.outvars)
    jaxpr, _ = dce_jaxpr(closed.jaxpr, outputs, instantiate=True)
    found: dict[Operation, None] = {}
    _Walk(names, found).run(jaxpr, [_Known(True)] * len(jaxpr.invars), "")
    return list(found)


class _Walk:
    """Follows what depends on the state. An order comparison is kept until something uses it."""

    def __init__(self, names: frozenset[str], found: dict[Operation, None]) -> None:
        self._names, self._found = names, found

    def run(self, jaxpr: Any, given: Sequence[_Known], outer: str) -> list[_Known]:
        """What is known of a jaxpr's results."""
        known = dict(zip(jaxpr.invars, given, strict=True))
        matters = _matters(jaxpr)

        def read(var: Any) -> _Known:
            if isinstance(var, Literal):
                return _Known(positive=bool(jnp.all(var.val > 0)))
            return known.get(var, _Known())

        for eqn in jaxpr.eqns:
            if eqn in matters:
                values = [read(var) for var in eqn.invars]
                made = self._equation(eqn, values, line_of(eqn) or outer)
                known.update(zip(eqn.outvars, made, strict=True))
        return [read(var) for var in jaxpr.outvars]

    def _equation(self, eqn: Any, values: list[_Known], where: str) -> list[_Known]:
        name, outs = eqn.primitive.name, len(eqn.outvars)
        positive = name in _POSITIVE
        positive |= name in _STAYS_POSITIVE and all(value.positive for value in values)
        touched = [value for value in values if value.depends]
        if not touched or name in _GUARDS:
            return [_Known(positive=positive)] * outs
        if name in ("while", "scan", "cond"):
            return self._control(eqn, values, where)
        if (inner := inner_of(eqn)) is not None:
            inner = inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner
            if _is_whole(inner):
                return [_Known(True)] * outs
            return self.run(inner, values, where)
        if name in _ORDER and self._names >= PIECES:
            return [_Known(True, order=Operation(name, where))]
        orders = [value.order for value in values if value.order is not None]
        if orders and name in _LOGIC:
            return [_Known(True, order=orders[0])]
        self._found.update(dict.fromkeys(orders))
        if name in self._names and not (name == "abs" and touched[0].positive):
            self._found[Operation(name, where)] = None
        flat = orders and all(value.order is not None for value in touched)  # and nothing else
        whole = not all(jnp.issubdtype(var.aval.dtype, jnp.inexact) for var in eqn.outvars)
        if whole and not flat and name == "convert_element_type" and self._names >= PIECES:
            self._found[Operation("convert_element_type to whole numbers", where)] = None
        return [_Known(not (flat or whole or name in _STEPS), positive)] * outs

    def _control(self, eqn: Any, values: list[_Known], where: str) -> list[_Known]:
        params, name = eqn.params, eqn.primitive.name
        if name == "cond":
            if values[0].depends and self._names >= PIECES:
                self._found[values[0].order or Operation("cond", where)] = None
            rows = [self.run(b.jaxpr, values[1:], where) for b in params["branches"]]
            return [_Known(any(v.depends for v in column)) for column in zip(*rows, strict=True)]
        skip = params["cond_nconsts"] if name == "while" else 0
        consts = skip + (params["body_nconsts"] if name == "while" else params["num_consts"])
        end = len(values) if name == "while" else consts + params["num_carry"]
        state, made = [_Known(value.depends) for value in values[consts:end]], list[_Known]()
        for _ in range(len(state) + 1):  # a round carries what depends one step further at least
            body = params["body_jaxpr" if name == "while" else "jaxpr"].jaxpr
            made = self.run(body, [*values[skip:consts], *state, *values[end:]], where)
            state = [_Known(a.depends or b.depends) for a, b in zip(state, made, strict=False)]
        if name == "while" and self._names >= PIECES:
            stops = _Walk(self._names, {}).run(
                params["cond_jaxpr"].jaxpr, [*values[:skip], *state], where
            )
            if stops[0].depends:
                self._found[Operation("while", where)] = None
        return [*state, *made[len(state) :]]


def _matters(jaxpr: Any) -> set[Any]:
    """The equations that the results take anything from by a way that counts."""
    needed = {var for var in jaxpr.outvars if not isinstance(var, Literal)}
    matters = set()
    for eqn in reversed(jaxpr.eqns):
        if needed & set(eqn.outvars):
            matters.add(eqn)
            if eqn.primitive.name not in _GUARDS:
                needed |= {var for var in eqn.invars if not isinstance(var, Literal)}
    return matters


def inner_of(eqn: Any) -> Any:
    """The program that an equation calls, closed or not; None where it calls none."""
    return next(
        (eqn.params[k] for k in ("jaxpr", "call_jaxpr", "fun_jaxpr") if k in eqn.params), None
    )


def _is_whole(inner: Any) -> bool:
    """Whether it is a function of JAX's own that is computed in pieces, but holomorphic."""
    said = getattr(inner.debug_info, "func_src_info", None) or ""
    name, _, place = said.partition(" at ")
    return name in _WHOLE and place.startswith(_JAX)


def line_of(eqn: Any) -> str:
    """`file.py:12`, the innermost line outside of JAX and of this package; empty if unknown."""
    for frame in getattr(eqn.source_info.traceback, "frames", ()):
        if not frame.file_name.startswith((_JAX, _OWN)) and os.path.exists(frame.file_name):
            return f"{os.path.basename(frame.file_name)}:{frame.line_num}"
    return ""
