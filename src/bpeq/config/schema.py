"""Reads the settings of a factory from its signature, and validates values against it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from bpeq.config.registry import choices
from bpeq.settings import LayerTable, SettingError, phrase
from bpeq.types import Cost, Layer, LearningRule, Solver, System

WORDS = (Layer, Cost, System, Solver, LearningRule)


@cache
def wires(factory: Callable[..., Any]) -> dict[str, type]:
    """Finds the arguments that are other parts of the config.

    Args:
      factory: the factory.

    Returns:
      Argument -> its type, such as Layer or Cost.
    """
    hints = get_type_hints(factory)
    wired: dict[str, type] = {}
    for name in inspect.signature(factory).parameters:
        options = (hints.get(name), *get_args(hints.get(name)))
        word = next((word for word in WORDS if word in options), None)
        if word is not None and name not in layer_tables(factory):
            wired[name] = word
    return wired


@cache
def layer_tables(factory: Callable[..., Any]) -> tuple[str, ...]:
    """Finds the settings that map keys to layers, such as hopfield's `skips`.

    Args:
      factory: the factory.

    Returns:
      The names of the arguments.
    """
    names = []
    for name, hint in get_type_hints(factory).items():
        for option in (hint, *get_args(hint)):
            if get_origin(option) in (dict, Mapping) and get_args(option)[1] is Layer:
                names.append(name)
    return tuple(names)


@cache
def fields(factory: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """Finds the settings of a factory, with their annotations and defaults.

    Args:
      factory: the factory.

    Returns:
      Name -> (annotation, default). The default is `...` if a value is required.
    """
    hints, settings = get_type_hints(factory, include_extras=True), {}
    for name, parameter in inspect.signature(factory).parameters.items():
        variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if name not in wires(factory) and not variadic:
            default = ... if parameter.default is parameter.empty else parameter.default
            hint = LayerTable if name in layer_tables(factory) else hints.get(name, Any)
            settings[name] = (hint, default)
    return settings


def validate(
    factory: Callable[..., Any], values: Mapping[str, Any], place: str, skip: int = 0
) -> dict[str, Any]:
    """Checks the settings of a factory and fills in the defaults.

    Args:
      factory: the factory.
      values: the settings by name.
      place: the key of the section. It begins the keys in error messages; empty at the top level.
      skip: the number of leading arguments that are no settings, such as 2 of a study's
        `run(config, runner, *, ...)`.

    Returns:
      The settings. A setting whose value is None is absent.

    Raises:
      SettingError: the first setting that is unknown, missing, of the wrong type or out of range.
    """
    known = dict(list(fields(factory).items())[skip:])
    before = f"{place}." if place else ""
    for key, value in values.items():
        if key not in known:
            raise SettingError("", before + key, value, f"unknown key; {choices(known, key)}")
    settings = {}
    for key, (hint, default) in known.items():
        settings[key] = values.get(key, default)
        if settings[key] is ...:
            remedy = "; ".join(filter(None, ("is missing", phrase(hint))))
            raise SettingError("", before + key, None, remedy)
        if key in values:
            try:
                settings[key] = _model(factory, key)(value=values[key]).value  # type: ignore[attr-defined]
            except ValidationError as error:
                remedy = phrase(hint, values[key]) or error.errors()[0]["msg"].lower()
                raise SettingError("", before + key, values[key], remedy) from None
    return {key: value for key, value in settings.items() if value is not None}


@cache
def _model(factory: Callable[..., Any], key: str) -> type[BaseModel]:
    """The pydantic model of one setting."""
    strict = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
    return create_model("setting", __config__=strict, value=(fields(factory)[key][0], ...))
