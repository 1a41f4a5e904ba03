"""A run in its folder: it starts or resumes there, and a finished run is read back."""

from __future__ import annotations

import hashlib
import json
import subprocess
import tomllib
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import tomli_w

from bpeq.config.errors import ConfigError
from bpeq.config.loading import Config, load_config
from bpeq.config.problem import Problem, build
from bpeq.core import trees
from bpeq.core.paths import user_path
from bpeq.data import Dataset
from bpeq.runs import checkpoints, manifest, run_folder
from bpeq.types import Caution, DataError, Key, Layer, LearningRule, Params

HARMLESS = ("checkpoint_share", "training.unsettled")
"""Settings that do not change what a run computes. They may differ when a run resumes."""


def start_folder(config: Config, folder: Path, resume: bool, checksum: str = "") -> dict[str, Any]:
    """Writes config.toml and environment.json into the locked folder of a run.

    A resumed run keeps its environment.json. Of its config only harmless settings may change.

    Args:
      config: the config to run.
      folder: the run folder.
      resume: whether the folder may already hold the run.
      checksum: the checksum of the data; empty if a study makes its own data.

    Returns:
      The environment.

    Raises:
      DataError: the run started with other data.
    """
    path, text = folder / "config.toml", tomli_w.dumps(as_written(config))
    if not (resume and path.exists() and path.read_text(encoding="utf-8") == text):
        run_folder.write_text(path, text)
    path = folder / "environment.json"
    if resume and path.exists():
        before = run_folder.read_json(path)
        if before.get("data_checksum", "") != checksum:
            raise DataError(f"{folder}: the data are not those that its run began with")
        if before.get("study_sha256") != _study(config):
            message = f"{config.experiment}: has changed since the run in {folder} began"
            warnings.warn(message, Caution, stacklevel=2)
        return before
    environment = {
        **run_folder.environment(),
        "name": config.name,
        "seed": config.seed,
        "seeds": config.seeds,
        **({"data_checksum": checksum} if checksum else {}),
        **({"study_sha256": _study(config)} if config.experiment else {}),
        **({"processes": jax.process_count()} if jax.process_count() > 1 else {}),
        **_revision(config.path.parent),
    }
    run_folder.write_json(path, environment)
    return environment


def has_started(config: Config, folder: Path) -> bool:
    """Checks whether a folder holds a run that this config can resume.

    Args:
      config: the config to run.
      folder: the run folder.

    Returns:
      True if the folder holds a run of this config; False if it is empty or absent.

    Raises:
      ConfigError: the folder holds a run of another config. The error names the first different
        key.
      FileExistsError: the folder holds something else.
      DataError: the config in the folder cannot be read, or its `checkpoints` is not a folder.
    """
    if not (folder / "config.toml").exists():
        run_folder.refuse_if_used(folder)
        return False
    try:
        theirs = tomllib.loads((folder / "config.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{folder / 'config.toml'}: cannot read: {error}") from error
    kept = folder / checkpoints.FOLDER
    if kept.exists() and not kept.is_dir():
        raise DataError(f"{kept}: must be a folder; its run cannot go on")
    ours = flatten(tomllib.loads(tomli_w.dumps(as_written(config))))
    old = flatten(theirs)
    for key in [*ours, *old]:
        if key not in HARMLESS and ours.get(key) != old.get(key):
            had = f"{old[key]!r}" if key in old else "no such setting"
            raise config.error(
                key,
                ours.get(key),
                f"the run in {folder} has {had}; go on with its own config, or name a new folder",
            )
    return True


def is_finished(folder: Path, page: str = "") -> bool:
    """Checks whether the run in a folder is finished, with its summary and its manifest.

    Args:
      folder: the run folder.
      page: a report that the folder must also hold, and the manifest list; empty: none.

    Returns:
      True if the run is finished.

    Raises:
      DataError: the manifest cannot be read.
    """
    files = (folder / "summary.json", folder / page)
    return all(file.exists() for file in files) and manifest.has_manifest(folder, page)


def read_summary(folder: Path) -> dict[str, Any]:
    """Reads the summary of a finished run.

    Args:
      folder: the run folder.

    Returns:
      The content of summary.json.

    Raises:
      DataError: the file cannot be read, or it lacks its metrics or seconds.
    """
    return run_folder.read_json(folder / "summary.json", "metrics", "seconds")


def reload_config(folder: Path, overrides: list[str] | None = None) -> Config:
    """Loads the config of the run in a folder, with the name that the run had.

    Args:
      folder: the run folder.
      overrides: `key=value` texts of `--set`; None: no overrides.

    Returns:
      The checked config.

    Raises:
      ConfigError: the folder holds no run.
      DataError: environment.json is damaged.
    """
    if not (folder / "config.toml").is_file():
        raise ConfigError(str(folder), remedy="holds no run")
    config = load_config(folder / "config.toml", overrides or ())
    path = folder / "environment.json"
    name = run_folder.read_json(path).get("name") if path.exists() else None
    return replace(config, name=name) if isinstance(name, str) else config


def identity(config: Config) -> dict[str, Any]:
    """Computes the values that must be equal when a run resumes.

    Args:
      config: the config of the run.

    Returns:
      `config`, a SHA-256 checksum of all settings except the harmless ones, and `seed` and `seeds`.
    """
    settings = flatten(as_written(config))
    kept = {key: value for key, value in settings.items() if key not in HARMLESS}
    text = json.dumps(kept, sort_keys=True, default=str)
    return {
        "config": hashlib.sha256(text.encode()).hexdigest(),
        "seed": config.seed,
        "seeds": config.seeds,
    }


def as_written(config: Config) -> dict[str, Any]:
    """The resolved config as it is written into a run folder.

    Args:
      config: the config.

    Returns:
      All settings. The path of the data file is absolute, so that the config loads from any folder.
    """
    tree = config.as_dict()
    if "path" in tree.get("data", {}):
        tree["data"]["path"] = str(user_path(tree["data"]["path"]).resolve())
    return tree


def flatten(tree: Any, place: str = "") -> dict[str, Any]:
    """Turns nested settings into one dict with dotted keys. Lists stay whole.

    Args:
      tree: nested dicts of settings.
      place: the key of `tree`; empty at the top.

    Returns:
      Dotted key -> value.
    """
    if not isinstance(tree, dict):
        return {place: tree}
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flatten(value, f"{place}.{key}".lstrip("."))
    return found


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
    folder = user_path(folder)
    summary = read_summary(folder)
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


def _revision(folder: Path) -> dict[str, str]:
    """The git revision of the repository that contains a folder; empty without a repository."""
    try:
        command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"git_revision": done.stdout.strip()}


def _study(config: Config) -> str | None:
    path = config.experiment
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else None
