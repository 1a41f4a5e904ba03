"""A run that starts or resumes: same config, same data, and a record of its environment."""

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
"""Settings that change nothing in what a run computes, and may differ where it goes on."""


def start_folder(config: Config, folder: Path, resume: bool, checksum: str = "") -> dict[str, Any]:
    """Writes config.toml and environment.json into a run's folder, which is locked.

    A run that resumes keeps its environment, and its config except for harmless settings.

    Args:
      config: what is to be run.
      folder: of the run.
      resume: whether the folder may hold the run already.
      checksum: of the data; empty if a study makes its own.

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
    """Whether a folder holds a run that this config can resume; False if it is empty or absent.

    Raises:
      ConfigError: it holds the run of another config; the error names the first key that differs.
      FileExistsError: it holds something else. DataError: its config cannot be read, or its
        checkpoints are no folder.
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
    """Whether the run in a folder is finished."""
    return (folder / "summary.json").exists()


def read_summary(folder: Path) -> dict[str, Any]:
    """A finished run's summary. Raises DataError where it cannot be read or lacks its figures."""
    return run_folder.read_json(folder / "summary.json", "metrics", "seconds")


def reload_config(folder: Path, overrides: list[str] | None = None) -> Config:
    """The config of the run in a folder, under the name that it had.

    Raises:
      ConfigError: the folder holds no run.
    """
    if not (folder / "config.toml").is_file():
        raise ConfigError(str(folder), remedy="holds no run")
    config = load_config(folder / "config.toml", overrides or ())
    path = folder / "environment.json"
    name = _environment(path).get("name") if path.exists() else None
    return replace(config, name=name) if isinstance(name, str) else config


def identity(config: Config) -> dict[str, Any]:
    """What must be the same if a run resumes: a checksum of its settings, and its seeds."""
    settings = flatten(as_written(config))
    kept = {key: value for key, value in settings.items() if key not in HARMLESS}
    text = json.dumps(kept, sort_keys=True, default=str)
    return {
        "config": hashlib.sha256(text.encode()).hexdigest(),
        "seed": config.seed,
        "seeds": config.seeds,
    }


def as_written(config: Config) -> dict[str, Any]:
    """The resolved config, its data file by its whole path, so that it loads from anywhere."""
    tree = config.as_dict()
    if "path" in tree.get("data", {}):
        tree["data"]["path"] = str(Path(tree["data"]["path"]).resolve())
    return tree


def revision(folder: Path) -> dict[str, str]:
    """`{"git_revision": …}` of the repository that a folder is in; nothing where there is none."""
    try:
        command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"git_revision": done.stdout.strip()}


def flatten(tree: Any, place: str = "") -> dict[str, Any]:
    """Settings by their dotted keys; lists whole."""
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
