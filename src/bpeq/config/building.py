"""Builds one part of a config: calls its factory with its settings and the parts it needs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from bpeq.config import registry
from bpeq.config.errors import ConfigError
from bpeq.config.parts import Part
from bpeq.config.user_code import EXPECTED, Wording, guard_functions, user_error
from bpeq.settings import SettingError
from bpeq.types import DataError


def build_part(word: Wording, part: Part, wired: Mapping[str, Any]) -> Any:
    """Calls the factory of a part with its settings. Layers inside the part are built first.

    Args:
      word: `config.error`, which makes the error for a key.
      part: the part.
      wired: the other arguments of the factory by name, such as the network of a rule.

    Returns:
      What the factory returns, such as a Layer or a LearningRule. The functions of a user's own
      part are wrapped, so that an error inside them names the part.

    Raises:
      ConfigError: the factory refuses a setting, or returns the wrong type.
      DataError: the data are at fault.
    """
    parameters = inspect.signature(part.factory).parameters
    arguments: dict[str, Any] = dict(wired)
    several: Sequence[Any] = ()
    for key in (key for key in parameters if key in part.settings):
        value = part.settings[key]
        if isinstance(value, dict) and all(isinstance(v, Part) for v in value.values()):
            value = {name: build_part(word, layer, {}) for name, layer in value.items()}
        elif isinstance(value, Part):
            value = build_part(word, value, {})
        if parameters[key].kind is inspect.Parameter.VAR_POSITIONAL:
            several = [build_part(word, layer, {}) for layer in value]
        else:
            arguments[key] = value
    try:
        inspect.signature(part.factory).bind(*several, **arguments)
    except TypeError as error:
        raise word(part.key, part.name, str(error)) from error
    try:
        made = part.factory(*several, **arguments)
    except EXPECTED:
        raise
    except ValueError as error:
        raise part_error(word, part, error) from error
    except Exception as error:
        if not part.is_users_own:
            raise
        if part.kind == "data" and isinstance(error, OSError):
            raise DataError(str(word(part.key, part.name, str(error)))) from error
        raise user_error(word, part, error) from error
    if not isinstance(made, registry.WORDS[part.kind]):
        wanted = " or a ".join(kind.__name__ for kind in registry.WORDS[part.kind])
        remedy = f"gives a {type(made).__name__}; it must give a {wanted}"
        raise word(part.key, part.name, remedy)
    return guard_functions(word, part, made) if part.is_users_own else made


def part_error(word: Wording, part: Part, error: ValueError) -> ConfigError:
    """Makes the error for a ValueError of a part. It names the setting if the ValueError names one.

    Args:
      word: `config.error`, which makes the error for a key.
      part: the part.
      error: the ValueError of the part's factory, or of a function that the factory returned.

    Returns:
      The error.
    """
    if isinstance(error, SettingError):
        first, _, rest = error.setting.partition(".")
        if first in part.settings:
            key, value = f"{part.place}.{first}", part.settings[first]
            if isinstance(value, dict):  # one layer of a table of them
                entry = rest or str(error.value)
                key, value = f"{key}.{entry}", getattr(value.get(entry), "name", None)
            return word(key, value, error.remedy)
    return word(part.key, part.name, str(error))
