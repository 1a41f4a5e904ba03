"""The runs of a sweep: one for each combination of a grid, named by a checksum of its settings."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from bpeq.config.loading import Config, ConfigError
from bpeq.config.overrides import read_pair
from bpeq.config.problem import build
from bpeq.experiment.distributed import device_mesh
from bpeq.experiment.saved_run import identity

Grid = dict[str, list[str]]
"""Key of a setting -> the texts of its values, in the form of `--set`."""
_RANGE = re.compile(r"(?P<low>[^.].*?)\.\.(?P<high>[^:]+)(?P<log>:log)?")


class SweepRun(NamedTuple):
    """One run of a sweep.

    Args:
      name: the name of the run folder, a checksum of all settings.
      settings: the values of the varied settings, by key.
      config: the whole config of the run.
    """

    name: str
    settings: dict[str, Any]
    config: Config

    @property
    def label(self) -> str:
        """The varied settings, for a progress bar or a message."""
        return ", ".join(f"{key} = {value}" for key, value in self.settings.items())


def read_grids(texts: Sequence[str]) -> Grid:
    """Reads the `--grid` options, each `KEY=VALUE,VALUE,…`.

    Args:
      texts: the options. A comma inside brackets or quotes belongs to the value.

    Returns:
      The texts of the values of each key.

    Raises:
      ConfigError: there is no text, or one has another form or names a key or a value twice.

    Example:
      >>> read_grids(["network.layers.0=dense(4, bias=false),dense(8)"])
      {'network.layers.0': ['dense(4, bias=false)', 'dense(8)']}
    """
    grid: Grid = {}
    if not texts:
        remedy = "is missing; allowed: key=value,value such as rule.beta=0.1,0.2"
        raise ConfigError("--grid", remedy=remedy)
    for text in texts:
        key, sign, listed = (part.strip() for part in text.partition("="))
        values = _split_values(listed)
        if not sign or not key or not all(values):
            raise ConfigError(f"--grid {text}: must be key=value,value such as rule.beta=0.1,0.2")
        if key in grid:
            raise ConfigError(f"--grid {key} = {listed}: is there twice; give all values in one")
        parsed = {str(read_pair(f"{key}={value}")[1]) for value in values}
        if len(parsed) < len(values):
            raise ConfigError(f"--grid {key} = {listed}: must be different values")
        grid[key] = values
    return grid


def read_range(key: str, texts: Sequence[str]) -> list[str] | tuple[float, float, bool]:
    """Reads the values of one key of a grid.

    Args:
      key: the key, for error messages.
      texts: several values, or one text `LOW..HIGH` or `LOW..HIGH:log`.

    Returns:
      The texts to choose from, or (low, high, log) for a range.

    Raises:
      ConfigError: the ends of the range are not numbers, or LOW is not below HIGH, or a logarithmic
        range does not start above 0.

    Example:
      >>> read_range("rule.beta", ["0.01..1:log"]), read_range("seed", ["1", "2"])
      ((0.01, 1.0, True), ['1', '2'])
    """
    match = _RANGE.fullmatch(texts[0]) if len(texts) == 1 else None
    if match is None:
        return list(texts)
    log, ends = match["log"] is not None, (match["low"], match["high"])
    try:
        low, high = (int(e) if all(map(str.isdecimal, ends)) else float(e) for e in ends)
    except ValueError:
        low = high = 0.0
    if not low < high or (log and low <= 0):
        remedy = "must be LOW..HIGH with LOW < HIGH, and LOW > 0 before :log"
        raise ConfigError(f"--grid {key} = {texts[0]}: {remedy}")
    return low, high, log


def grid_runs(config: Config, grid: Grid) -> list[SweepRun]:
    """Makes every run of a grid. The last key varies fastest.

    Args:
      config: the config. The grid takes precedence over its `--set`.
      grid: the texts of the values of each key.

    Returns:
      The runs.

    Raises:
      ConfigError: the config does not allow a key or a value.
    """
    combinations = itertools.product(*grid.values())
    return [sweep_run(config, dict(zip(grid, values, strict=True))) for values in combinations]


def sweep_run(config: Config, chosen: dict[str, str]) -> SweepRun:
    """Makes the run with one value for each key.

    Args:
      config: the config that the sweep varies.
      chosen: the text of one value for each key of the grid.

    Returns:
      The run.

    Raises:
      ConfigError: a setting is wrong. The message names `--grid` if the value comes from the grid.
    """
    pairs = [f"{key}={value}" for key, value in chosen.items()]
    with _blame_grid(chosen):
        config = config.override(*pairs)
    return SweepRun(identity(config)["config"][:12], dict(map(read_pair, pairs)), config)


def check_runs(runs: Sequence[SweepRun]) -> None:
    """Builds the parts of every run, so that errors appear before training.

    Runs with equal data share one data set.

    Args:
      runs: all runs of the sweep.

    Raises:
      ConfigError: two runs are the same, or parts do not fit.
      DataError: the data are at fault.
    """
    datasets: dict[str, Any] = {}
    names: dict[str, SweepRun] = {}
    for run in runs:
        if run.name in names:
            same = names[run.name].label
            raise ConfigError(f"--grid: {run.label} and {same} are the same run")
        names[run.name] = run
        if run.config.experiment is None:
            key = json.dumps([run.config.data.as_dict(), run.config.precision])
            with _blame_grid(run.settings):
                datasets[key] = build(run.config, datasets.get(key)).data
                device_mesh(run.config)


@contextmanager
def _blame_grid(keys: Iterable[str]) -> Iterator[None]:
    """Turns an error of `--set` into one of `--grid` if its key is one of the grid."""
    try:
        yield
    except ConfigError as error:
        if error.place != "--set" or not any(f"{error.setting}.".startswith(f"{k}.") for k in keys):
            raise
        raise ConfigError("--grid", error.setting, error.value, error.remedy) from None


def _split_values(listed: str) -> list[str]:
    """Splits at the commas outside brackets and quotes."""
    values: list[str] = []
    open_ended = False
    for part in listed.split(","):
        values = [*values[:-1], f"{values[-1]},{part}"] if open_ended else [*values, part]
        bare = re.sub(r"'[^']*'|\"[^\"]*\"", "", values[-1])
        brackets = sum(bare.count(left) for left in "([{") - sum(bare.count(r) for r in ")]}")
        open_ended = brackets > 0 or "'" in bare or '"' in bare
    return [value.strip() for value in values]
