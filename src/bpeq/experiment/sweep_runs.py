"""The runs of a sweep: a grid's combinations, each named by what it computes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bpeq.config.loading import Config, ConfigError, load
from bpeq.config.overrides import read_pair
from bpeq.config.problem import build
from bpeq.experiment import resume
from bpeq.experiment.distributed import shared_by

Grid = dict[str, list[str]]
"""A setting's key -> the texts of its values, as `--set` takes them."""


class Cell(NamedTuple):
    """One run of a sweep: a checksum of all that it computes, what of that varies, its config."""

    name: str
    settings: dict[str, Any]
    config: Config

    @property
    def said(self) -> str:
        return ", ".join(f"{k} = {v}" for k, v in self.settings.items())


def read_grids(texts: Sequence[str]) -> Grid:
    """`KEY=VALUE,VALUE,…` of each `--grid`; commas inside of brackets and quotes are the value's.

    Raises:
      ConfigError: one is something else, or names a key or a value twice.
    """
    grid: Grid = {}
    for text in texts:
        key, sign, listed = (part.strip() for part in text.partition("="))
        values = _split(listed)
        if not sign or not key or not all(values):
            raise ConfigError(f"--grid {text}: must be key=value,value such as rule.beta=0.1,0.2")
        if key in grid:
            raise ConfigError(f"--grid {key} = {listed}: is there twice; give all values in one")
        parsed = [str(read_pair(f"{key}={value}")[1]) for value in values]
        if len(set(parsed)) < len(parsed):
            raise ConfigError(f"--grid {key} = {listed}: must be different values")
        grid[key] = values
    return grid


def cells(path: Path, overrides: Sequence[str], grid: Grid) -> list[Cell]:
    """Every run of a grid, the last key varying fastest.

    Raises:
      ConfigError: a key or a value that the config does not allow.
    """
    return [
        cell(path, overrides, dict(zip(grid, values, strict=True)))
        for values in itertools.product(*grid.values())
    ]


def cell(path: Path, overrides: Sequence[str], chosen: dict[str, str]) -> Cell:
    """The run with these settings. Raises ConfigError, which names --grid where it is at fault."""
    pairs = [f"{key}={value}" for key, value in chosen.items()]
    try:
        config = load(path, [*overrides, *pairs])
    except ConfigError as error:
        raise _named(error, chosen) from None
    name = resume.identity(config)["config"][:12]
    return Cell(
        name, {key: read_pair(pair)[1] for key, pair in zip(chosen, pairs, strict=True)}, config
    )


def check(found: Sequence[Cell]) -> None:
    """Builds every run's parts, of one data set where they have the same, and counts devices.

    Raises:
      ConfigError: two runs are the same, or parts do not fit. DataError: the data are at fault.
    """
    known: dict[str, Any] = {}
    names: dict[str, Cell] = {}
    for each in found:
        if each.name in names:
            raise ConfigError(f"--grid: {each.said} and {names[each.name].said} are the same run")
        names[each.name] = each
        if "experiment" not in each.config.tree:
            data = json.dumps([each.config.tree.get("data"), each.config.tree["precision"]])
            try:
                known[data] = build(each.config, known.get(data)).data
                shared_by(each.config)
            except ConfigError as error:
                raise _named(error, each.settings) from None


def _named(error: ConfigError, chosen: dict[str, Any]) -> ConfigError:
    """The error as one of --grid, where it is of one of its settings."""
    said = str(error).removeprefix("--set ")
    key = said.partition(" ")[0].rstrip(":")
    theirs = str(error) != said and any(f"{key}.".startswith(f"{k}.") for k in chosen)
    return ConfigError(f"--grid {said}") if theirs else error


def _split(listed: str) -> list[str]:
    """At commas that stand in no brackets and no quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in listed:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        depth += (letter in "([{") - (letter in ")]}") if not quote else 0
        if letter == "," and not quote and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]
