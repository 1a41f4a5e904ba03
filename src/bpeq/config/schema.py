"""Reads the settings of a factory from its signature, and validates values against it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from bpeq.config.registry import Unreadable, choices, read_annotations
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
    hints = read_annotations(factory)
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
    for name, hint in read_annotations(factory).items():
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
    hints, settings = read_annotations(factory), {}
    for name, parameter in inspect.signature(factory).parameters.items():
        variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if name not in wires(factory) and not variadic:
            default = ... if parameter.default is parameter.empty else parameter.default
            hint = LayerTable if name in layer_tables(factory) else hints.get(name, Any)
            settings[name] = (hint, default)
    return settings


def validate(
    factory: Callable[..., Any],
    values: Mapping[str, Any],
    place: str,
    skip: int = 0,
    beside: Sequence[str] = (),
) -> dict[str, Any]:
    """Checks the settings of a factory and fills in the defaults.

    Args:
      factory: the factory.
      values: the settings by name.
      place: the key of the section. It begins the keys in error messages; empty at the top level.
      skip: the number of leading arguments that are no settings, such as 2 of a study's
        `run(config, runner, *, ...)`.
      beside: other keys that the section may have. They are not in `values`; error messages list
        them as allowed.

    Returns:
      The settings. A setting is absent if its value is None, or a default that TOML cannot hold.

    Raises:
      SettingError: the first setting that is unknown, missing, of the wrong type or out of range;
        or a needed setting has an annotation that cannot be read.
    """
    known = dict(list(fields(factory).items())[skip:])
    before = f"{place}." if place else ""
    for key, value in values.items():
        if key not in known:
            allowed = choices([*known, *beside], key)
            raise SettingError("", before + key, value, f"unknown key; {allowed}")
    settings = {}
    for key, (hint, default) in known.items():
        settings[key] = values.get(key, default)
        if isinstance(hint, Unreadable) and (key in values or default is ...):
            remedy = f"its annotation cannot be read: {hint.reason}"
            raise SettingError("", before + key, values.get(key), remedy)
        if settings[key] is ...:
            remedy = "; ".join(filter(None, ("is missing", phrase(hint))))
            raise SettingError("", before + key, None, remedy)
        if key in values:
            try:
                settings[key] = _model(factory, key)(value=values[key]).value  # type: ignore[attr-defined]
            except ValidationError as error:
                remedy = phrase(hint, values[key]) or error.errors()[0]["msg"].lower()
                raise SettingError("", before + key, values[key], remedy) from None
    return {key: value for key, value in settings.items() if key in values or fits_toml(value)}


def fits_toml(value: Any) -> bool:
    """Whether TOML can hold a value: a number, a text, true or false, a list or a table of these.

    Args:
      value: the value; a tuple counts as a list.

    Returns:
      False for None, functions, types and other objects.
    """
    if isinstance(value, list | tuple):
        return all(map(fits_toml, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and fits_toml(each) for key, each in value.items())
    return isinstance(value, bool | int | float | str)


@cache
def _model(factory: Callable[..., Any], key: str) -> type[BaseModel]:
    """The pydantic model of one setting."""
    strict = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
    return create_model("setting", __config__=strict, value=(fields(factory)[key][0], ...))
