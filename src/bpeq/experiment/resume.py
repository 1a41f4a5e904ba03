"""Starts or resumes a run: it checks config and data, and records the environment."""

from __future__ import annotations

import hashlib
import json
import subprocess
import tomllib
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import tomli_w

from bpeq.config.errors import ConfigError
from bpeq.config.loading import Config, load_config
from bpeq.runs import checkpoints, run_folder
from bpeq.types import Caution, DataError

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
    if not (resume and path.exists() and path.read_text() == text):
        run_folder.write_text(path, text)
    path = folder / "environment.json"
    if resume and path.exists():
        before = _environment(path)
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
        **revision(config.path.parent),
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
        theirs = tomllib.loads((folder / "config.toml").read_text())
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


def is_finished(folder: Path) -> bool:
    """Checks whether the run in a folder is finished.

    Args:
      folder: the run folder.

    Returns:
      True if the folder holds summary.json.
    """
    return (folder / "summary.json").exists()


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
    name = _environment(path).get("name") if path.exists() else None
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
        tree["data"]["path"] = str(Path(tree["data"]["path"]).resolve())
    return tree


def revision(folder: Path) -> dict[str, str]:
    """Reads the git revision of the repository that contains a folder.

    Args:
      folder: any folder.

    Returns:
      `{"git_revision": hash}`, or an empty dict without a repository.
    """
    try:
        command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"git_revision": done.stdout.strip()}


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


def _environment(path: Path) -> dict[str, Any]:
    found = run_folder.read_json(path)
    if not isinstance(found, dict):
        raise DataError(f"{path}: is damaged: it is no object")
    return found


def _study(config: Config) -> str | None:
    path = config.experiment
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else None
