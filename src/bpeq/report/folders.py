"""The configuration, the environment and the name of a result's folder, for its page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bpeq.runs.results import Holder, Result, read, read_text


def config_text(folder: Path, result: Holder) -> str:
    """The configuration of a result.

    Args:
      folder: the folder of the result.
      result: the result.

    Returns:
      The text of config.toml, else the result's `config` as JSON, else an empty text.

    Raises:
      DataError: config.toml cannot be read.
    """
    if (folder / "config.toml").exists():
        return read_text(folder / "config.toml").strip()
    return json.dumps(result.config, indent=2, ensure_ascii=False) if result.config else ""


def environment_of(folder: Path, result: Holder) -> dict[str, Any]:
    """The environment of a result.

    Args:
      folder: the folder of the result.
      result: the result.

    Returns:
      The content of environment.json, else the result's `environment`.

    Raises:
      DataError: environment.json cannot be read.
    """
    path = folder / "environment.json"
    if not path.exists():
        return result.environment
    return read(Result, path).model_dump()


def name_of(folder: Path, result: Holder) -> str:
    """The name of a result, else the name of its folder.

    Args:
      folder: the folder of the result.
      result: the result.

    Returns:
      The name.
    """
    return result.name or folder.resolve().name


def title_of(result: Holder, name: str | None = None) -> str:
    """The title of a result, such as "digits · eqprop · 5 seeds".

    Args:
      result: the result. Unknown parts are left out.
      name: the first part of the title; None: the result's name.

    Returns:
      The title.
    """
    parts: Sequence[Any] = (
        result.name if name is None else name,
        result.rule,
        plural(result.seeds, "seed") if isinstance(result.seeds, int) else result.seeds,
    )
    return " · ".join(str(part) for part in parts if part)


def plural(number: int, noun: str) -> str:
    """A number with its noun, such as "1 seed" or "5 seeds".

    Args:
      number: the number.
      noun: the singular of the noun.

    Returns:
      The text.
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
