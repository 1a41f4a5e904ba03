"""What a sweep reads of a state: all that a loop must carry from one sweep to the next."""

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
    """The leaves of a state that a sweep reads, taken out of it and put back."""

    pick: Callable[[State], list[Array]]
    fill: Callable[[list[Array], State], State]
    whole: bool


def memory(step: Callable[[State], State], state: State) -> Memory:
    """Which leaves `step` reads, from its own program.

    An alternating sweep overwrites its first group of blocks before it reads any of them, so that
    of 784-512-10 only the ten outputs are read: s′ depends on nothing else.

    pick(state): the leaves that are read. fill(picked, rest): a state with those, and the others of
    `rest`. whole: all are read, or none is, as of a single layer: then all count as read, since a
    solver has no residual but that of what it carries.

    Args:
      step: an undamped sweep.
      state: a state of the shapes that it takes.

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
