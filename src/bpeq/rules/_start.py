"""Where a free phase starts: at zeros, at a feed-forward pass, or where an earlier one ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from bpeq.core import sharding, trees
from bpeq.types import Batch, Estimate, Key, LearningRule, Params, SolveInfo, Solver, State, System

Start = Literal["own", "zeros", "feedforward", "carried", "kept"]


class Memory(NamedTuple):
    """Where free phases ended: one place for each row of a batch, or for each example of a set.

    states: the system's, `[places, ...]`. known: whether something finite has been put there.
    """

    states: State
    known: Bool[Array, " places"]


class Remembering(NamedTuple):
    """The state of a rule, and what its free phases left behind."""

    rule: State
    memory: Memory


def begun(system: System, start: Start, name: str) -> System:
    """The system with another start of its free phases, where that needs no memory.

    Raises:
      ValueError: "feedforward" on a system whose units have no such order.
    """
    if start == "zeros":
        own = system.init_state
        return system._replace(init_state=lambda params, clamped: trees.zeros(own(params, clamped)))
    if start == "feedforward":
        if system.traits.forward is None:
            raise ValueError(
                f"{name}: start = 'feedforward': the units of {system.name!r} have no order to "
                "pass through; allowed here: 'own', 'zeros', 'carried', 'kept'"
            )
        return system._replace(init_state=system.traits.forward)
    return system


def remembering(
    rule: LearningRule,
    on: Callable[..., LearningRule],
    keyed: Callable[[Key], System],
    free: Solver,
    start: Start,
) -> LearningRule:
    """The rule with free phases that start where an earlier one ended.

    `prepare` makes room; without it, on a batch of another size ("carried") and on one whose
    examples nobody names ("kept"), a phase starts at the system's own start and nothing is kept.

    Args:
      rule: without memory.
      on: (system, free=solver) -> the rule on that system, with that free solver.
      keyed: an estimate's key -> its system.
    """

    def prepare(params: Params, state: State, x: Array, batch_size: int) -> State:
        def one(params: Params, x: Array) -> State:
            system = keyed(jax.random.key(0))
            return system.init_state(params, system.clamp(params, x))

        example = jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)
        places = len(x) if start == "kept" else batch_size
        shapes = jax.eval_shape(one, params, example)
        states = jax.tree.map(lambda s: jnp.zeros((places, *s.shape[1:]), s.dtype), shapes)
        return Remembering(state, Memory(states, jnp.zeros(places, bool)))

    def estimate(params: Params, batch: Batch, state: State, key: Key) -> tuple[Estimate, State]:
        if not isinstance(state, Remembering):
            return rule.estimate(params, batch, state, key)
        memory, places = state.memory, _places(batch, state.memory, start)
        if places is None:
            made, own = rule.estimate(params, batch, state.rule, key)
            return made, state._replace(rule=own)
        system = keyed(key)

        def init_state(params: Params, clamped: Any) -> State:
            known = jax.tree.map(lambda s: s[places], memory.states)
            return trees.where(memory.known[places], known, system.init_state(params, clamped))

        here = on(system._replace(init_state=init_state), free=_ending(free))
        made, own = here.estimate(params, batch, state.rule, key)
        info = made.info["free"]
        made = made._replace(info={**made.info, "free": info._replace(end=None)})
        return made, Remembering(own, _put(memory, places, info.end))

    return rule._replace(estimate=estimate, prepare=prepare)


def _places(batch: Batch, memory: Memory, start: Start) -> Int[Array, " batch"] | None:
    if start == "kept":
        return batch.rows
    whole = len(batch.x) * sharding.count()
    return sharding.places(len(batch.x)) if whole == len(memory.known) else None


def _put(memory: Memory, places: Array, end: State) -> Memory:
    """What has diverged is no place to start from. Every device remembers what all have left."""
    good = jnp.isfinite(trees.max_abs(end))
    end = trees.where(good, end, trees.zeros(end))
    places, end, good = sharding.gathered((places, end, good))
    states = jax.tree.map(lambda all_of, s: all_of.at[places].set(s), memory.states, end)
    return Memory(states, memory.known.at[places].set(good))


def _ending(solver: Solver) -> Solver:
    """The solver, with the state that it ends in in its info."""

    def solve(step: Callable[[State], State], state: State) -> tuple[State, SolveInfo]:
        state, info = solver(step, state)
        return state, info._replace(end=state)

    return solve
