"""Measures the resources of one gradient: sweeps, multiply-accumulates, seconds, bytes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from bpeq.analysis.gradient_fidelity import sweeps_of
from bpeq.core.jaxprs import (
    Interpreter,
    Program,
    all_equations,
    inner_programs,
    split_operands,
    without_dead_code,
)
from bpeq.core.tracing import disable_fast_paths
from bpeq.types import Batch, Key, LearningRule, Params, State


class GradientResources(NamedTuple):
    """The resources of one gradient of one batch, on this machine.

    Args:
      sweeps: the mean number of sweeps over the examples, all phases together; 0 for rules that do
        not relax.
      macs: the multiply-accumulates of matrix products and convolutions. A solve to a residual runs
        until the slowest example of the batch has settled.
      seconds: the median wall time of the compiled estimate, without compilation.
      bytes: the memory for intermediate results; 0 if unknown.
    """

    sweeps: float
    macs: float
    seconds: float
    bytes: int


class CompiledGradient(NamedTuple):
    """A compiled gradient with its counts, for timing.

    Args:
      call: computes the gradient.
      sweeps: as in `GradientResources`.
      macs: as in `GradientResources`.
      bytes: as in `GradientResources`.
    """

    call: Callable[[], Any]
    sweeps: float
    macs: float
    bytes: int


def compiled_gradient(
    rule: LearningRule, params: Params, batch: Batch, state: State, key: Key
) -> CompiledGradient:
    """Compiles `rule.estimate(params, batch, state, key)` and counts its operations.

    Args:
      rule: the learning rule.
      params: the parameters, from the rule's `init` or after training. The sweeps of a solve to a
        residual depend on them.
      batch: x `[batch, ...]` and y.
      state: the rule's state, from its `init` or after training.
      key: the random key of the estimate.

    Returns:
      The gradient, for `measure_gradients`.
    """
    args = (params, batch, state, key)
    compiled = jax.jit(rule.estimate).lower(*args).compile()
    analysis = compiled.memory_analysis()
    return CompiledGradient(
        call=partial(compiled, *args),
        sweeps=sweeps_of(compiled(*args)[0]),
        macs=count_macs(rule.estimate, *args),
        bytes=int(analysis.temp_size_in_bytes) if analysis is not None else 0,
    )


def measure_gradients(gradients: Mapping[str, CompiledGradient]) -> dict[str, GradientResources]:
    """Times gradients in turn, so that all of them have the same load of the machine.

    Args:
      gradients: compiled gradients by the names of their rules.

    Returns:
      The resources of each gradient, by the same names.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from bpeq import costs, layers, rules
      >>> network = layers.chain(layers.dense(3))
      >>> params, _ = network.init(jax.random.key(0), (4,))
      >>> batch = Batch(jnp.ones((2, 4)), jnp.ones((2, 3)))
      >>> rule = rules.backprop(network, costs.squared_error())
      >>> gradient = compiled_gradient(rule, params, batch, (), jax.random.key(1))
      >>> measure_gradients({"BP": gradient})["BP"].macs
      48.0
    """
    seconds = seconds_of([gradient.call for gradient in gradients.values()])
    return {
        name: GradientResources(g.sweeps, g.macs, s, g.bytes)
        for (name, g), s in zip(gradients.items(), seconds, strict=True)
    }


def seconds_of(calls: Sequence[Callable[[], Any]], budget: float = 0.5) -> list[float]:
    """Measures the median wall time of each call, until its results are ready.

    The calls take turns, so that all of them have the same load of the machine. The first turn may
    compile, and does not count.

    Args:
      calls: functions without arguments, compiled or jitted.
      budget: seconds for each call. The turns repeat until the sum is spent, at least 5 and at most
        200 times.

    Returns:
      Seconds for each call.
    """
    for call in calls:
        jax.block_until_ready(call())
    spent = np.empty((0, len(calls)))
    while len(spent) < 5 or (spent.sum() < budget * len(calls) and len(spent) < 200):
        turn = []
        for call in calls:
            began = time.perf_counter()
            jax.block_until_ready(call())
            turn.append(time.perf_counter() - began)
        spent = np.vstack([spent, turn])
    return np.median(spent, axis=0).tolist()


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


_Run = Callable[[Sequence[Any], Array], tuple[list[Any], Array]]
"""(args, counts) -> (results, counts)."""


class _RunCounter(Interpreter):
    """Runs a program again, with loops that also carry the number of runs of each inner program.

    macs: of one run of each of these programs, without their while loops.
    """

    def __init__(self, program: Program) -> None:
        self.macs: list[float] = []
        self._inner: dict[int, list[Program]] = {}
        self._entries: dict[int, int] = {}
        self._program = self._prepared(program)
        self._counts: Any = None

    def _prepared(self, program: Program) -> Program:
        """Gives each program with a while loop its index in the counts."""
        program = program._replace(jaxpr=without_dead_code(program.jaxpr))
        loops = [eqn for eqn in program.jaxpr.eqns if _has_while(eqn)]
        self._entries[id(program.jaxpr)] = len(self.macs)
        self.macs.append(sum((_macs(eqn) for eqn in program.jaxpr.eqns if eqn not in loops), 0.0))
        for eqn in loops:
            self._inner[id(eqn)] = [self._prepared(inner) for inner in inner_programs(eqn)]
        return program

    def count(self, args: Sequence[Any]) -> Array:
        """Runs the program and counts.

        Args:
          args: the leaves of the program's arguments.

        Returns:
          The number of runs of each inner program.
        """
        self._counts = jnp.zeros(len(self.macs), jnp.int32)
        self.run(*self._program, args)
        return self._counts

    def run(self, jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
        if id(jaxpr) in self._entries:
            self._counts = self._counts.at[self._entries[id(jaxpr)]].add(1)
        return super().run(jaxpr, consts, args)

    def equation(self, eqn: Any, values: list[Any]) -> Sequence[Any]:
        inner = self._inner.get(id(eqn))
        if inner is None:
            return super().equation(eqn, values)
        kind = eqn.primitive.name
        if kind not in ("while", "scan", "cond"):
            return self.run(*inner[0], values)
        runs = [self._carrying(each) for each in inner]
        if kind == "cond":
            results, self._counts = jax.lax.switch(values[0], runs, values[1:], self._counts)
            return results
        return (self._while if kind == "while" else self._scan)(eqn, values, *runs)

    def _carrying(self, program: Program) -> _Run:
        """Turns a program into a function (args, counts) -> (results, counts)."""

        def run(args: Sequence[Any], counts: Array) -> tuple[list[Any], Array]:
            outside, self._counts = self._counts, counts
            results, counts = self.run(*program, args), self._counts
            self._counts = outside
            return results, counts

        return run

    def _while(self, eqn: Any, values: list[Any], test: _Run, move: _Run) -> Sequence[Any]:
        tested, consts, carry, _ = split_operands(eqn, values)

        def going(carry: Sequence[Any], counts: Array) -> Any:
            return test([*tested, *carry], counts)[0][0]

        def round_(pair: Any) -> Any:
            carry, counts = pair
            on = going(carry, counts)
            moved, counts = move([*consts, *carry], counts)
            return [_where(on, *each) for each in zip(moved, carry, strict=True)], counts

        start = (carry, self._counts)
        carry, self._counts = jax.lax.while_loop(lambda pair: going(*pair).any(), round_, start)
        return carry

    def _scan(self, eqn: Any, values: list[Any], move: _Run) -> Sequence[Any]:
        _, consts, carry, slices = split_operands(eqn, values)

        def step(pair: Any, parts: Any) -> Any:
            results, counts = move([*consts, *pair[0], *parts], pair[1])
            return (results[: len(carry)], counts), results[len(carry) :]

        ways = {way: eqn.params[way] for way in ("length", "reverse")}
        (carry, self._counts), rows = jax.lax.scan(step, (carry, self._counts), slices, **ways)
        return [*carry, *rows]


def _where(on: Array, new: Array, old: Array) -> Array:
    """Selects new values where a loop still runs. Under vmap each copy has its own condition."""
    if not on.ndim:
        return new
    return jnp.where(on.reshape(on.shape + (1,) * (new.ndim - on.ndim)), new, old)
