"""What every rule on a system has beside its own kernel, added to its factory in one place."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array

from bpeq.types import Batch, Estimate, Key, LearningRule, Params, State, System

_NOISE = 0x6E6F6973  # the noise's part of an estimate's key; rules draw from the rest


def relaxing(factory: Callable[..., LearningRule]) -> Callable[..., LearningRule]:
    """A factory of rules on a `system` whose rules suit whatever system it is.

    Stands below `checked`. Weights stay those that the system can have: its `project` becomes the
    rule's `absorb`. On a noisy device every estimate draws its noise from its own key.
    """
    signature = inspect.signature(factory)

    @functools.wraps(factory)
    def build(*args: Any, **kwargs: Any) -> LearningRule:
        given = signature.bind(*args, **kwargs)
        system: System = given.arguments["system"]

        def on(system: System) -> LearningRule:
            return factory(**{**given.arguments, "system": system})

        return _constrained(_noisy(on, system), system)

    return build


def _noisy(on: Callable[[System], LearningRule], system: System) -> LearningRule:
    """The rule on the system; on a noisy one its functions rebuild it with the key they get."""
    rule = on(system)
    keyed = system.imperfect and system.imperfect.keyed
    if keyed is None:
        return rule

    def with_key(key: Key) -> LearningRule:
        return on(keyed(jax.random.fold_in(key, _NOISE)))

    def apply(params: Params, x: Any, key: Key | None = None) -> Array:
        return (rule if key is None else with_key(key)).apply(params, x, key)

    def estimate(params: Params, batch: Batch, state: State, key: Key) -> tuple[Estimate, State]:
        return with_key(key).estimate(params, batch, state, key)

    return rule._replace(apply=apply, estimate=estimate)


def _constrained(rule: LearningRule, system: System) -> LearningRule:
    if system.project is None:
        return rule
    project, own = system.project, rule.absorb

    def absorb(params: Params, info: dict[str, Any]) -> Params:
        return project(params if own is None else own(params, info))

    return rule._replace(absorb=absorb)
