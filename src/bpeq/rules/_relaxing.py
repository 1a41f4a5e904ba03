"""What every rule on a system has beside its own kernel, added to its factory in one place."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal

import jax
from jaxtyping import Array

from bpeq.core import trees
from bpeq.rules._phases import free_phase
from bpeq.rules._start import Start, begun, remembering
from bpeq.solvers import fixed_point
from bpeq.types import (
    Batch,
    Device,
    Estimate,
    Key,
    LearningRule,
    Params,
    Solver,
    State,
    System,
)

_NOISE = 0x6E6F6973  # the noise's part of an estimate's key; rules draw from the rest
Relaxation = Literal["same", "bfloat16", "float16"]
_ADDED: dict[str, tuple[Any, Any]] = {
    "evaluation": (Solver | None, None),
    "start": (Start, "own"),
    "relaxation": (Relaxation, "same"),
}
_DOC = """
    As every rule that relaxes, it also takes

      evaluation: solver of the free phases of inference, that is of `apply`; None is `free`'s.
      start: where an estimate's free phase starts. "own": where the system says; "zeros";
        "feedforward": the pass in which every unit is driven from below alone; "carried": where
        that of the previous batch ended; "kept": where the example's own last one ended. The last
        two are for training, whose loop brings the memory; a first visit, a batch of another size
        and inference start at the system's own. To a solver that settles it is a matter of sweeps,
        not of the result, where the equilibrium is the only one.
      relaxation: what sweeps compute in. "bfloat16" and "float16" halve what they move, where the
        hardware has them; weights, states between sweeps and the contrast stay as they are. A phase
        then settles on the grid of that type, 2⁻⁸ and 2⁻¹¹ apart, and β must be large against it:
        `bpeq fidelity` tells what is left of the gradient. Not with complex β.
"""


def relaxing(factory: Callable[..., LearningRule]) -> Callable[..., LearningRule]:
    """A factory of rules on a `system` with the settings and duties that all of them share.

    Stands below `checked`. The factory's signature gains `evaluation` and `start`. Weights stay
    those that the system can have: its `project` becomes the rule's `absorb`. On a noisy device
    every estimate draws its noise from its own key.

    For "carried" and "kept" the factory must have an argument `free`, the free phase's solver, and
    its estimates an `info["free"]` that this solver gave.
    """
    signature = inspect.signature(factory)

    @functools.wraps(factory)
    def build(
        *args: Any,
        evaluation: Solver | None = None,
        start: Start = "own",
        relaxation: Relaxation = "same",
        **kwargs: Any,
    ) -> LearningRule:
        given = signature.bind(*args, **kwargs).arguments
        system = begun(given["system"], start, factory.__name__)
        if relaxation != "same":
            system = _coarse(system, relaxation)

        def on(system: System, **changed: Any) -> LearningRule:
            return factory(**{**given, **changed, "system": system})

        rule = _noisy(on, system, evaluation)
        if start in ("carried", "kept"):
            if "free" not in signature.parameters or given.get("nudging") == "online":
                raise ValueError(
                    f"{factory.__name__}: start = {start!r}: the rule runs no free phase of its "
                    "own; allowed here: 'own', 'zeros', 'feedforward'"
                )
            free = given.get("free") or fixed_point()
            rule = remembering(rule, on, functools.partial(_keyed, system), free, start)
        return _constrained(rule, system)

    names = [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=d, annotation=h)
             for n, (h, d) in _ADDED.items()]  # fmt: skip
    vars(build)["__signature__"] = signature.replace(
        parameters=[*signature.parameters.values(), *names]
    )
    build.__annotations__ = {**factory.__annotations__, **{n: h for n, (h, _) in _ADDED.items()}}
    build.__doc__ = (factory.__doc__ or "").rstrip() + "\n" + _DOC + "    "
    return build


def _coarse(system: System, relaxation: Relaxation) -> System:
    """The system with sweeps, and they alone, in a shorter floating type."""

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

    def keyed(key: Key) -> System:
        assert device.keyed is not None
        return _coarse(device.keyed(key), relaxation)

    # Exact references are of the system whose sweeps are not short.
    traits = system.traits
    device = traits.device or Device(system, None, None)
    real = f"with relaxation = {relaxation!r} no state can be complex; allowed here: 'same'"
    return system._replace(
        sweep=shortened(system.sweep),
        traits=traits._replace(
            not_holomorphic=traits.not_holomorphic or real,
            reverse=traits.reverse and shortened(traits.reverse),
            device=device._replace(keyed=device.keyed and keyed),
        ),
    )


def _keyed(system: System, key: Key) -> System:
    """The system with noise from an estimate's own key; a system without noise as it is."""
    keyed = system.traits.device and system.traits.device.keyed
    if keyed is None:
        return system
    return keyed(jax.random.fold_in(key, _NOISE))._replace(init_state=system.init_state)


def _noisy(
    on: Callable[[System], LearningRule], system: System, evaluation: Solver | None
) -> LearningRule:
    """The rule on the system, its noise from the key that it is called with, if it has noise."""
    rule = on(system)
    noisy = system.traits.device is not None and system.traits.device.keyed is not None

    def apply(params: Params, x: Any, key: Key | None = None) -> Array:
        here = system if key is None else _keyed(system, key)
        if evaluation is not None:
            return free_phase(here, evaluation, params, x).output
        return (rule if here is system else on(here)).apply(params, x, key)

    def estimate(params: Params, batch: Batch, state: State, key: Key) -> tuple[Estimate, State]:
        return on(_keyed(system, key)).estimate(params, batch, state, key)

    if noisy:
        rule = rule._replace(estimate=estimate)
    return rule._replace(apply=apply) if noisy or evaluation is not None else rule


def _constrained(rule: LearningRule, system: System) -> LearningRule:
    rule = rule._replace(trained=system.traits.trained)
    if system.traits.project is None:
        return rule
    project, own = system.traits.project, rule.absorb

    def absorb(params: Params, info: dict[str, Any]) -> Params:
        return project(params if own is None else own(params, info))

    return rule._replace(absorb=absorb)
