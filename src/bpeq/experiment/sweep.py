"""Sweeps: many runs of one config in one folder, shared by any number of workers.

The folder holds all state of the sweep. A worker is a process that runs the same sweep in this
folder. It takes only runs that no other worker has taken.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from bpeq.config.errors import exit_code
from bpeq.config.loading import Config
from bpeq.experiment import saved_run, train
from bpeq.experiment.runner import Progress, silent
from bpeq.experiment.sweep_grid import Grid, SweepRun
from bpeq.runs import lock, run_folder
from bpeq.types import DataError

CLAIMS, LOG = ".claims", "sweep.log"
_WAIT = 0.5
"""Seconds between two attempts to take runs that other workers hold."""


def open_folder(folder: Path) -> None:
    """Creates the folder of a sweep, or joins the sweep in it.

    Args:
      folder: a new or empty folder, or the folder of a sweep.

    Raises:
      FileExistsError: the folder holds something else.
      DataError: the folder cannot be created or written.
    """
    claims = folder / CLAIMS
    try:
        if not claims.is_dir():
            run_folder.create_folder(folder)
    except FileExistsError:
        if not claims.is_dir():  # another worker may have created it meanwhile
            raise
    try:
        claims.mkdir(exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot write there: {error.strerror}") from error


def run_all(
    runs: Sequence[SweepRun],
    folder: Path,
    progress: Progress = silent,
    stop: Callable[[], int | None] = lambda: None,
) -> None:
    """Runs all runs that no other worker takes, and waits until every run has ended.

    If a worker died, its run continues from the last checkpoint. A run that fails leaves a record,
    `NAME.failed.json`, and the other runs continue. Delete the record to run it again.

    Args:
      runs: all runs of the sweep.
      folder: the folder of the sweep.
      progress: called with the number of ended runs, the number of all runs, and a label. The
        default shows nothing.
      stop: returns the number of a signal that asks to stop, else None. The default never stops.

    Raises:
      DataError: the disk fails. Every other run would fail too.
      Interrupted: `stop` returned a signal. The current run saves first.
    """
    open_folder(folder)

    def show(pending: int, label: str) -> None:
        progress(len(runs) - pending, len(runs), {"said": label})

    pending = [run for run in runs if not has_ended(folder, run)]
    while pending:
        busy: list[SweepRun] = []
        for i, run in enumerate(pending):
            left = len(busy) + len(pending) - i

            def report(turn: int, turns: int, row: Any, run: Any = run, left: int = left) -> None:
                show(left, f"{run.label} {turn}/{turns}")

            with lock.lock_file(folder / CLAIMS / run.name) as mine:
                # Another worker may have finished the run meanwhile.
                if not mine or not (has_ended(folder, run) or _run(run, folder, report, stop)):
                    busy.append(run)
        pending = busy
        if pending:
            show(len(pending), f"waiting for {len(pending)} that others run")
            if (signal := stop()) is not None:
                done = len(runs) - len(pending)
                raise train.Interrupted(signal, f"stopped, {done} of {len(runs)} runs done")
            time.sleep(_WAIT)
    show(0, "")


def has_ended(folder: Path, run: SweepRun) -> bool:
    """Whether a run has finished or failed.

    Args:
      folder: the folder of the sweep.
      run: the run.

    Returns:
      True if the run folder has summary.json and manifest.json, or if a failure record exists.
    """
    return saved_run.is_finished(folder / run.name) or failure(folder, run) is not None


def failure(folder: Path, run: SweepRun) -> dict[str, Any] | None:
    """Reads the record of a failed run.

    Args:
      folder: the folder of the sweep.
      run: the run.

    Returns:
      `code`, the exit code, and `said`, the message; None if there is no record.

    Raises:
      DataError: the record is damaged.
    """
    path = _record(folder, run)
    if not path.exists():
        return None
    record = run_folder.read_json(path)
    if type(record.get("code")) is not int or not isinstance(record.get("said"), str):
        raise DataError(f"{path}: is damaged: it has no code and what was said")
    return record


def results(config: Config, runs: Sequence[SweepRun], grid: Grid, folder: Path) -> dict[str, Any]:
    """Collects the content of sweep.json: settings, state and metrics of every run.

    Args:
      config: the config that the sweep varies.
      runs: the runs, in the order of the rows.
      grid: the texts of the values of each key.
      folder: the folder of the sweep.

    Returns:
      The content of sweep.json. A run that has not ended has the state "waiting".

    Raises:
      DataError: a summary or a failure record is damaged.
    """
    rows = []
    for run in runs:
        row: dict[str, Any] = {"run": run.name, "settings": run.settings, "state": "waiting"}
        if (record := failure(folder, run)) is not None:
            row |= {"state": "failed", "failed": record["said"], "code": record["code"]}
        elif has_ended(folder, run):
            summary = saved_run.read_summary(folder / run.name)
            row |= {"state": "finished"} | {key: summary[key] for key in ("metrics", "seconds")}
        rows.append(row)
    about = {"name": config.name, "rule": config.rule.name, "seeds": config.seeds}
    return {**about, "grid": grid, "runs": rows}


@contextmanager
def one_writer(folder: Path) -> Iterator[None]:
    """Lets one worker at a time write the sweep's results; the others wait.

    Args:
      folder: the folder of the sweep.
    """
    with lock.lock_file(folder / CLAIMS / "shown", wait=True):
        yield


def _run(run: SweepRun, folder: Path, progress: Progress, stop: Callable[[], int | None]) -> bool:
    """Starts or resumes one run, and logs how it ended. A failure also leaves a record.

    Returns:
      False if a process outside the sweep writes into the run folder. Then nothing was done.
    """
    place = folder / run.name
    try:
        lock.refuse_if_locked(place)
    except lock.Locked:
        return False
    _log(folder, run, "resumed" if (place / "config.toml").exists() else "started")
    try:
        train.run(run.config, place, progress, stop, resume=True)
    except Exception as error:
        message = " ".join(str(error).split())
        disk = isinstance(error, DataError) and isinstance(error.__cause__, OSError)
        if disk or isinstance(error, train.Interrupted):  # these end the whole sweep
            _log(folder, run, "stopped", message)
            raise
        code = exit_code(error)
        message = message if code > 1 else f"{type(error).__name__}: {message}"
        run_folder.write_json(_record(folder, run), {"code": code, "said": message})
        _log(folder, run, "failed", message)
    else:
        _log(folder, run, "finished")
    jax.clear_caches()  # other runs cannot use this run's programs
    return True


def _record(folder: Path, run: SweepRun) -> Path:
    return folder / f"{run.name}.failed.json"


def _log(folder: Path, run: SweepRun, event: str, said: str = "") -> None:
    """Appends one line in a single write, so that lines of several workers do not mix."""
    worker = f"{socket.gethostname()}:{os.getpid()}"
    row = {"time": time.time(), "run": run.name, "event": event, "worker": worker, "said": said}
    try:
        with (folder / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    except OSError as error:
        raise DataError(f"{folder / LOG}: cannot write: {error.strerror or error}") from error
