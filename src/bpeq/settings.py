"""Ranges that settings are annotated with, and the check that factories make of their arguments.

A factory's signature is its schema: these annotations are read here when it is called from Python,
by `config` when it is called from a file, and by `bpeq show`.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import operator
import sys
from collections.abc import Callable, Iterable
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
from annotated_types import Ge, Gt, Interval, Le, Lt

Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Fraction = Annotated[float, Interval(ge=0, lt=1)]
Degrees = Annotated[float, Interval(ge=0, le=180)]
INT32 = Lt(2**31)
"""The upper bound of an int32 index. Messages mention it only when it is exceeded."""
Count = Annotated[int, Ge(1), INT32]
Whole = Annotated[int, Ge(0), INT32]
LayerTable = dict[str, dict[str, Any]]
"""A setting that maps keys to layers: one spec for each key, as in [network]."""

OTHER_NAMES = {
    "Linear": "dense",
    "fc": "dense",
    "mse": "squared_error",
    "ce": "softmax_cross_entropy",
    "nll": "softmax_cross_entropy",
    "crossentropy": "softmax_cross_entropy",
    "bp": "backprop",
    "backpropagation": "backprop",
    "ep": "eqprop",
    "equilibrium_propagation": "eqprop",
    "dfa": "direct_feedback_alignment",
    "fa": "feedback_alignment",
    "chl": "contrastive_hebbian",
    "pc": "predictive_coding",
    "lr": "learning_rate",
    "eta": "learning_rate",
    "bs": "batch_size",
    "wd": "weight_decay",
    "n_epochs": "epochs",
}
"""Names of other libraries and papers -> ours, for `nearest`."""

P = ParamSpec("P")
R = TypeVar("R")


class Caution(UserWarning):
    """The run continues, but this setting is probably a mistake."""


class DataError(ValueError):
    """Data or files are at fault: absent, truncated, corrupt, out of range. Exit code 3."""

    exit_code = 3


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
    """Says what is wrong with a value under the annotation of a setting.

    Args:
      hint: the annotation.
      value: the value of the setting.

    Returns:
      The problem in words; empty if the value is allowed.
    """
    return "" if _fits(hint, value) else phrase(hint, value, none=True)


def _fits(hint: Any, value: Any) -> bool:
    """Whether a value is allowed. Types other than numbers, choices and tuples are not checked."""
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(part, value) for part in get_args(hint))
    if get_origin(hint) is Literal:
        return isinstance(value, str | int | float | NoneType) and value in get_args(hint)
    if isinstance(value, np.generic):
        value = value.item()
    if get_origin(hint) is Annotated:
        inside = (holds(value, bound) for _, holds, bound in _limits(hint))
        return _fits(get_args(hint)[0], value) and all(inside)
    if hint in (int, float):
        kinds = int if hint is int else int | float
        number = isinstance(value, kinds) and not isinstance(value, bool)
        return number and abs(value) <= sys.float_info.max
    checked_type = hint in (bool, NoneType) or (isinstance(hint, type) and issubclass(hint, tuple))
    return isinstance(value, hint) if checked_type else True


def phrase(hint: Any, value: Any = None, none: bool = False) -> str:
    """Says in words which values a setting may have.

    Args:
      hint: the annotation of the setting.
      value: a wrong value, for which the nearest choice is suggested; None: no suggestion.
      none: whether to name None, which TOML cannot write.

    Returns:
      "must be" with type and range; empty if anything is allowed.
    """
    options = [part for part in _options(hint) if none or part is not NoneType]
    words = " or ".join(filter(None, (_phrase(part, value) for part in options)))
    texts = [c for part in options for c in get_args(part) if isinstance(c, str)]
    near = nearest(texts, value) if isinstance(value, str) else ""
    return f"must be {words}{near}" if words else ""


def nearest(allowed: Iterable[str], name: str) -> str:
    """Suggests the permitted name nearest to a mistyped one, or to one of another library.

    Args:
      allowed: the permitted names.
      name: the mistyped name. Capital letters do not matter.

    Returns:
      `; did you mean …?`, or an empty text if no name is near.

    Example:
      >>> nearest(["learning_rate", "relu"], "lr"), nearest(["learning_rate", "relu"], "ReLU")
      ("; did you mean 'learning_rate'?", "; did you mean 'relu'?")
    """
    names = {each.lower(): each for each in allowed}
    other = OTHER_NAMES.get(name, OTHER_NAMES.get(name.lower(), ""))
    near = [other] if other in names else difflib.get_close_matches(name.lower(), names, n=1)
    return f"; did you mean {names[near[0]]!r}?" if near else ""


_NOUNS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    NoneType: "None",
    LayerTable: 'a table of layers such as {"0-2" = "dense(10)"}',
}
_SIGNS: dict[type, tuple[str, Callable[[Any, Any], bool]]] = {
    Gt: (">", operator.gt),
    Ge: (">=", operator.ge),
    Lt: ("<", operator.lt),
    Le: ("<=", operator.le),
}


def _phrase(hint: Any, value: Any) -> str:
    """The type and the range of a setting that is not a union."""
    if get_origin(hint) is Literal:
        return " | ".join(map(repr, get_args(hint)))
    if get_origin(hint) is list:
        entries = " or ".join(_phrase(entry, None) for entry in _options(get_args(hint)[0]))
        return f"a list, each entry {entries}"
    kind = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    if get_origin(kind) is Literal:
        return _phrase(kind, value)
    if isinstance(kind, type) and issubclass(kind, tuple):
        return f"a {kind.__name__}; was a factory passed without its ()?"
    noun = _NOUNS.get(kind, "")
    if noun == "a number" and isinstance(value, float) and not math.isfinite(value):
        noun = "a finite number"
    too_large = isinstance(value, int) and value >= 2**31
    limits = [f"{sign} {bound}" for sign, _, bound in _limits(hint) if bound != 2**31 or too_large]
    return " ".join(filter(None, (noun, " and ".join(limits))))


def _limits(hint: Any) -> list[tuple[str, Callable[[Any, Any], bool], Any]]:
    """The limits in an annotation: sign, comparison and bound."""
    limits = []
    for each in get_args(hint)[1:] if get_origin(hint) is Annotated else ():
        for limit in each if isinstance(each, Interval) else (each,):
            if type(limit) in _SIGNS:
                sign, holds = _SIGNS[type(limit)]
                limits.append((sign, holds, getattr(limit, holds.__name__)))  # named gt, ge, lt, le
    return limits


def _options(hint: Any) -> tuple[Any, ...]:
    """The members of a union; of another annotation, the annotation itself."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
