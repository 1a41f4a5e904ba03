"""Sweeps: many runs of one config, each named by what it computes, shared by any workers.

A folder of run folders is all there is: whoever starts the same sweep on it takes what nobody has.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from bpeq.config.loading import Config, ConfigError
from bpeq.experiment import resume, train
from bpeq.experiment.sweep_runs import Cell, Grid
from bpeq.runs import lock, manifest, run_folder
from bpeq.types import DataError

CLAIMS, LOG = ".claims", "sweep.log"
_WAIT = 0.5
"""Seconds between two looks at runs that other workers have."""

Progress = Callable[[int, int, dict[str, Any]], None]


def claim(folder: Path) -> None:
    """Makes a sweep's folder, or takes part in the one that is there.

    Raises:
      FileExistsError: it holds something else. DataError: it cannot be made or written to.
    """
    try:
        if not (folder / CLAIMS).is_dir():
            run_folder.claim(folder)
    except FileExistsError:  # or another worker has made it between these two lines
        if not (folder / CLAIMS).is_dir():
            raise
    try:
        (folder / CLAIMS).mkdir(exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot write there: {error.strerror}") from error


def work(
    found: Sequence[Cell],
    folder: Path,
    progress: Progress | None = None,
    stop: Callable[[], int | None] = lambda: None,
) -> None:
    """Runs whatever nobody has run and nobody is running, until all have ended.

    A run that a dead worker left is taken up where its last checkpoint is. One that fails is put on
    record and lost; the others go on. A record of failure is removed by deleting it.

    Raises:
      DataError: the disk is at fault, which other runs would meet too. Interrupted: after saving.
    """
    claim(folder)
    left = list(found)
    while left:
        busy = []
        for each in left:
            done = len([c for c in found if ended(folder, c)])
            with _claimed(folder, each) as mine:
                report = _part(progress, each, done, len(found))
                if not mine or not (ended(folder, each) or _run(each, folder, report, stop)):
                    busy.append(each)
        left = busy
        if busy:
            done = len([c for c in found if ended(folder, c)])
            _show(progress, done, len(found), f"waiting for {len(busy)} that others run")
            if (signal := stop()) is not None:
                raise train.Interrupted(signal, f"stopped, {done} of {len(found)} runs done")
            time.sleep(_WAIT)
    _show(progress, len(found), len(found), "")


def ended(folder: Path, each: Cell) -> bool:
    """Whether a run came to its end, or is on record as failed."""
    place = folder / each.name
    return (resume.finished(place) and manifest.sealed(place)) or failure(folder, each) is not None


def failure(folder: Path, each: Cell) -> dict[str, Any] | None:
    """The record of a run that failed: `code`, the exit code, and `said`.

    Raises:
      DataError: it is damaged.
    """
    path = folder / f"{each.name}.failed.json"
    if not path.exists():
        return None
    found = run_folder.read_json(path)
    if type(found.get("code")) is not int or not isinstance(found.get("said"), str):
        raise DataError(f"{path}: is damaged: it has no code and what was said")
    return found


def result(config: Config, found: Sequence[Cell], grid: Grid, folder: Path) -> dict[str, Any]:
    """What sweep.json holds, as far as runs have ended."""
    rows = []
    for each in found:
        row: dict[str, Any] = {"run": each.name, "settings": each.settings, "state": "waiting"}
        failed = failure(folder, each)
        if failed is not None:
            row |= {"state": "failed", "failed": failed["said"], "code": failed["code"]}
        elif ended(folder, each):
            summary = resume.summary(folder / each.name)
            row |= {"state": "finished", "metrics": summary["metrics"]}
            row["seconds"] = summary["seconds"]
        rows.append(row)
    return {
        "name": config.name,
        "rule": config.tree["rule"]["name"],
        "seeds": config.tree["seeds"],
        "grid": grid,
        "runs": rows,
    }


def _run(each: Cell, folder: Path, progress: Any, stop: Any) -> bool:
    """One run, from where it stands; how it ended goes to the log, and a failure on record.

    False where a process outside of the sweep writes into its folder: then nothing is done.
    """
    place = folder / each.name
    try:
        lock.refuse_if_locked(place)
    except lock.Locked:
        return False
    _log(folder, each, "resumed" if (place / "config.toml").exists() else "started")
    try:
        train.run(each.config, place, progress, stop, resume=True)
    except train.Interrupted as error:
        _log(folder, each, "stopped", str(error))
        raise
    except DataError as error:
        if isinstance(error.__cause__, OSError):  # the disk, which other runs would meet too
            _log(folder, each, "stopped", str(error))
            raise
        _fail(folder, each, 3, str(error))
    except (train.Diverged, ConfigError, FileExistsError) as error:
        code = 4 if isinstance(error, train.Diverged) else 2
        _fail(folder, each, code, str(error))
    except Exception as error:  # a part of the user's own, memory, a bug: this run's, not all runs'
        _fail(folder, each, 1, f"{type(error).__name__}: {error}")
    else:
        _log(folder, each, "finished")
    jax.clear_caches()  # of programs that no other run can use
    return True


def _fail(folder: Path, each: Cell, code: int, said: str) -> None:
    said = " ".join(said.split())
    run_folder.write_json(folder / f"{each.name}.failed.json", {"code": code, "said": said})
    _log(folder, each, "failed", said)


def _log(folder: Path, each: Cell, event: str, said: str = "") -> None:
    """One line in one write, whoever else writes there."""
    worker = f"{socket.gethostname()}:{os.getpid()}"
    row = {"time": time.time(), "run": each.name, "event": event, "worker": worker, "said": said}
    try:
        with (folder / LOG).open("a") as file:
            file.write(json.dumps(row) + "\n")
    except OSError as error:
        raise DataError(f"{folder / LOG}: cannot write: {error.strerror or error}") from error


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """While one worker writes what the sweep shows so far, the others wait for their turn."""
    with _locked(folder / CLAIMS / "shown", fcntl.LOCK_EX):
        yield


@contextmanager
def _claimed(folder: Path, each: Cell) -> Iterator[bool]:
    """Whether a run is this worker's; the system lets go of a claim when its process ends."""
    with _locked(folder / CLAIMS / each.name, fcntl.LOCK_EX | fcntl.LOCK_NB) as mine:
        yield mine


@contextmanager
def _locked(path: Path, how: int) -> Iterator[bool]:
    try:
        file = path.open("a")
    except OSError as error:
        raise DataError(f"{path.parent}: cannot write: {error.strerror or error}") from error
    with file:
        mine = True
        try:
            fcntl.flock(file, how)
        except BlockingIOError:
            mine = False
        except OSError as error:  # without locks two workers would write into one run
            said = f"cannot lock, which a sweep's workers need: {error.strerror or error}"
            raise DataError(f"{path}: {said}") from error
        yield mine


def _part(progress: Progress | None, each: Cell, done: int, total: int) -> Progress | None:
    def report(turns: int, of: int, row: dict[str, Any]) -> None:
        _show(progress, done, total, f"{each.said} {turns}/{of}")

    return None if progress is None else report


def _show(progress: Progress | None, done: int, total: int, said: str) -> None:
    if progress is not None:
        progress(done, total, {"said": said})
