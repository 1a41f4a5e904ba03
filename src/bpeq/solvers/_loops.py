"""What solvers share: numbered sweeps, what a loop carries, examples that are dropped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import eval_jaxpr
from jaxtyping import Array

from bpeq.core import trees
from bpeq.core.jaxprs import Program, live, opened
from bpeq.core.tracing import carries_all
from bpeq.settings import SettingError
from bpeq.types import State


@dataclass(frozen=True)
class Sweep:
    """The step that rules give to a solver, instead of a plain function state -> state.

    numbered(state, n) -> state: sweep n of one solve, n = 0, 1, ... A noisy device draws its noise
        by this index.
    some(rows) -> Sweep: the same sweep on those examples alone; None if it needs the whole batch.
    noisy: whether the index matters. A solver of your own then must call `run_sweep`; otherwise
        every sweep would have the same noise.
    """

    numbered: Callable[[State, Array | int], State]
    some: Callable[[Array], Sweep] | None = None
    noisy: bool = False

    def __call__(self, state: State) -> State:
        """Sweep 0, for solvers that call a plain function; an error if the index matters."""
        if self.noisy:
            remedy = "a solver must number its sweeps by bpeq.solvers.run_sweep(step, state, n)"
            raise SettingError("imperfect", "noise", None, remedy)
        return self.numbered(state, 0)


def run_sweep(step: Callable[[State], State], state: State, n: Array | int) -> State:
    """Sweep n of a solve.

    Args:
      step: a `Sweep`, or a plain function of the state, which ignores the index.
      state: the state before the sweep.
      n: the number of earlier sweeps in this solve, >= 0.

    Returns:
      The state after the sweep.

    Example:
      >>> run_sweep(lambda s: s + 1, 3, 0), run_sweep(Sweep(lambda s, n: s + n), 3, 5)
      (4, 8)
    """
    return step.numbered(state, n) if isinstance(step, Sweep) else step(state)


class Memory(NamedTuple):
    """How to take the leaves that a sweep reads out of a state, and put them back.

    read: whether the sweep reads a leaf, for each leaf of the state.
    """

    read: list[bool]

    def pick(self, state: State) -> list[Array]:
        """The leaves that the sweep reads."""
        return trees.pick(state, self.read)

    def fill(self, picked: list[Array], rest: State) -> State:
        """A state with these leaves, and the others of `rest`."""
        return trees.fill(rest, self.read, picked)

    @property
    def whole(self) -> bool:
        """Whether the sweep reads all leaves."""
        return all(self.read)


def memory(step: Callable[[State], State], state: State) -> Memory:
    """Find the leaves that `step` reads, from its traced program.

    An alternating sweep overwrites its first group of blocks before it reads them. So of 784-512-10
    it reads only the ten outputs: s′ depends on nothing else. If it reads no leaf, as with a single
    layer, all leaves count as read, since a solver measures the residual of what it carries.

    Args:
      step: an undamped sweep.
      state: a state in the shapes that it takes.

    Returns:
      A Memory.

    Example:
      >>> import jax.numpy as jnp
      >>> sweep = lambda s: (2 * s[1], 3 * s[1])
      >>> state = (jnp.zeros(4), jnp.ones(2))
      >>> [leaf.shape for leaf in memory(sweep, state).pick(state)]
      [(2,)]
    """
    program = jax.make_jaxpr(lambda state: run_sweep(step, state, 0))(state).jaxpr
    needed = live(program)[1]
    everything = carries_all() or needed.isdisjoint(program.invars)
    return Memory([everything or v in needed for v in program.invars])


PARTS = (4, 16)
"""A quarter of the batch continues alone, then a sixteenth."""

LEAST = 16
"""The default smallest number of examples that continues alone."""

Step = Callable[[State], State]
Loop = Callable[[Step, State, Any, int], Any]


def some_of(step: Step) -> Callable[[Array], Step] | None:
    """The function rows -> step on those examples alone.

    Args:
      step: a step for a solver; the rules give a `Sweep`.

    Returns:
      The function; None if the step needs the whole batch.
    """
    return step.some if isinstance(step, Sweep) else None


def run_compacting_active(
    loop: Loop,
    step: Step,
    state: State,
    carry: Any,
    parts: Sequence[int],
    axis: Callable[[Array], int] = lambda leaf: 0,
    least: int = LEAST,
) -> Any:
    """Run `loop` on the batch, then on smaller and smaller parts of it: the examples still active.

    Once no more than 1/parts[0] of the batch is active, the loop continues on these examples alone;
    then on 1/parts[1] of the batch. The results go back to the places of the examples.

    Args:
      loop: (step, rest, carry, few) -> carry. It runs until no more than `few` examples are active,
        or until its own limit. `rest` is the part of `state` of these examples.
      step: a step for a solver. If it has no `some`, the whole batch stays together.
      state: the state that the solver got.
      carry: a named tuple of scalars, and of arrays with the batch on axis(array). Its field
        `active` `[batch]` tells which examples still move.
      parts: n for each time that the loop continues on an n-th of the batch.
      axis: array of the carry -> its batch axis, 0 or -1.
      least: the smallest number of examples that continues alone.

    Returns:
      The carry at the end.
    """
    some, batch = some_of(step), len(carry.active)
    sizes = [batch // n for n in parts if some and batch // n >= least]

    def go(step: Step, rest: State, carry: Any, rows: Array, sizes: list[int]) -> Any:
        if not sizes:
            return loop(step, rest, carry, 0)
        size, *smaller = sizes
        end = loop(step, rest, carry, size)
        # Each active example gets one of `size` places, in order; the others get none.
        count = jnp.cumsum(end.active, dtype=jnp.int32)
        place = jnp.where(end.active, count - 1, size)
        there = place < size  # all active examples, unless the loop has reached its own limit
        # A scatter, since a sort takes as long as some sweeps. Empty places are not active.
        chosen = jnp.zeros_like(rows, shape=size).at[place].set(_numbers(len(rows)), mode="drop")
        part = jax.tree.map(lambda a: _at(a, chosen, axis(a)), end)
        part = part._replace(active=_numbers(size) < count[-1])
        own, less = rows[chosen], jax.tree.map(lambda s: s[chosen], rest)
        assert some is not None
        part = go(some(own), less, part, own, smaller)
        return jax.tree.map(lambda a, b: _put(a, b, place, there, axis(a)), end, part)

    return go(step, state, carry, _numbers(batch), sizes)


def with_derivatives_of(
    fast: Callable[[Any], Any], slow: Callable[[Any], Any], argument: Any
) -> Any:
    """fast(argument), with the derivatives of `slow`, a function with the same values.

    A loop of unknown length has no reverse-mode derivative; a scan has one. Both functions may
    close over arrays.

    Args:
      fast: gives the value.
      slow: gives the derivatives.
      argument: a tree of arrays.

    Returns:
      The value, as both functions give it.
    """
    leaves, structure = jax.tree.flatten(argument)

    def traced(f: Callable[[Any], Any]) -> Program:
        return opened(
            jax.make_jaxpr(lambda *leaves: f(jax.tree.unflatten(structure, leaves)))(*leaves)
        )

    # The constants are arguments: a closure over them would keep tracers beyond their trace.
    (fast_jaxpr, fast_constants), (slow_jaxpr, slow_constants) = traced(fast), traced(slow)

    @jax.custom_jvp
    def value(known: Any, leaves: Any) -> Any:
        return eval_jaxpr(fast_jaxpr, known[0], *leaves)

    @value.defjvp
    def derivative(primals: Any, tangents: Any) -> Any:
        def slowly(known: Any, leaves: Any) -> Any:
            return eval_jaxpr(slow_jaxpr, known[1], *leaves)

        return jax.jvp(slowly, primals, tangents)

    return jax.tree.unflatten(structure, value((fast_constants, slow_constants), leaves))


def _numbers(count: int) -> Array:
    """0, 1, ..., count − 1."""
    return jnp.arange(count, dtype=jnp.int32)


def _at(a: Array, rows: Array, axis: int) -> Array:
    """The rows of an array; a scalar as it is."""
    return jnp.take(a, rows, axis=axis, mode="clip") if a.ndim else a


def _put(a: Array, part: Array, place: Array, there: Array, axis: int) -> Array:
    """`part` put back into `a` at `there`; a scalar of the part replaces that of `a`."""
    if not a.ndim:
        return part
    mask = there.reshape(there.shape + (1,) * (a.ndim - 1)) if axis == 0 else there
    return jnp.where(mask, _at(part, place, axis), a)
