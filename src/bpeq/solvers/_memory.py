"""The leaves of a state that a sweep reads: all that a loop must carry between sweeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
from jaxtyping import Array

from bpeq.core.jaxprs import live
from bpeq.core.tracing import carries_all
from bpeq.solvers._sweep import run_sweep
from bpeq.types import State


class Memory(NamedTuple):
    """How to take the leaves that a sweep reads out of a state, and put them back.

    pick(state): the leaves that the sweep reads.
    fill(picked, rest): a state with these leaves, and the others of `rest`.
    whole: whether all leaves count as read.
    """

    pick: Callable[[State], list[Array]]
    fill: Callable[[list[Array], State], State]
    whole: bool


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
    read = [everything or v in needed for v in program.invars]

    def pick(state: State) -> list[Array]:
        return [leaf for leaf, is_read in zip(jax.tree.leaves(state), read, strict=True) if is_read]

    def fill(picked: list[Array], rest: State) -> State:
        leaves, structure = jax.tree.flatten(rest)
        given = iter(picked)
        mixed = [
            next(given) if is_read else leaf for leaf, is_read in zip(leaves, read, strict=True)
        ]
        return jax.tree.unflatten(structure, mixed)

    return Memory(pick, fill, all(read))
