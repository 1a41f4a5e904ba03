"""Errors in a user's own parts: one line with the user's file and line number."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

from bpeq.config.errors import ConfigError, describe_error
from bpeq.config.parts import Part
from bpeq.types import DataError

EXPECTED = (ConfigError, DataError, MemoryError)
"""Errors whose message already names the cause. They are raised unchanged."""


Wording = Callable[[str, Any, str], ConfigError]
"""The type of `Config.error`: (key, value, remedy) -> the error."""


def guard_functions(word: Wording, part: Part, made: Any) -> Any:
    """Wraps each function that a user's factory returned, so that its errors name the part.

    An error in such a function becomes a ConfigError for the part's key.

    Args:
      word: `config.error`, which makes the error for a key.
      part: the user's part.
      made: what the factory returned: a function, or a NamedTuple of functions such as a Layer.

    Returns:
      The same with wrapped functions. Other values are returned unchanged.
    """
    if inspect.isfunction(made):
        return _guard(word, part, made)
    if not hasattr(made, "_replace"):
        return made
    changed = {}
    for name, value in made._asdict().items():
        if inspect.isfunction(value) or (hasattr(value, "_fields") and name != "parts"):
            changed[name] = guard_functions(word, part, value)
    return made._replace(**changed)


def _guard(word: Wording, part: Part, function: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps one function, so that its errors name the part."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except EXPECTED:
            raise
        except Exception as error:
            raise user_error(word, part, error) from error

    return call


def user_error(word: Wording, part: Part, error: Exception) -> ConfigError:
    """Makes the error for a user's part, with the innermost line of the user's code.

    Args:
      word: `config.error`, which makes the error for a key.
      part: the user's part.
      error: the exception of the user's code.

    Returns:
      The error.
    """
    return word(part.key, part.name, describe_error(error, _files(part)))


def _files(part: Part) -> frozenset[str]:
    """The files of the module in the dotted path and of the factory's code."""
    module = sys.modules[part.name.partition(":")[0]]
    code = getattr(inspect.unwrap(part.factory), "__code__", None)
    found = (getattr(module, "__file__", None), getattr(code, "co_filename", None))
    return frozenset(filter(None, found))
