"""Runs the study file that a config names. An error in its code names its file and line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bpeq.config.errors import ConfigError, describe_error
from bpeq.config.loading import Config
from bpeq.config.registry import load_study
from bpeq.experiment.runner import Diverged, Interrupted, Runner
from bpeq.runs import run_folder
from bpeq.types import DataError

_OURS = ConfigError | DataError | Diverged | Interrupted | MemoryError | FileExistsError


def study_work(config: Config) -> Callable[[Runner], dict[str, Any]]:
    """Makes the function that calls `run(config, runner, **settings)` of the config's study file.

    The study returns metrics, each a number or `[seeds]`. The report shows the PNG files that the
    study leaves in the folder. If the study fails before its first step, the folder is removed.

    Args:
      config: a config with an `experiment`.

    Returns:
      A function from a runner to the study's part of the summary: `metrics` and `pictures`.

    Raises:
      ValueError: the study file does not exist, fails, or has no function `run`.
    """
    assert config.experiment is not None
    plain, study = config.without_study(), load_study(config.experiment, config.folder)

    def work(runner: Runner) -> dict[str, Any]:
        try:
            metrics = study(plain, runner, **config.study)
            found = _metrics(metrics)
        except (Exception, SystemExit) as error:
            worded = _word_error(config, study, error)
            if isinstance(worded, ConfigError | DataError):
                run_folder.remove_if_unstarted(runner.folder)
            if worded is error:
                raise
            raise worded from error
        pictures = sorted(path.name for path in runner.folder.glob("*.png"))
        return {"metrics": found, "pictures": pictures}

    return work


def _metrics(returned: Any) -> dict[str, np.ndarray]:
    """Gives each metric the shape `[seeds]`. A number is the value of one seed."""
    if not isinstance(returned, dict):
        raise TypeError(f"run returned {type(returned).__name__}, not metrics by their names")
    found = {k: np.atleast_1d(np.asarray(v, np.float64)) for k, v in returned.items()}
    for name, values in found.items():
        if values.ndim > 1 or not values.size:
            raise TypeError(f"metric {name} has shape {values.shape}, not a number or [seeds]")
    return found


def _word_error(config: Config, study: Any, error: BaseException) -> BaseException:
    """Turns an error of the study's own code into a ConfigError that names file and line."""
    disk = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
    if isinstance(error, _OURS) or disk or "RESOURCE_EXHAUSTED" in str(error):
        return error
    path = study.__code__.co_filename
    beside = frozenset(str(file) for file in Path(path).parent.glob("*.py"))
    return config.error("experiment", config.experiment, f"fails: {describe_error(error, beside)}")
