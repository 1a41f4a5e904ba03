"""Walks through traced programs (jaxprs): what counting, audits and contracts have in common."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import jax
from jax.extend.core import ClosedJaxpr, Literal
from jax.interpreters.partial_eval import dce_jaxpr

V = TypeVar("V")
_JAX = os.path.join(os.path.dirname(os.path.abspath(jax.__file__)), "")


class Program(NamedTuple):
    """A program inside an equation, and the constants that it closes over."""

    jaxpr: Any
    consts: Sequence[Any]


class Walker(Generic[V]):
    """Visits a program's equations in order, and keeps one value of type V for each variable.

    A subclass says what a literal is and what an equation makes of the values of its operands. It
    calls `run` again on the programs inside an equation: only the subclass knows what a loop means.

    Example (how deep the operations stand above the arguments):
      >>> import jax, jax.numpy as jnp
      >>> class Depth(Walker[int]):
      ...     def literal(self, literal):
      ...         return 0
      ...     def equation(self, equation, values):
      ...         return [1 + max(values)] * len(equation.outvars)
      >>> Depth().run(jax.make_jaxpr(lambda x: 2 * jnp.sin(x) + x)(1.0).jaxpr, [], [0])
      [3]
    """

    def literal(self, literal: Any) -> V:
        """The value of a literal, from its `val` and `aval`."""
        raise NotImplementedError

    def equation(self, equation: Any, values: list[V]) -> Sequence[V]:
        """The values of an equation's results.

        Args:
          equation: its `primitive`, `params`, `invars` and `outvars`.
          values: one of each operand.
        """
        raise NotImplementedError

    def run(self, jaxpr: Any, consts: Sequence[V], args: Sequence[V]) -> list[V]:
        """The values of a program's results.

        Args:
          jaxpr: the program, not closed.
          consts: one value for each of its constants.
          args: one value for each of its arguments.
        """
        known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

        def read(var: Any) -> V:
            return self.literal(var) if isinstance(var, Literal) else known[var]

        for equation in jaxpr.eqns:
            results = self.equation(equation, [read(var) for var in equation.invars])
            known.update(zip(equation.outvars, results, strict=True))
        return [read(var) for var in jaxpr.outvars]


def inner_programs(equation: Any) -> list[Program]:
    """The programs inside an equation: of a call, a loop or a branch; empty for any other.

    Those of a while loop are its condition and its body, in this order.
    """
    names = ("jaxpr", "call_jaxpr", "fun_jaxpr", "cond_jaxpr", "body_jaxpr")
    inner = [equation.params[name] for name in names if name in equation.params]
    return [opened(each) for each in [*inner, *equation.params.get("branches", ())]]


def opened(inner: Any) -> Program:
    """A program, closed over its constants or not, with its constants."""
    if isinstance(inner, ClosedJaxpr):
        return Program(inner.jaxpr, inner.consts)
    return Program(inner, ())


def all_equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation of a program, and of the programs inside it, however deep."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in inner_programs(equation):
            yield from all_equations(inner.jaxpr)


def without_dead_code(jaxpr: Any) -> Any:
    """The program without what none of its results depends on. It keeps all arguments.

    jax does not look into the bodies of while loops: call it on these as well.
    """
    return dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=True)[0]


def variables(several: Iterable[Any]) -> list[Any]:
    """Those that are no literals."""
    return [var for var in several if not isinstance(var, Literal)]


def live(jaxpr: Any, stops: Collection[str] = ()) -> tuple[set[Any], set[Any]]:
    """The equations and the variables that a program's results depend on.

    Args:
      jaxpr: the program, not closed.
      stops: primitives through which no dependence is followed.

    Returns:
      The equations, and the variables with those of the results.
    """
    equations, needed = set(), set(variables(jaxpr.outvars))
    for equation in reversed(jaxpr.eqns):
        if not needed.isdisjoint(equation.outvars):
            equations.add(equation)
            if equation.primitive.name not in stops:
                needed.update(variables(equation.invars))
    return equations, needed


def source_line(equation: Any, ignored: Sequence[str] = ()) -> str:
    """`file.py:12`, the innermost line of the user's that asked for an equation; empty if unknown.

    Args:
      equation: of a traced program.
      ignored: folders whose lines are not the user's, besides jax's own.
    """
    for frame in getattr(equation.source_info.traceback, "frames", ()):
        name = frame.file_name
        if not name.startswith((_JAX, *ignored)) and os.path.exists(name):
            return f"{os.path.basename(name)}:{frame.line_num}"
    return ""
