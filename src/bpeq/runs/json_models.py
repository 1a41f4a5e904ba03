"""The types that all models of result files share, and the one-line error for a damaged file."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from bpeq.types import DataError

T = TypeVar("T")


def to_number(value: Any) -> float:
    """Converts a JSON number to a float; null becomes NaN.

    Args:
      value: the value.

    Returns:
      The float.

    Raises:
      ValueError: the value is not a number.
    """
    if value is None:
        return math.nan
    if isinstance(value, int | float) or value in ("NaN", "Infinity", "-Infinity"):
        try:
            return float(value)
        except OverflowError:
            return math.copysign(math.inf, value)
    raise ValueError(f"must be a number, not {shorten(value)}")


def to_numbers(value: Any) -> list[float]:
    """Converts a JSON list of numbers; a single number becomes a list of one.

    Args:
      value: the list or the number.

    Returns:
      The floats.

    Raises:
      ValueError: an entry is not a number.
    """
    return [to_number(item) for item in (value if isinstance(value, list) else [value])]


Number = Annotated[float, BeforeValidator(to_number)]
"""A number; null is NaN."""
MaybeNumber = Annotated[
    float | None,
    BeforeValidator(lambda v: None if v is None else to_number(v)),
]
"""A number; null means that it is unknown."""
Text = Annotated[str, BeforeValidator(lambda v: "" if v is None else str(v))]
Items = Annotated[list[T], BeforeValidator(lambda v: [] if v is None else v)]
Objects = Annotated[dict[str, T], BeforeValidator(lambda v: {} if v is None else v)]
Values = Annotated[list[float], BeforeValidator(to_numbers)]
"""Numbers, one for each seed; a single number is a list of one."""


class Result(BaseModel):
    """The base of all models. It keeps unknown keys."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    @classmethod
    def parse(cls, value: Any, where: str = "") -> Self:
        """Converts a value of JSON to a typed result.

        Args:
          value: the parsed JSON, or a result, which is returned unchanged.
          where: the file, and its line if it has several. Error messages begin with it; empty:
            nothing.

        Returns:
          The result.

        Raises:
          DataError: a key is missing or a value has the wrong type. The message names the key.
        """
        before = f"{where}: " if where else ""
        if not isinstance(value, dict | cls):
            raise DataError(f"{before}must be a JSON object, not {shorten(value)}")
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise DataError(before + _explain(error)) from error

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads one result file.

        Args:
          path: the file.

        Returns:
          The result.

        Raises:
          DataError: the file is absent or damaged. The message names file and key.
        """
        return cls.parse(read_object(read_text(path), f"{path}"), f"{path}")


class Holder(Result):
    """The keys that every result file has."""

    name: Text = ""
    rule: Text = ""
    seeds: Any = None
    config: Any = None
    environment: Objects[Any] = {}
    data: Any = None
    notes: Items[Text] = []


def read_text(path: Path) -> str:
    """Reads the text of a file.

    Args:
      path: the file.

    Returns:
      The text.

    Raises:
      DataError: the file is absent or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def read_object(text: str, where: str) -> Any:
    """Parses a JSON text.

    Args:
      text: the text.
      where: the file, for error messages.

    Returns:
      The parsed value.

    Raises:
      DataError: the text is not JSON.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f" in line {error.lineno}" if error.lineno > 1 else ""
        raise DataError(
            f"{where}: no valid JSON, truncated or corrupt: {error.msg}{line}"
        ) from error
    except (RecursionError, ValueError) as error:  # nested too deeply, or too long a number
        raise DataError(f"{where}: no valid JSON: {error}") from error


def _explain(error: ValidationError) -> str:
    """Describes the first validation error, such as "key.key: must be a number, not 'x'"."""
    first = error.errors(include_url=False)[0]
    key = " ".join(".".join(map(str, first["loc"])).split())
    kinds = {"missing": "is missing", "list_type": "must be a list"}
    kinds |= dict.fromkeys(("model_type", "dict_type"), "must be an object, not ")
    message = kinds.get(first["type"]) or str(first.get("ctx", {}).get("error") or first["msg"])
    if message.endswith("not "):
        message += shorten(first["input"])
    inner = message.partition(": ")[0]  # a validator of several keys names the key itself
    joint = "." if inner.replace(".", "").replace("_", "").isalnum() and ": " in message else ": "
    return f"{key}{joint}{message}" if key else message


def shorten(value: Any) -> str:
    """Shortens a value for a message.

    Args:
      value: the value.

    Returns:
      Its text, on one line of at most 40 characters.
    """
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
