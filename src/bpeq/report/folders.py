"""What a page shows of a result's folder beside its figures: configuration and environment."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bpeq.runs.results import Holder, Result, read, read_text


def config_text(folder: Path, result: Holder) -> str:
    """The text of config.toml, else the result's `config`, else nothing."""
    if (folder / "config.toml").exists():
        return read_text(folder / "config.toml").strip()
    return json.dumps(result.config, indent=2, ensure_ascii=False) if result.config else ""


def environment_of(folder: Path, result: Holder) -> dict[str, Any]:
    """What environment.json holds, else the result's `environment`."""
    path = folder / "environment.json"
    if not path.exists():
        return result.environment
    return read(Result, path).model_dump()


def name_of(folder: Path, result: Holder) -> str:
    """The result's name, else that of its folder."""
    return result.name or folder.resolve().name


def title_of(result: Holder, name: str | None = None) -> str:
    """ "digits · eqprop · 5 seeds", of those that are known; `name` in place of the result's."""
    parts: Sequence[Any] = (
        result.name if name is None else name,
        result.rule,
        plural(result.seeds, "seed") if isinstance(result.seeds, int) else result.seeds,
    )
    return " · ".join(str(part) for part in parts if part)


def plural(number: int, noun: str) -> str:
    """ "1 seed", "5 seeds"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
