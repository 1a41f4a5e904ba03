"""Walks through traced programs (jaxprs), for counts, audits and contracts."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import jax
from jax.extend.core import ClosedJaxpr, Literal
from jax.interpreters.partial_eval import dce_jaxpr

V = TypeVar("V")
_JAX = os.path.join(os.path.dirname(os.path.abspath(jax.__file__)), "")


class Program(NamedTuple):
    """A program inside an equation.

    jaxpr: the program, not closed. consts: the constants that it closes over.
    """

    jaxpr: Any
    consts: Sequence[Any]


class Walker(ABC, Generic[V]):
    """Visit a program's equations in order, and keep one value of type V for each variable.

    A subclass defines the value of a literal, and the values of an equation's results. It calls
    `run` again on the programs inside an equation, since only the subclass knows what a loop means.

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

    @abstractmethod
    def literal(self, literal: Any) -> V:
        """The value of a literal.

        Args:
          literal: has `val` and `aval`.

        Returns:
          Its value.
        """

    @abstractmethod
    def equation(self, equation: Any, values: list[V]) -> Sequence[V]:
        """The values of an equation's results.

        Args:
          equation: has `primitive`, `params`, `invars` and `outvars`.
          values: one for each operand.

        Returns:
          One for each result.
        """

    def run(self, jaxpr: Any, consts: Sequence[V], args: Sequence[V]) -> list[V]:
        """The values of a program's results.

        Args:
          jaxpr: the program, not closed.
          consts: one value for each of its constants.
          args: one value for each of its arguments.

        Returns:
          One value for each result.
        """
        known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

        def read(var: Any) -> V:
            return self.literal(var) if isinstance(var, Literal) else known[var]

        for equation in jaxpr.eqns:
            results = self.equation(equation, [read(var) for var in equation.invars])
            known.update(zip(equation.outvars, results, strict=True))
        return [read(var) for var in jaxpr.outvars]


class Interpreter(Walker[Any]):
    """Run a program on arrays, one equation after the other. A subclass handles some of them.

    It enters calls, so that a subclass sees their equations. It does not enter loops and branches.

    Example (the primitives that a program runs):
      >>> import jax, jax.numpy as jnp
      >>> class Named(Interpreter):
      ...     def equation(self, equation, values):
      ...         print(equation.primitive.name)
      ...         return super().equation(equation, values)
      >>> program = jax.make_jaxpr(lambda x: 2 * jnp.sin(x))(0.0)
      >>> float(Named().run(program.jaxpr, program.consts, [jnp.zeros(())])[0])
      sin
      mul
      0.0
    """

    def literal(self, literal: Any) -> Any:
        return literal.val

    def equation(self, equation: Any, values: list[Any]) -> Sequence[Any]:
        inner = inner_programs(equation)
        if inner and equation.primitive.name not in ("scan", "while", "cond"):
            return self.run(*inner[0], values)
        results = equation.primitive.bind(*values, **equation.params)
        return results if equation.primitive.multiple_results else [results]


def inner_programs(equation: Any) -> list[Program]:
    """The programs inside an equation: of a call, a loop or a branch; empty for any other.

    Args:
      equation: of a traced program.

    Returns:
      The programs. A while loop has its condition and its body, in this order.
    """
    names = ("jaxpr", "call_jaxpr", "fun_jaxpr", "cond_jaxpr", "body_jaxpr")
    inner = [equation.params[name] for name in names if name in equation.params]
    return [opened(each) for each in [*inner, *equation.params.get("branches", ())]]


def split_operands(equation: Any, values: Sequence[V]) -> tuple[Sequence[V], ...]:
    """Splits the operands of a loop by their purpose.

    Args:
      equation: a while loop or a scan.
      values: one for each operand.

    Returns:
      (constants of the condition, constants of the body, carry, arrays whose slices a round
      reads). A scan has no condition, and a while loop reads no slices.
    """
    params, loops = equation.params, equation.primitive.name == "while"
    first = params["cond_nconsts"] if loops else 0
    second = first + params["body_nconsts" if loops else "num_consts"]
    end = len(values) if loops else second + params["num_carry"]
    return values[:first], values[first:second], values[second:end], values[end:]


def opened(inner: Any) -> Program:
    """A program with its constants.

    Args:
      inner: a closed or an open program.

    Returns:
      A Program.
    """
    if isinstance(inner, ClosedJaxpr):
        return Program(inner.jaxpr, inner.consts)
    return Program(inner, ())


def all_equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation of a program, and of the programs inside it, at any depth.

    Args:
      jaxpr: the program, not closed.

    Returns:
      An iterator over equations.
    """
    for equation in jaxpr.eqns:
        yield equation
        for inner in inner_programs(equation):
            yield from all_equations(inner.jaxpr)


def without_dead_code(jaxpr: Any) -> Any:
    """The program without equations that no result depends on. It keeps all arguments.

    JAX does not look into the bodies of while loops: call this function on them too.

    Args:
      jaxpr: the program, not closed.

    Returns:
      The smaller program.
    """
    return dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=True)[0]


def variables(several: Iterable[Any]) -> list[Any]:
    """The variables, without the literals.

    Args:
      several: variables and literals.

    Returns:
      A list.
    """
    return [var for var in several if not isinstance(var, Literal)]


def live(jaxpr: Any, stops: Collection[str] = ()) -> tuple[set[Any], set[Any]]:
    """The equations and the variables that a program's results depend on.

    Args:
      jaxpr: the program, not closed.
      stops: names of primitives at which the search stops; their operands do not count.

    Returns:
      (equations, variables), the variables with those of the results.
    """
    equations, needed = set(), set(variables(jaxpr.outvars))
    for equation in reversed(jaxpr.eqns):
        if not needed.isdisjoint(equation.outvars):
            equations.add(equation)
            if equation.primitive.name not in stops:
                needed.update(variables(equation.invars))
    return equations, needed


def source_line(equation: Any, ignored: Sequence[str] = ()) -> str:
    """The innermost line of the user's code that made an equation, as `file.py:12`.

    Args:
      equation: of a traced program.
      ignored: folders whose lines are not the user's, besides jax's own.

    Returns:
      The file and the line; empty if unknown.
    """
    for frame in getattr(equation.source_info.traceback, "frames", ()):
        name = frame.file_name
        if not name.startswith((_JAX, *ignored)) and os.path.exists(name):
            return f"{os.path.basename(name)}:{frame.line_num}"
    return ""
