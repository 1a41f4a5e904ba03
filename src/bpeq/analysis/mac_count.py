"""Counts multiply-accumulates of a traced program. It runs programs that have while loops."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from bpeq.core.jaxprs import Program, Walker, all_equations, inner_programs, without_dead_code
from bpeq.core.tracing import disable_fast_paths


def count_macs(fn: Callable[..., Any], *args: Any) -> float:
    """Counts the multiply-accumulates of matrix products and convolutions in `fn(*args)`.

    A product of `[m, k]` and `[k, n]` counts m·k·n. A convolution counts its number of outputs
    times the entries of one output channel's kernel. Elementwise work does not count. Work that no
    result depends on does not count. A scan counts its length, and a branch its most expensive
    case. The length of a while loop depends on data. So a program with such a loop is run, and its
    rounds are counted.

    The count follows from the formulas, on any device. It does not subtract sweeps that
    `fixed_steps` saves, nor what a device saves with another algorithm for a convolution.

    Args:
      fn: a function that JAX can trace.
      args: its arguments, trees of arrays.

    Returns:
      The count, exact up to 2⁵³.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> count_macs(lambda a, b: a @ b, jnp.ones((2, 3)), jnp.ones((3, 5)))
      30.0
      >>> shrink = lambda x: jax.lax.while_loop(lambda x: x[0, 0] > 1, lambda x: x @ x / 4, x)
      >>> count_macs(shrink, 3 * jnp.eye(2))  # 3, 2.25, 1.27, 0.40: three rounds of 8
      24.0
    """
    with disable_fast_paths.on():
        closed = jax.make_jaxpr(fn)(*args)
    if not any(map(_has_while, closed.jaxpr.eqns)):
        return _macs_of(without_dead_code(closed.jaxpr))
    counter = _RunCounter(Program(closed.jaxpr, closed.consts))
    runs = jax.jit(counter.count)(jax.tree.leaves(args))
    return float(np.asarray(runs, np.float64) @ np.asarray(counter.macs))


def _macs_of(jaxpr: Any) -> float:
    """The count of a program whose loops all have a known length."""
    return sum(map(_macs, jaxpr.eqns), 0.0)


def _macs(eqn: Any) -> float:
    """The count of one equation."""
    kind = eqn.primitive.name
    if kind == "dot_general":
        (contract, _), _ = eqn.params["dimension_numbers"]
        shared = math.prod(eqn.invars[0].aval.shape[axis] for axis in contract)
        return float(math.prod(eqn.outvars[0].aval.shape) * shared)
    if kind == "conv_general_dilated":
        kernel = eqn.invars[1].aval.shape
        outputs = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
        return math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel) / outputs
    counts = [_macs_of(inner.jaxpr) for inner in inner_programs(eqn)]
    if kind == "cond":
        return max(counts)
    return sum(counts) * (eqn.params["length"] if kind == "scan" else 1)


def _has_while(eqn: Any) -> bool:
    """Whether an equation is a while loop, or contains one at any depth."""
    inside = (each for inner in inner_programs(eqn) for each in all_equations(inner.jaxpr))
    return eqn.primitive.name == "while" or any(e.primitive.name == "while" for e in inside)


class _Counted(NamedTuple):
    """A program with a while loop, and the index of its number of runs in the counts."""

    jaxpr: Any
    consts: Sequence[Any]
    entry: int


class _RunCounter(Walker[Any]):
    """Runs a program again, with loops that also carry the number of runs of each inner program.

    macs: of one run of each of these programs, without their while loops.
    """

    def __init__(self, program: Program) -> None:
        self.macs: list[float] = []
        self._inner: dict[int, list[_Counted]] = {}
        self._program = self._prepared(program)
        self._counts: Any = None

    def _prepared(self, program: Program) -> _Counted:
        """Gives each program with a while loop its index."""
        jaxpr, entry = without_dead_code(program.jaxpr), len(self.macs)
        loops = [eqn for eqn in jaxpr.eqns if _has_while(eqn)]
        self.macs.append(sum((_macs(eqn) for eqn in jaxpr.eqns if eqn not in loops), 0.0))
        for eqn in loops:
            self._inner[id(eqn)] = [self._prepared(inner) for inner in inner_programs(eqn)]
        return _Counted(jaxpr, program.consts, entry)

    def count(self, args: Sequence[Any]) -> Array:
        """Runs the program and counts.

        Args:
          args: the leaves of the program's arguments.

        Returns:
          The number of runs of each inner program.
        """
        self._counts = jnp.zeros(len(self.macs), jnp.int32)
        self._run(self._program, args)
        return self._counts

    def literal(self, literal: Any) -> Any:
        return literal.val

    def equation(self, eqn: Any, values: list[Any]) -> Sequence[Any]:
        inner = self._inner.get(id(eqn))
        if inner is None:
            made = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(eqn.params))
            return made if eqn.primitive.multiple_results else [made]
        kind, params = eqn.primitive.name, eqn.params
        if kind == "while":
            return self._while(params, values, *inner)
        if kind == "scan":
            return self._scan(params, values, *inner)
        if kind == "cond":
            branches = [self._carrying(each) for each in inner]
            made, self._counts = jax.lax.switch(values[0], branches, values[1:], self._counts)
            return made
        return self._run(inner[0], values)

    def _run(self, program: _Counted, args: Sequence[Any]) -> list[Any]:
        self._counts = self._counts.at[program.entry].add(1)
        return self.run(program.jaxpr, program.consts, args)

    def _carrying(self, program: _Counted) -> Callable[..., tuple[list[Any], Array]]:
        """Turns a program into a function (args, counts) -> (results, counts)."""

        def run(args: Sequence[Any], counts: Array) -> tuple[list[Any], Array]:
            outside, self._counts = self._counts, counts
            made, counts = self._run(program, args), self._counts
            self._counts = outside
            return made, counts

        return run

    def _while(
        self, params: Any, values: list[Any], cond: _Counted, body: _Counted
    ) -> Sequence[Any]:
        first = params["cond_nconsts"]
        second = first + params["body_nconsts"]
        test, move = self._carrying(cond), self._carrying(body)

        def going(carry: Sequence[Any], counts: Array) -> Any:
            return test([*values[:first], *carry], counts)[0][0]

        def round_(pair: Any) -> Any:
            carry, counts = pair
            on = going(carry, counts)
            moved, counts = move([*values[first:second], *carry], counts)
            return [_where(on, *each) for each in zip(moved, carry, strict=True)], counts

        start = (values[second:], self._counts)
        made, self._counts = jax.lax.while_loop(lambda pair: going(*pair).any(), round_, start)
        return made

    def _scan(self, params: Any, values: list[Any], body: _Counted) -> Sequence[Any]:
        first = params["num_consts"]
        second = first + params["num_carry"]
        move = self._carrying(body)

        def step(pair: Any, parts: Any) -> Any:
            made, counts = move([*values[:first], *pair[0], *parts], pair[1])
            return (made[: second - first], counts), made[second - first :]

        start, ways = (values[first:second], self._counts), ("length", "reverse")
        (carry, self._counts), rows = jax.lax.scan(
            step, start, values[second:], **{way: params[way] for way in ways}
        )
        return [*carry, *rows]


def _where(on: Array, new: Array, old: Array) -> Array:
    """Selects new values where a loop still runs. Under vmap each copy has its own condition."""
    if not on.ndim:
        return new
    return jnp.where(on.reshape(on.shape + (1,) * (new.ndim - on.ndim)), new, old)
