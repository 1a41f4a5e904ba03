"""What every rule on a system has beside its own gradient: inference, starts, shorter floats.

`relaxing_rule` builds a rule out of the gradient that it takes at a settled free phase. Four
wrappers do the rest, and can be called by hand: `starting_at` and `in_short_floats` change a
system, `evaluated_by` and `remembering` a rule.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from bpeq.core import sharding, trees
from bpeq.rules._common import mean_loss, no_state
from bpeq.rules._phases import Free, free_phase
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
Gradient = Callable[[Params, Batch, Free, State, Key], tuple[Params, dict[str, Any], State]]
"""(params, batch, free phase, state, key) -> (gradient, records for the info, state)."""
_NOISE = 0x6E6F6973  # the noise's part of an estimate's key; rules draw from the rest


def noise_key(key: Key | None) -> Key | None:
    """The key of a noisy device's noise, of an estimate's or an inference's key."""
    return None if key is None else jax.random.fold_in(key, _NOISE)


def relaxing_rule(
    name: str,
    system: System,
    cost: Cost,
    free: Solver | None,
    gradient: Gradient,
    *,
    init: Callable[[Key, Params], tuple[Params, State]] = no_state,
    info: RuleInfo | None = None,
    start: Start = "own",
    evaluation: Solver | None = None,
) -> LearningRule:
    """A rule that settles a free phase, and takes its gradient there.

    Args:
      name: the rule's.
      system: what it settles, with its start and its floating type already.
      cost: of the loss, and of the exact reference.
      free: solver of the free phase; None settles to a residual of 1e-6 within 1,000 sweeps.
      gradient: (params, batch, free phase, state, key) -> (gradient, records, state).
      init: the rule's; None: no state.
      info: the rule's; its reference is set here, to the exact gradient of the ideal system.
      start: "carried" and "kept" make it remember; the others are the system's matter.
      evaluation: solver of inference; None: that of the free phase.

    Returns:
      The rule. The system's `project` is its `absorb`.
    """
    settle = fixed_point() if free is None else free

    def apply(params: Params, x: Any, key: Key | None = None) -> Array:
        return free_phase(system, settle, params, x, key=noise_key(key)).output

    def estimate(params: Params, batch: Batch, state: State, key: Key) -> tuple[Estimate, State]:
        rest = free_phase(system, settle, params, batch.x, batch.start, noise_key(key))
        grads, record, state = gradient(params, batch, rest, state, key)
        loss = mean_loss(cost, rest.output, batch.y)
        return Estimate(grads, loss, rest.output, {"free": rest.info, **record}), state

    info = (info or RuleInfo())._replace(reference=exact_reference(system, cost))
    rule = LearningRule(name, init, apply, estimate, info=info)
    return finished(rule, system, start, evaluation)


def finished(
    rule: LearningRule, system: System, start: Start, evaluation: Solver | None
) -> LearningRule:
    """The rule with the wrappers that its settings ask for, and the system's `project`."""
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
    """The system with the start and the floating type that a rule's settings ask for.

    Raises:
      SettingError: a start that the system does not have; or one that remembers free phases, of a
        rule that has none.
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
      system: any.
      start: "own" changes nothing. "zeros": at zeros. "feedforward": at the pass in which every
        unit is driven from below alone. "carried" and "kept" are `remembering`'s: a first visit,
        and inference, start at the system's own.
      owner: whose setting it is, for the message.

    Raises:
      SettingError: "feedforward" on a system whose units have no such order.
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
    """The state of a rule, and what its free phases left behind."""

    rule: State
    memory: Memory


def remembering(
    rule: LearningRule, system: System, start: Literal["carried", "kept"]
) -> LearningRule:
    """The rule with free phases that start where an earlier one ended.

    It is for training, whose loop brings the memory: `prepare` makes room. Without it, on a batch
    of another size ("carried") and on one without row indices ("kept"), a phase starts at the
    system's own start and nothing is kept. To a solver that settles it is a matter of sweeps, not
    of the result, if there is one equilibrium only.

    Args:
      rule: one that starts its free phase at `batch.start`, and puts how it ended under
        info["free"], as those of `relaxing_rule` do.
      system: what the rule settles.
      start: "carried": where the phase of the same row of the previous batch ended; "kept": where
        the example's own last one ended.
    """

    def prepare(params: Params, state: State, x: Array, batch_size: int) -> State:
        def one(params: Params, x: Array) -> State:
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
        known = jax.tree.map(lambda s: s[places], memory.states)
        begun = batch._replace(start=Memory(known, memory.known[places]))
        made, own = rule.estimate(params, begun, state.rule, key)
        info = made.info["free"]
        made = made._replace(info={**made.info, "free": info._replace(end=None)})
        return made, Remembering(own, _put(memory, places, info.end))

    return rule._replace(estimate=estimate, prepare=prepare)


def _places(batch: Batch, memory: Memory, start: str) -> Int[Array, " batch"] | None:
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


# --- inference by another solver, sweeps in a shorter type ---------------------------------------


def evaluated_by(rule: LearningRule, system: System, solver: Solver) -> LearningRule:
    """The rule with a solver of its own for the free phases of inference, that is of `apply`."""

    def apply(params: Params, x: Any, key: Key | None = None) -> Array:
        return free_phase(system, solver, params, x, key=noise_key(key)).output

    return rule._replace(apply=apply)


def in_short_floats(system: System, relaxation: Relaxation) -> System:
    """The system with sweeps, and they alone, in a shorter floating type.

    "bfloat16" and "float16" halve what sweeps move, where the hardware has them. Weights, states
    between sweeps and the contrast stay as they are. A phase then settles on the grid of that type,
    2⁻⁸ and 2⁻¹¹ apart, and β must be large against it: `bpeq fidelity` shows what is left of the
    gradient. Not with complex β. Exact references are of the system as it was.

    Args:
      system: any.
      relaxation: the type; "same" changes nothing.
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
            if hold and system.write is not None:  # what is held is on no coarser grid
                swept = system.write(swept, system.readout.forward(params, state)[0])
            return swept

        return short

    traits = system.traits
    real = f"with relaxation = {relaxation!r} no state can be complex; allowed here: 'same'"
    return system._replace(
        sweep=shortened(system.sweep),
        traits=traits._replace(
            not_holomorphic=traits.not_holomorphic or real,
            reverse=traits.reverse and shortened(traits.reverse),
            device=traits.device or Device(system),
        ),
    )
