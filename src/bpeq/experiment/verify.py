"""Verifies a finished run: the checksums of its files, and a repeat of the run."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bpeq.config.errors import ConfigError
from bpeq.experiment import resume, train
from bpeq.experiment.runner import Interrupted, Progress
from bpeq.runs import manifest, run_folder
from bpeq.runs.checkpoints import FOLDER
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
    if not folder.is_dir() or not (manifest.has_manifest(folder) or resume.is_finished(folder)):
        begun = (folder / "config.toml").exists()
        how = f"its run is not finished: bpeq run {folder} --resume" if begun else "holds no run"
        raise ConfigError(str(folder), remedy=how)
    if not manifest.has_manifest(folder):
        raise DataError(f"{folder / manifest.NAME}: is missing: nothing vouches for the files")
    if faults := manifest.changed_files(folder):
        said = ", ".join(f"{name} {why}" for name, why in faults.items())
        raise DataError(f"{folder}: is not as its run left it: {said}")
    if files_only:
        return []
    _check_readable(folder)
    _tell_environment(folder)
    with tempfile.TemporaryDirectory(prefix="bpeq-verify-") as place:
        again = Path(place) / "again"
        try:
            train.run(resume.reload_config(folder), again, progress, stop)
        except Interrupted as error:
            said = f"{folder}: was not verified: the repeat was stopped; the folder is as it was"
            raise Interrupted(error.signal, said) from error
        return list(_compare(folder, again))


def _check_readable(folder: Path) -> None:
    """Reads all files of the comparison, so that a damaged file is an error before the repeat."""
    resume.read_summary(folder)
    for path in folder.rglob("metrics.jsonl"):
        _read_rows(path)
    for path in (p for p in folder.rglob("*.safetensors") if p.parent.name != FOLDER):
        run_folder.read_arrays(path)


def _tell_environment(folder: Path) -> None:
    """Warns if this environment differs from that of the run."""
    said = run_folder.differences(
        run_folder.read_json(folder / "environment.json"), run_folder.environment()
    )
    if said:
        warnings.warn(
            f"{folder}: was run elsewhere, bits may differ: {said}", Caution, stacklevel=3
        )


def _compare(folder: Path, again: Path) -> Iterator[Finding]:
    for name, compare in (("metrics.jsonl", _rows), ("*.safetensors", _params)):
        for path in sorted(p for p in again.rglob(name) if p.parent.name != FOLDER):
            inside = path.relative_to(again)
            yield Finding(str(inside), *compare(folder / inside, path))
    ours, theirs = (resume.read_summary(each)["metrics"] for each in (folder, again))
    ours, theirs = ({k: v for k, v in m.items() if "seconds" not in k} for m in (ours, theirs))
    yield Finding("summary.json", f"{len(ours)} metrics", _first(ours, theirs))


def _rows(path: Path, again: Path) -> tuple[str, str]:
    ours, theirs = (_read_rows(each) for each in (path, again))
    compared = f"{len(ours)} rows"
    for number, pair in enumerate(zip(ours, theirs, strict=False), start=1):
        if said := _first(*pair):
            return compared, f"row {number}: {said}"
    more = "" if len(ours) == len(theirs) else f"{len(theirs)} rows in the repeat"
    return compared, more


def _read_rows(path: Path) -> list[dict[str, Any]]:
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot read: {error}") from error
    flat = (resume.flatten(row) for row in rows)
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in flat]


def _params(path: Path, again: Path) -> tuple[str, str]:
    ours, theirs = (run_folder.read_arrays(each) for each in (path, again))
    compared = f"{len(ours)} leaves"
    if set(ours) != set(theirs):
        return compared, f"other leaves: {', '.join(sorted(set(ours) ^ set(theirs)))}"
    for name, array in ours.items():
        other = theirs[name]
        if (array.dtype, array.shape) != (other.dtype, other.shape):
            return compared, f"{name}: another shape or dtype"
        differ = np.frombuffer(array.tobytes(), np.uint8) != np.frombuffer(
            other.tobytes(), np.uint8
        )
        if differ.any():
            apart = int(differ.reshape(array.size, -1).any(axis=1).sum())
            return compared, f"{name}: {apart} of {array.size} numbers differ"
    return compared, ""


def _first(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    for key in [*ours, *theirs]:
        if ours.get(key) != theirs.get(key):
            return f"{key} is {ours.get(key)}, {theirs.get(key)} in the repeat"
    return ""
