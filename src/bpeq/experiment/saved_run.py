"""A finished run, read back from its folder and ready to use."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bpeq.config.errors import ConfigError
from bpeq.config.loading import Config, load_config
from bpeq.config.problem import Problem, build
from bpeq.core import trees
from bpeq.core.compat import enable_x64
from bpeq.data import Dataset
from bpeq.experiment import resume
from bpeq.runs import run_folder
from bpeq.types import Key, Layer, LearningRule, Params


class LoadedRun(NamedTuple):
    """A finished run, ready to use: `rule.apply(params, x)` gives its outputs.

    params: one seed's weights. all_params: every seed's, seeds on axis 0 of each leaf.
    config: the checked config. data: its data set. summary: the run's summary.json.
    """

    params: Params
    all_params: Params
    rule: LearningRule
    network: Layer | None
    data: Dataset
    config: Config
    summary: dict[str, Any]


def load_run(folder: Path | str, seed: int = 0) -> LoadedRun:
    """Parameters, rule, data and config of a finished run.

    Args:
      folder: what `bpeq run` left behind.
      seed: whose parameters, counted from 0.

    Raises:
      DataError: the folder holds no finished run, or its files are damaged.
      ValueError: the run had fewer seeds.
    """
    folder = Path(folder)
    summary = resume.read_summary(folder)
    config = load_config(folder / "config.toml")
    problem = build(config)
    seeds = config.seeds
    if not 0 <= seed < seeds:
        raise ValueError(f"load_run: seed = {seed}: the run has seeds 0 to {seeds - 1}")
    with enable_x64(config.double):
        everyone = saved_params(folder, problem, seeds)
        params = jax.tree.map(lambda leaf: leaf[seed], everyone)
    return LoadedRun(params, everyone, problem.rule, problem.network, problem.data, config, summary)


def weights_like(folder: Path, params: Params, whose: str) -> Params:
    """The first seed's weights of a run that is looked at under a config, in the dtype in force.

    Args:
      params: what the config has; whose: the words for it in an error.

    Raises:
      ConfigError: no folder, or the weights of another network. DataError: as `load_run`.
    """
    if not folder.is_dir():
        raise ConfigError("--run", "", str(folder), "must be the folder of a finished run")
    dtype = jnp.result_type(float)
    loaded = load_run(folder).params
    if jax.tree.map(jnp.shape, loaded) != jax.tree.map(jnp.shape, params):
        raise ConfigError("--run", "", str(folder), f"its parameters do not fit {whose}")
    with enable_x64(True):  # or float64 weights could not be touched where the config's is 32
        return trees.cast(loaded, dtype)


def saved_params(folder: Path, problem: Problem, seeds: int) -> Params:
    """Every seed's weights of a run, seeds on axis 0 of each leaf, in the precision in force.

    Raises:
      DataError: the file is absent, corrupt, or of another network.
    """

    def first(key: Key) -> Params:
        return problem.rule.init(key, problem.init(key))[0]

    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    template = jax.eval_shape(jax.vmap(first), keys)
    return jax.tree.map(
        jnp.asarray, run_folder.load_arrays(folder / "params.safetensors", template)
    )
