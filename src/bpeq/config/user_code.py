"""A user's own parts: what fails inside them is one error, with their file and line."""

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
"""Errors that already say what is wrong; they pass as they are."""


Wording = Callable[[str, Any, str], ConfigError]
"""`Config.error`: the error for a key, its value and a remedy."""


def guard_functions(word: Wording, part: Part, made: Any) -> Any:
    """What a user's factory gives, each of its functions replaced by one that names the part.

    An error from such a function becomes a ConfigError of the part's key.

    Args:
      word: `config.error`.
      part: the user's part.
      made: what its factory gave: a function, or a tuple of functions such as a Layer.
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
    """The error of a user's part, with the innermost line of their code."""
    return word(part.key, part.name, describe_error(error, _files(part)))


def _files(part: Part) -> frozenset[str]:
    """The module that a dotted path names, and the one that its factory comes from."""
    module = sys.modules[part.name.partition(":")[0]]
    code = getattr(inspect.unwrap(part.factory), "__code__", None)
    found = (getattr(module, "__file__", None), getattr(code, "co_filename", None))
    return frozenset(filter(None, found))
