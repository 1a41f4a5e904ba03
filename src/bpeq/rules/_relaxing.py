"""What every rule on a system has beside its own kernel, added to its factory in one place."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from bpeq.types import LearningRule, Params, System


def relaxing(factory: Callable[..., LearningRule]) -> Callable[..., LearningRule]:
    """A factory of rules on a `system` whose rules keep the weights that the system can have.

    Stands below `checked`. Where the system has a `project`, it becomes the rule's `absorb`.
    """
    signature = inspect.signature(factory)

    @functools.wraps(factory)
    def build(*args: Any, **kwargs: Any) -> LearningRule:
        system: System = signature.bind(*args, **kwargs).arguments["system"]
        return _constrained(factory(*args, **kwargs), system)

    return build


def _constrained(rule: LearningRule, system: System) -> LearningRule:
    if system.project is None:
        return rule
    project, own = system.project, rule.absorb

    def absorb(params: Params, info: dict[str, Any]) -> Params:
        return project(params if own is None else own(params, info))

    return rule._replace(absorb=absorb)
