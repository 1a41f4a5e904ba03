"""Reads a finished run back from its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bpeq.config.errors import ConfigError
from bpeq.config.loading import Config, load_config
from bpeq.config.problem import Problem, build
from bpeq.core import trees
from bpeq.data import Dataset
from bpeq.experiment import resume
from bpeq.runs import run_folder
from bpeq.types import Key, Layer, LearningRule, Params


class LoadedRun(NamedTuple):
    """A finished run, ready to use: `rule.apply(params, x)` gives its outputs.

    Args:
      params: the weights of one seed.
      all_params: the weights of every seed, seeds on axis 0 of each leaf.
      rule: the learning rule.
      network: the network; None without [network].
      data: the data set.
      config: the checked config.
      summary: the content of summary.json.
    """

    params: Params
    all_params: Params
    rule: LearningRule
    network: Layer | None
    data: Dataset
    config: Config
    summary: dict[str, Any]


def load_run(folder: Path | str, seed: int = 0) -> LoadedRun:
    """Loads parameters, rule, data and config of a finished run.

    Args:
      folder: the run folder that `bpeq run` wrote.
      seed: the seed whose parameters `params` holds, from 0.

    Returns:
      The loaded run.

    Raises:
      DataError: the folder holds no finished run, or its files are damaged.
      ConfigError: the config of the run cannot be built.
      ValueError: the run has no such seed.
    """
    folder = Path(folder)
    summary = resume.read_summary(folder)
    config = load_config(folder / "config.toml")
    problem = build(config)
    seeds = config.seeds
    if not 0 <= seed < seeds:
        raise ValueError(f"load_run: seed = {seed}: the run has seeds 0 to {seeds - 1}")
    with jax.enable_x64(config.double):
        everyone = saved_params(folder, problem, seeds)
        params = jax.tree.map(lambda leaf: leaf[seed], everyone)
    return LoadedRun(params, everyone, problem.rule, problem.network, problem.data, config, summary)


def weights_like(folder: Path, params: Params, whose: str) -> Params:
    """Loads the first seed's weights of a run and checks that they fit a config.

    Args:
      folder: the run folder.
      params: the parameters of the config, for the shapes.
      whose: what the parameters belong to, in words for an error message.

    Returns:
      The weights, in the default floating-point type in force.

    Raises:
      ConfigError: the folder does not exist, or its weights have other shapes.
      DataError: the folder holds no finished run, or its files are damaged.
    """
    if not folder.is_dir():
        raise ConfigError(f"--run = {folder}", remedy="must be the folder of a finished run")
    dtype = jnp.result_type(float)
    loaded = load_run(folder).params
    if jax.tree.map(jnp.shape, loaded) != jax.tree.map(jnp.shape, params):
        raise ConfigError(f"--run = {folder}", remedy=f"its parameters do not fit {whose}")
    with jax.enable_x64(True):  # a float32 config can then cast float64 weights
        return trees.cast(loaded, dtype)


def saved_params(folder: Path, problem: Problem, seeds: int) -> Params:
    """Reads every seed's weights of a run, in the precision in force.

    Args:
      folder: the run folder.
      problem: the built parts of the config.
      seeds: the number of seeds of the run.

    Returns:
      The weights, seeds on axis 0 of each leaf.

    Raises:
      DataError: the file is absent or corrupt, or belongs to another network.
    """

    def first(key: Key) -> Params:
        return problem.rule.init(key, problem.init(key))[0]

    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    template = jax.eval_shape(jax.vmap(first), keys)
    return jax.tree.map(
        jnp.asarray, run_folder.load_arrays(folder / "params.safetensors", template)
    )
