"""Ranges that settings are annotated with, and the check that factories make of their arguments.

A factory's signature is its schema: these annotations are read here when it is called from Python,
by `config` when it is called from a file, and by `bpeq show`.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    ParamSpec,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import numpy as np
from annotated_types import BaseMetadata, Ge, Gt, Interval, Le, Lt

Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Fraction = Annotated[float, Interval(ge=0, lt=1)]
Degrees = Annotated[float, Interval(ge=0, le=180)]
INT32 = Lt(2**31)
"""The upper bound of an int32 index. Messages mention it only when it is exceeded."""
Count = Annotated[int, Ge(1), INT32]
Whole = Annotated[int, Ge(0), INT32]

P = ParamSpec("P")
R = TypeVar("R")


class SettingError(ValueError):
    """A setting has a value that is not allowed.

    Every part of the library raises this one exception for a wrong setting, so that a caller can
    read its fields. `str(error)` is `OWNER: SETTING = VALUE: REMEDY`.

    Args:
      owner: the name of the factory whose setting it is, such as "eqprop"; empty if unknown.
      setting: the name of the argument, or a dotted path below it such as "skips.0-2".
      value: what was given; None if nothing was given.
      remedy: what is allowed, or what to do, in words.

    Example:
      >>> error = SettingError("eqprop", "beta", -0.1, "must be > 0")
      >>> str(error), error.setting, error.value
      ('eqprop: beta = -0.1: must be > 0', 'beta', -0.1)
    """

    def __init__(self, owner: str, setting: str, value: Any, remedy: str) -> None:
        super().__init__(owner, setting, value, remedy)
        self.owner, self.setting, self.value, self.remedy = owner, setting, value, remedy

    def __str__(self) -> str:
        before = f"{self.owner}: " if self.owner else ""
        return f"{before}{self.setting} = {self.value!r}: {self.remedy}"


def checked(factory: Callable[P, R]) -> Callable[P, R]:
    """A factory that checks its own settings against its annotations before it builds anything.

    Args:
      factory: a function whose settings are annotated with their ranges.

    Returns:
      The same function with the check before it.

    Raises:
      SettingError: a setting is outside its range or is not one of its choices.
    """
    signature = inspect.signature(factory)

    @functools.wraps(factory)
    def build(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:  # which does not say whose argument it is
            raise TypeError(f"{factory.__name__}: {error}") from None
        hints = get_type_hints(factory, include_extras=True)
        for name, value in bound.arguments.items():
            several = signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL
            for each in value if several else (value,):
                problem = complaint(hints.get(name, Any), each)
                if problem:
                    raise SettingError(factory.__name__, name, each, problem)
            if isinstance(value, np.generic):  # it would promote the arrays that it meets
                bound.arguments[name] = value.item()
        return factory(*bound.args, **bound.kwargs)

    return build


def complaint(hint: Any, value: Any) -> str:
    """What is wrong with `value` under a settings annotation, in words; empty if nothing is.

    Args:
      hint: the annotation.
      value: what was given.
    """
    if get_origin(hint) in (Union, UnionType):
        problems = [complaint(part, value) for part in get_args(hint)]
        return "" if "" in problems else " or ".join(problems)
    if hint is NoneType:
        return "" if value is None else "None"
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        plain = isinstance(value, str | int | float | NoneType)
        return "" if plain and value in choices else "allowed: " + ", ".join(map(repr, choices))
    if isinstance(hint, type) and issubclass(hint, tuple) and not isinstance(value, hint):
        return f"must be a {hint.__name__}; was a factory passed without its ()?"
    if isinstance(value, np.generic):
        value = value.item()
    if hint is bool:
        return "" if isinstance(value, bool) else "must be True or False"
    if hint in (int, float):
        hint = Annotated[hint, BaseMetadata()]
    if get_origin(hint) is not Annotated:
        return ""
    kind, *limits = get_args(hint)
    if get_origin(kind) is Literal:
        return complaint(kind, value)
    if kind in (int, float):
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not (whole or (kind is float and isinstance(value, float))):
            noun = "a whole number" if kind is int else "a number"
            return f"must be {noun} {allowed(hint)}".strip()
        if not (_finite(value) and all(_holds(limit, value) for limit in limits)):
            return f"must be {allowed(hint, value)}"
    return ""


def allowed(hint: Any, value: Any = None) -> str:
    """The range or the choices of an annotation, as a person writes them.

    A `value` that is too large for int32 is told so; None, which TOML cannot write, is left out.

    Args:
      hint: the annotation.
      value: what was given, if an error is to be worded.
    """
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(filter(None, (allowed(part, value) for part in get_args(hint))))
    if get_origin(hint) is Literal:
        return " | ".join(map(repr, get_args(hint)))
    if get_origin(hint) is not Annotated:
        return ""
    kind, *limits = get_args(hint)
    words = [word for limit in limits if limit != INT32 for word in _words(limit)]
    if INT32 in limits and isinstance(value, int) and value >= INT32.lt:  # type: ignore[operator]
        words += _words(INT32)
    return " and ".join(words) if words else allowed(kind)


_SIGNS = {Gt: (">", "gt"), Ge: (">=", "ge"), Lt: ("<", "lt"), Le: ("<=", "le")}


def _words(limit: Any) -> list[str]:
    if isinstance(limit, Interval):
        return [word for part in limit for word in _words(part)]
    if type(limit) in _SIGNS:
        sign, field = _SIGNS[type(limit)]
        return [f"{sign} {getattr(limit, field)}"]
    return []


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond every float
        return False


def _holds(limit: BaseMetadata, value: float) -> bool:
    if isinstance(limit, Interval):
        return all(_holds(part, value) for part in limit)
    if isinstance(limit, Gt):
        return value > limit.gt  # type: ignore[operator]
    if isinstance(limit, Ge):
        return value >= limit.ge  # type: ignore[operator]
    if isinstance(limit, Lt):
        return value < limit.lt  # type: ignore[operator]
    if isinstance(limit, Le):
        return value <= limit.le  # type: ignore[operator]
    return True
