"""Builds one part of a config: calls its factory with its settings and the parts it needs.

An error in a user's own part is one line with the user's file and line number.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from bpeq.config import registry
from bpeq.config.errors import ConfigError, describe_error
from bpeq.config.parts import Part
from bpeq.settings import SettingError
from bpeq.types import DataError

EXPECTED = (ConfigError, DataError, MemoryError)
"""Errors whose message already names the cause. They are raised unchanged."""


Wording = Callable[[str, Any, str], ConfigError]
"""The type of `Config.error`: (key, value, remedy) -> the error."""


@contextmanager
def reworded(
    kind: type[BaseException] | tuple[type[BaseException], ...],
    reword: Callable[[Any], Exception],
) -> Iterator[None]:
    """Turns an error of the block into another one. Errors of `EXPECTED` are raised unchanged.

    Args:
      kind: the type of error, or several types. For a user's code it is BaseException, so that a
        `sys.exit` in it does not end bpeq.
      reword: makes the new error from it.
    """
    try:
        yield
    except EXPECTED:
        raise
    except kind as error:
        raise reword(error) from error


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
        built = part.factory(*several, **arguments)
    except EXPECTED:
        raise
    except ValueError as error:
        raise part_error(word, part, error) from error
    except BaseException as error:  # a user's code may also call sys.exit
        if not part.is_users_own:
            raise
        if part.kind == "data" and isinstance(error, OSError):
            raise DataError(str(word(part.key, part.name, str(error)))) from error
        raise user_error(word, part, error) from error
    if not isinstance(built, registry.WORDS[part.kind]):
        kinds = " or a ".join(kind.__name__ for kind in registry.WORDS[part.kind])
        remedy = f"gives a {type(built).__name__}; it must give a {kinds}"
        raise word(part.key, part.name, remedy)
    return guard_functions(word, part, built) if part.is_users_own else built


def part_error(word: Wording, part: Part, error: Exception) -> ConfigError:
    """Makes the error for an error of a part. It names the setting if the error names one.

    Args:
      word: `config.error`, which makes the error for a key.
      part: the part.
      error: the error of the part's factory, or of a function that the factory returned.

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


def guard_functions(word: Wording, part: Part, built: Any) -> Any:
    """Wraps each function that a user's factory returned, so that its errors name the part.

    An error in such a function becomes a ConfigError for the part's key.

    Args:
      word: `config.error`, which makes the error for a key.
      part: the user's part.
      built: what the factory returned: a function, or a NamedTuple of functions such as a Layer.

    Returns:
      The same with wrapped functions. Other values are returned unchanged.
    """
    if inspect.isfunction(built):

        @functools.wraps(built)
        def call(*args: Any, **kwargs: Any) -> Any:
            with reworded(BaseException, functools.partial(user_error, word, part)):
                return built(*args, **kwargs)

        return call
    if not hasattr(built, "_replace"):
        return built
    changed = {}
    for name, value in built._asdict().items():
        if inspect.isfunction(value) or (hasattr(value, "_fields") and name != "parts"):
            changed[name] = guard_functions(word, part, value)
    return built._replace(**changed)


def user_error(word: Wording, part: Part, error: BaseException) -> ConfigError:
    """Makes the error for a user's part, with the innermost line of the user's code.

    Args:
      word: `config.error`, which makes the error for a key.
      part: the user's part.
      error: the exception of the user's code.

    Returns:
      The error.
    """
    # The user's files are that of the module in the dotted path and that of the factory's code.
    module = sys.modules[part.name.partition(":")[0]]
    code = getattr(inspect.unwrap(part.factory), "__code__", None)
    files = (getattr(module, "__file__", None), getattr(code, "co_filename", None))
    return word(part.key, part.name, describe_error(error, frozenset(filter(None, files))))
