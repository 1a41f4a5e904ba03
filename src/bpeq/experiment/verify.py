"""Verifies a finished run: the checksums of its files, and a repeat of the run."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bpeq.config.errors import ConfigError
from bpeq.core.paths import user_path
from bpeq.experiment import saved_run, train
from bpeq.experiment.runner import Interrupted, Progress
from bpeq.runs import manifest, run_folder
from bpeq.runs.checkpoints import FOLDER
from bpeq.runs.resume import resume_command
from bpeq.types import Caution, DataError


class Finding(NamedTuple):
    """The comparison of one file with the same file of the repeat.

    Args:
      file: the path of the file inside the run folder.
      compared: the number of compared rows, leaves or metrics, in words.
      difference: the first difference; empty if there is none.
    """

    file: str
    compared: str
    difference: str


def verify(
    folder: Path,
    progress: Progress | None = None,
    stop: Callable[[], int | None] = lambda: None,
    *,
    files_only: bool = False,
) -> list[Finding]:
    """Checks a finished run's files against manifest.json, then repeats it and compares every bit.

    The repeat uses the run's config.toml and a temporary folder. The comparison covers the rows of
    metrics.jsonl, the metrics of the summary, and all parameters, also for runs inside the run.
    Names that contain `seconds` are left out.

    Args:
      folder: the run folder.
      progress: called after each row of the repeat; None: progress is not reported.
      stop: returns the number of a signal that asks to stop, else None. It is called after every
        row. The default never stops.
      files_only: the run is not repeated. The list of findings is then empty.

    Returns:
      One finding for each compared file.

    Raises:
      ConfigError: the folder holds no finished run.
      DataError: a file was changed or is missing.
      Interrupted: `stop` returned a signal. The run folder is unchanged.
    """
    folder = user_path(folder)
    summary = folder / "summary.json"
    if not manifest.has_manifest(folder) and not summary.exists():
        begun = (folder / "config.toml").exists()
        how = "holds no run"
        if begun:
            how = f"its run is not finished: {resume_command(folder)}"
        raise ConfigError(str(folder), remedy=how)
    if not manifest.has_manifest(folder):
        raise DataError(f"{folder / manifest.NAME}: is missing: nothing vouches for the files")
    if faults := manifest.changed_files(folder):
        words = ", ".join(f"{name} {why}" for name, why in faults.items())
        raise DataError(f"{folder}: is not as its run left it: {words}")
    if files_only:
        return []
    # Read everything first, so that a damaged file is an error before the repeat.
    contents = _contents(folder)
    then = run_folder.read_json(folder / "environment.json")
    if changes := run_folder.differences(then, run_folder.environment()):
        message = f"{folder}: was run elsewhere, bits may differ: {changes}"
        warnings.warn(message, Caution, stacklevel=2)
    with tempfile.TemporaryDirectory(prefix="bpeq-verify-") as place:
        again = Path(place) / "again"
        try:
            train.run(saved_run.reload_config(folder), again, progress, stop)
        except Interrupted as error:
            message = f"{folder}: was not verified: the repeat was stopped; the folder is as it was"
            raise Interrupted(error.signal, message) from error
        repeated = _contents(again)
    return [
        Finding(name, *_compare(name, contents.get(name), theirs))
        for name, theirs in repeated.items()
    ]


def _contents(folder: Path) -> dict[str, Any]:
    """Reads what a repeat must give again, by file: rows, arrays and metrics, without seconds."""
    contents: dict[str, Any] = {}
    for path in sorted(p for p in folder.rglob("*") if p.parent.name != FOLDER):
        name = path.relative_to(folder).as_posix()
        if path.name == "metrics.jsonl":
            contents[name] = [_without_seconds(row) for row in _read_rows(path)]
        elif path.suffix == ".safetensors":
            contents[name] = run_folder.read_arrays(path)
    contents["summary.json"] = _without_seconds(saved_run.read_summary(folder)["metrics"])
    return contents


def _read_rows(path: Path) -> list[dict[str, Any]]:
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot read: {error}") from error
    return [saved_run.flatten(row) for row in rows]


def _without_seconds(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if "seconds" not in key}


def _compare(name: str, ours: Any, theirs: Any) -> tuple[str, str]:
    """What was compared, in words, and the first difference; empty if there is none."""
    if ours is None:
        return "", "is missing in the run"
    if name.endswith("metrics.jsonl"):
        pairs = enumerate(zip(ours, theirs, strict=False), start=1)
        faults = [f"row {number}: {fault}" for number, pair in pairs if (fault := _differ(*pair))]
        if len(ours) != len(theirs):
            faults.append(f"{len(theirs)} rows in the repeat")
        return f"{len(ours)} rows", next(iter(faults), "")
    if name == "summary.json":
        return f"{len(ours)} metrics", _differ(ours, theirs)
    compared = f"{len(ours)} leaves"
    if set(ours) != set(theirs):
        return compared, f"other leaves: {', '.join(sorted(set(ours) ^ set(theirs)))}"
    for leaf, array in ours.items():
        other = theirs[leaf]
        if (array.dtype, array.shape) != (other.dtype, other.shape):
            return compared, f"{leaf}: another shape or dtype"
        bits = [np.frombuffer(each.tobytes(), np.uint8) for each in (array, other)]
        differ = bits[0] != bits[1]
        if differ.any():
            apart = differ.reshape(array.size, -1).any(axis=1).sum()
            return compared, f"{leaf}: {apart} of {array.size} numbers differ"
    return compared, ""


def _differ(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    for key in [*ours, *theirs]:
        if ours.get(key) != theirs.get(key):
            return f"{key} is {ours.get(key)}, {theirs.get(key)} in the repeat"
    return ""
