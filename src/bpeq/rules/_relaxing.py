"""What all rules on a system share: inference, starts of free phases, shorter floating types.

`relaxing_rule` builds a rule from a gradient at a settled free phase. Four wrappers add the other
settings. A reader can also call them: `starting_at` and `in_short_floats` change a system,
`evaluated_by` and `remembering` change a rule.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from bpeq.core import sharding, trees
from bpeq.rules._common import mean_loss, no_state
from bpeq.rules._phases import Free, free_phase, inference, noise_key
from bpeq.rules._references import exact_reference
from bpeq.settings import SettingError
from bpeq.solvers import fixed_point
from bpeq.types import (
    Batch,
    Cost,
    Device,
    Estimate,
    Key,
    LearningRule,
    Memory,
    Params,
    RuleInfo,
    Solver,
    State,
    System,
)

Start = Literal["own", "zeros", "feedforward", "carried", "kept"]
Relaxation = Literal["same", "bfloat16", "float16"]
Measured = tuple[Params, dict[str, Any], State]
"""(gradient, records for the info, the rule's new state)."""
Gradient = Callable[[Params, Batch, Free, State, Key], Measured]
"""(params, batch, free phase, state, key) -> Measured."""


def relaxing_rule(
    name: str,
    system: System,
    cost: Cost,
    free: Solver | None,
    gradient: Gradient,
    init: Callable[[Key, Params], tuple[Params, State]] = no_state,
    info: RuleInfo | None = None,
    start: Start = "own",
    evaluation: Solver | None = None,
) -> LearningRule:
    """A rule that settles a free phase and takes its gradient there.

    Args:
      name: the rule's name.
      system: the system to settle, with its start and its floating type already set (`prepared`).
      cost: cost of the loss and of the exact reference.
      free: solver of the free phase; None settles to a residual of 1e-6 within 1,000 sweeps.
      gradient: (params, batch, free phase, state, key) -> (gradient, records, state).
      init: the rule's `init`; the default has no state.
      info: the rule's info; None: the defaults. This function sets its `reference` to the exact
        gradient of the ideal system.
      start: "carried" and "kept" make the rule remember. The other starts are set in the system.
      evaluation: solver of inference; None: that of the free phase.

    Returns:
      A LearningRule. Its `absorb` is the system's `project`. The estimate's info has the SolveInfo
      `free` and the records of `gradient`.
    """
    settle = fixed_point() if free is None else free

    def estimate(params: Params, batch: Batch, state: State, key: Key) -> tuple[Estimate, State]:
        rest = free_phase(system, settle, params, batch.x, batch.start, noise_key(key))
        grads, record, state = gradient(params, batch, rest, state, key)
        loss = mean_loss(cost, rest.output, batch.y)
        return Estimate(grads, loss, rest.output, {"free": rest.info, **record}), state

    info = (info or RuleInfo())._replace(reference=exact_reference(system, cost))
    rule = LearningRule(name, init, inference(system, settle), estimate, info=info)
    return finished(rule, system, start, evaluation)


def finished(
    rule: LearningRule, system: System, start: Start, evaluation: Solver | None
) -> LearningRule:
    """Add to a rule the wrappers of its settings, and the system's `project` as its `absorb`.

    Args:
      rule: a rule on the system.
      system: the system that the rule settles.
      start: "carried" and "kept" apply `remembering`.
      evaluation: solver for `evaluated_by`; None: not applied.

    Returns:
      The LearningRule.
    """
    rule = rule._replace(trained=system.traits.trained)
    if evaluation is not None:
        rule = evaluated_by(rule, system, evaluation)
    if start in ("carried", "kept"):
        rule = remembering(rule, system, start)
    project = system.traits.project
    if project is None:
        return rule
    return rule._replace(absorb=lambda params, info: project(params))


def prepared(
    system: System, owner: str, start: Start, relaxation: Relaxation, has_free: bool = True
) -> System:
    """The system with the start and the floating type of a rule's settings.

    Args:
      system: any system.
      owner: the rule's name, for messages.
      start: as in `starting_at` and `remembering`.
      relaxation: as in `in_short_floats`.
      has_free: whether the rule runs a free phase.

    Returns:
      The System.

    Raises:
      SettingError: the system does not have this start; or `start` remembers free phases and the
        rule has none.
    """
    if start in ("carried", "kept") and not has_free:
        remedy = (
            "the rule runs no free phase of its own; allowed here: 'own', 'zeros', 'feedforward'"
        )
        raise SettingError(owner, "start", start, remedy)
    return in_short_floats(starting_at(system, start, owner), relaxation)


# --- where a free phase starts -------------------------------------------------------------------


def starting_at(system: System, start: Start, owner: str = "starting_at") -> System:
    """The system with another start of its free phases.

    Args:
      system: any system.
      start: "own" changes nothing. "zeros" starts at zeros. "feedforward" starts at the
        feed-forward pass, in which each unit gets input from below alone. "carried" and "kept"
        change nothing
        here: `remembering` adds them. With these a first visit, and inference, start at the
          system's
        own start.
      owner: the rule's name, for messages.

    Returns:
      The System.

    Raises:
      SettingError: "feedforward" with a system that has no feed-forward order.
    """
    if start == "zeros":
        own = system.init_state
        return system._replace(init_state=lambda params, clamped: trees.zeros(own(params, clamped)))
    if start == "feedforward":
        if system.traits.forward is None:
            remedy = f"the units of {system.name!r} have no order to pass through; "
            remedy += "allowed here: 'own', 'zeros', 'carried', 'kept'"
            raise SettingError(owner, "start", start, remedy)
        return system._replace(init_state=system.traits.forward)
    return system


class Remembering(NamedTuple):
    """The state of a rule that remembers free phases.

    rule: the wrapped rule's own state. memory: the final states of earlier free phases.
    """

    rule: State
    memory: Memory


def remembering(
    rule: LearningRule, system: System, start: Literal["carried", "kept"]
) -> LearningRule:
    """The rule with free phases that start where an earlier one ended.

    This is for training: the loop calls `prepare`, which makes room for the memory. In three cases
    a phase starts at the system's own start, and nothing is kept: without `prepare`; with a batch
    of another size ("carried"); with a batch without row indices ("kept"). If there is one
    equilibrium only, the start changes the number of sweeps of a settling solver, but not the
    result.

    Args:
      rule: a rule that starts its free phase at `batch.start` and reports it as info["free"], as
        the rules of `relaxing_rule` do.
      system: the system that the rule settles.
      start: "carried": a phase starts where the same row of the previous batch ended. "kept": it
        starts where the same example ended the last time.

    Returns:
      The LearningRule. After `prepare` its state is a `Remembering`.
    """

    def prepare(params: Params, state: State, x: Array, batch_size: int) -> State:
        def one(params: Params, x: Array) -> State:
            return system.init_state(params, system.clamp(params, x))

        # The shapes of one example's state are enough; no sweep runs here.
        example = jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)
        places = len(x) if start == "kept" else batch_size
        shapes = jax.eval_shape(one, params, example)
        states = jax.tree.map(lambda s: jnp.zeros((places, *s.shape[1:]), s.dtype), shapes)
        return Remembering(state, Memory(states, jnp.zeros(places, bool)))

    def estimate(params: Params, batch: Batch, state: State, key: Key) -> tuple[Estimate, State]:
        if not isinstance(state, Remembering):
            return rule.estimate(params, batch, state, key)
        # Without a place for this batch the phase starts at the system's own start.
        memory, places = state.memory, _places(batch, state.memory, start)
        if places is None:
            made, own = rule.estimate(params, batch, state.rule, key)
            return made, state._replace(rule=own)
        # Start at the remembered states, then remember the new ones in their place.
        known = jax.tree.map(lambda s: s[places], memory.states)
        begun = batch._replace(start=Memory(known, memory.known[places]))
        made, own = rule.estimate(params, begun, state.rule, key)
        info = made.info["free"]
        made = made._replace(info={**made.info, "free": info._replace(end=None)})
        return made, Remembering(own, _put(memory, places, info.end))

    return rule._replace(estimate=estimate, prepare=prepare)


