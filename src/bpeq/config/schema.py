"""Reads the settings of a factory from its signature, and validates values against it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from bpeq.config.registry import choices, nearest
from bpeq.settings import SettingError, allowed
from bpeq.types import Cost, Layer, LearningRule, Solver, System

WORDS = (Layer, Cost, System, Solver, LearningRule)
LayerTable = dict[str, dict[str, Any]]
"""The type of an argument that maps keys to layers: one spec for each key, as in [network]."""


@cache
def wires(factory: Callable[..., Any]) -> dict[str, type]:
    """Finds the arguments that are other parts of the config.

    Args:
      factory: the factory.

    Returns:
      Argument -> its type, such as Layer or Cost.
    """
    hints = get_type_hints(factory)
    found: dict[str, type] = {}
    for name in inspect.signature(factory).parameters:
        options = (hints.get(name), *get_args(hints.get(name)))
        word = next((w for w in WORDS if w in options), None)
        if word is not None and name not in layer_tables(factory):
            found[name] = word
    return found


@cache
def layer_tables(factory: Callable[..., Any]) -> tuple[str, ...]:
    """Finds the settings that map keys to layers, such as hopfield's `skips`.

    Args:
      factory: the factory.

    Returns:
      The names of the arguments.
    """
    hints = get_type_hints(factory)

    def maps_to_layers(hint: Any) -> bool:
        return get_origin(hint) in (dict, Mapping) and get_args(hint)[1] is Layer

    return tuple(
        name
        for name in inspect.signature(factory).parameters
        if any(map(maps_to_layers, _options(hints.get(name))))
    )


@cache
def fields(factory: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """Finds the settings of a factory, with their annotations and defaults.

    Args:
      factory: the factory.

    Returns:
      Name -> (annotation, default). The default is `...` if a value is required.
    """
    hints = get_type_hints(factory, include_extras=True)
    found = {}
    for name, parameter in inspect.signature(factory).parameters.items():
        variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if name not in wires(factory) and not variadic:
            default = ... if parameter.default is parameter.empty else parameter.default
            hint = LayerTable if name in layer_tables(factory) else hints.get(name, Any)
            found[name] = (hint, default)
    return found


@cache
def study_settings(run: Callable[..., Any]) -> Callable[..., Any]:
    """Turns the settings of a study's `run(config, runner, *, ...)` into a factory's signature.

    Args:
      run: the function of the study. Its first two arguments are not settings.

    Returns:
      A function whose signature has the settings only.
    """

    def study(**settings: Any) -> dict[str, Any]:
        return settings

    parameters = list(inspect.signature(run).parameters.values())[2:]
    vars(study)["__signature__"] = inspect.Signature(parameters)
    hints = get_type_hints(run, include_extras=True)
    study.__annotations__ = {p.name: hints.get(p.name, Any) for p in parameters}
    return study


def validate(factory: Callable[..., Any], given: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Checks the settings of a factory and fills in the defaults.

    Args:
      factory: the factory.
      given: the settings by name.
      place: the key of the section. It begins the keys in error messages; empty at the top level.

    Returns:
      The settings. A setting whose value is None is absent.

    Raises:
      SettingError: the first setting that is unknown, missing, of the wrong type or out of range.
    """
    known, before = fields(factory), f"{place}." if place else ""
    for key, value in given.items():
        if key not in known:
            raise SettingError("", before + key, value, f"unknown key; {choices(known, key)}")
    try:
        model = _model(factory)(**given)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        wanted = phrase(known[key][0], given.get(key))
        if first["type"] == "missing":
            remedy = "; ".join(filter(None, ("is missing", wanted)))
            raise SettingError("", before + key, None, remedy) from None
        raise SettingError("", before + key, given[key], wanted or first["msg"].lower()) from None
    checked = {name: getattr(model, _alias(name)) for name in known}
    return {name: value for name, value in checked.items() if value is not None}


@cache
def _model(factory: Callable[..., Any]) -> type[BaseModel]:
    """The pydantic model of a factory's settings."""
    from pydantic import Field

    specs: Any = {
        _alias(name): (hint, Field(default, alias=name))
        for name, (hint, default) in fields(factory).items()
    }
    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True
    )
    return create_model("settings", __config__=model_config, **specs)


def _alias(name: str) -> str:
    """The field name in the pydantic model. pydantic reserves names such as `copy` and `json`."""
    return f"setting_{name}"


def phrase(hint: Any, value: Any = None) -> str:
    """Says in words which values a setting may have.

    Args:
      hint: the annotation of the setting.
      value: a wrong value, for which the nearest choice is suggested; None: no suggestion.

    Returns:
      "must be" with type and range; empty if anything is allowed.
    """
    said = " or ".join(filter(None, (_phrase(part, value) for part in _options(hint))))
    texts = [c for part in _options(hint) for c in get_args(part) if isinstance(c, str)]
    near = nearest(texts, value) if isinstance(value, str) else ""
    return f"must be {said}{near}" if said else ""


def kind_of(hint: Any) -> str:
    """The noun for the type of a setting.

    Args:
      hint: the annotation of the setting.

    Returns:
      The noun, such as "a whole number"; empty for a list of choices.
    """
    nouns = ((int, "a whole number"), (float, "a number"), (str, "a text"), (bool, "true or false"))
    for kind, noun in nouns:
        if hint is kind or (get_origin(hint) is Annotated and get_args(hint)[0] is kind):
            return noun
    if hint == LayerTable:
        return 'a table of layers such as {"0-2" = "dense(10)"}'
    if get_origin(hint) is list:
        entry = get_args(hint)[0]
        return f"a list, each entry {kind_of(entry)} {allowed(entry)}".strip()
    return " or ".join(filter(None, map(kind_of, _options(hint)))) if _is_union(hint) else ""


def _phrase(hint: Any, value: Any) -> str:
    """The type and the range of a setting that is not a union."""
    kind = kind_of(hint)
    if kind == "a number" and isinstance(value, float) and not math.isfinite(value):
        kind = "a finite number"
    return " ".join(filter(None, (kind, allowed(hint, value))))


def _options(hint: Any) -> list[Any]:
    """The members of a union without None, because TOML has no None."""
    return [p for p in get_args(hint) if p is not NoneType] if _is_union(hint) else [hint]


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, UnionType)
