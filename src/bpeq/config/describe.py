"""The text of `bpeq show`: names, settings with their ranges, docstrings, configs."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bpeq.config.errors import ConfigError
from bpeq.config.loading import load_config
from bpeq.config.registry import KINDS, choices, resolve
from bpeq.config.schema import fields, wires
from bpeq.settings import phrase


def describe(what: str, name: str = "", overrides: Sequence[str] = ()) -> str:
    """Describes a kind of part, one factory, or a config.

    Args:
      what: a kind such as "rules" lists its factories; its singular, such as "rule", describes one;
        "config" prints a resolved config.
      name: the name or the dotted path of the factory, or the path of the config; empty: list all.
      overrides: `key=value` texts of `--set`, for a config.

    Returns:
      The text.

    Raises:
      ConfigError: there is no such kind, name or config.
    """
    if what == "config":
        import tomli_w

        if not name:
            remedy = "needs a file, such as bpeq show config configs/xor.toml"
            raise ConfigError("show config", remedy=remedy)
        return tomli_w.dumps(load_config(Path(name), overrides).as_dict()).rstrip()
    singular = {kind.removesuffix("s"): kind for kind in KINDS} | {"data": "data"}
    kind = singular.get(what, what)
    if kind not in KINDS:
        remedy = choices({**KINDS, **singular, "config": ""}, what)
        raise ConfigError(f"show {what}", remedy=remedy)
    if not name:
        return "\n".join(f"{each:25} {_first_line(KINDS[kind][each])}" for each in KINDS[kind])
    try:
        return _one(name, resolve(kind, name))
    except ValueError as error:
        raise ConfigError(f"show {what} {name}", remedy=str(error)) from error


def _one(name: str, factory: Any) -> str:
    lines = [name]
    for key, (hint, default) in fields(factory).items():
        need = "required" if default is ... else f"default {default!r}"
        lines.append(f"  {key:14} {phrase(hint).removeprefix('must be ')}, {need}")
    if wires(factory):
        parts = ", ".join(f"{key} ({word.__name__})" for key, word in wires(factory).items())
        lines.append(f"  wired from the rest of the config: {parts}")
    return "\n".join([*lines, "", inspect.getdoc(factory) or ""]).rstrip()


def _first_line(factory: Any) -> str:
    return (inspect.getdoc(factory) or "").split("\n")[0]