def _places(batch: Batch, memory: Memory, start: str) -> Int[Array, " batch"] | None:
    """The memory's places of the batch; None if the memory does not fit the batch."""
    if start == "kept":
        return batch.rows
    whole = len(batch.x) * sharding.count()
    return sharding.places(len(batch.x)) if whole == len(memory.known) else None


def _put(memory: Memory, places: Array, end: State) -> Memory:
    """Write the final states into the memory; diverged examples are forgotten.

    Each device gathers the states of all devices, so all memories stay the same.
    """
    good = jnp.isfinite(trees.max_abs(end))
    end = trees.where(good, end, trees.zeros(end))
    places, end, good = sharding.gathered((places, end, good))
    states = jax.tree.map(lambda all_of, s: all_of.at[places].set(s), memory.states, end)
    return Memory(states, memory.known.at[places].set(good))


# --- inference by another solver, sweeps in a shorter type ---------------------------------------


def evaluated_by(rule: LearningRule, system: System, solver: Solver) -> LearningRule:
    """The rule with its own solver for the free phases of inference, that is of `apply`.

    Args:
      rule: a rule on the system.
      system: the system that it settles.
      solver: settles the free phases of `apply`.

    Returns:
      The LearningRule.
    """
    return rule._replace(apply=inference(system, solver))


def in_short_floats(system: System, relaxation: Relaxation) -> System:
    """The system with its sweeps in a shorter floating type.

    "bfloat16" and "float16" halve the memory traffic of a sweep, if the hardware has them. Weights,
    states between sweeps and the contrast keep their type. A phase then settles on the grid of the
    short type, with a relative rounding error up to 2⁻⁸ or 2⁻¹¹. β must be large against it;
    `bpeq fidelity` measures the error of the gradient. Complex β is not possible. Exact references
    use the system without the short type.

    Args:
      system: any system.
      relaxation: the type; "same" changes nothing.

    Returns:
      The System.
    """
    if relaxation == "same":
        return system

    def shortened(sweep: Callable[..., State]) -> Callable[..., State]:
        def short(
            params: Params, clamped: Any, state: State, push: Any = None, hold: bool = False
        ) -> State:
            def back(short: State) -> State:
                return jax.tree.map(lambda a, s: a.astype(s.dtype), short, state)

            def pushed(short: State) -> State:
                return trees.cast(push(back(short)), relaxation)

            inside = trees.cast((params, clamped, state), relaxation)
            swept = back(sweep(*inside, None if push is None else pushed, hold))
            if hold and system.write is not None:  # the held output keeps its full precision
                swept = system.write(swept, system.readout.forward(params, state)[0])
            return swept

        return short

    traits = system.traits
    # Exact references use the system at full precision, so it becomes a device's ideal system.
    real = f"with relaxation = {relaxation!r} no state can be complex; allowed here: 'same'"
    return system._replace(
        sweep=shortened(system.sweep),
        traits=traits._replace(
            not_holomorphic=traits.not_holomorphic or real,
            reverse=traits.reverse and shortened(traits.reverse),
            device=traits.device or Device(system),
        ),
    )
