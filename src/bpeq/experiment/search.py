"""A search over settings by optuna: every trial is a run of the sweep, in the sweep's folder."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bpeq.config.loading import Config, ConfigError
from bpeq.config.problem import build
from bpeq.experiment import sweep, sweep_runs
from bpeq.experiment.distributed import shared_by
from bpeq.experiment.sweep_runs import Cell, Grid
from bpeq.runs import run_folder

STORAGE = "optuna.log"
_RANGE = re.compile(r"(?P<low>[^.].*?)\.\.(?P<high>[^:]+)(?P<log>:log)?")


def check(config: Config, grid: Grid, trials: int) -> str:
    """The metric to search by: the validation set's error, or RMSE.

    Raises:
      ConfigError: optuna is not installed; trials or a range mean nothing; no validation split.
    """
    if trials < 1:
        raise ConfigError(f"--search = {trials}: must be a whole number >= 1")
    try:
        import optuna  # type: ignore[import-not-found,unused-ignore]  # noqa: F401
    except ImportError:
        said = "needs optuna, which is not installed: pip install 'bpeq[search]'"
        raise ConfigError(f"--search = {trials}: {said}") from None
    for key, texts in grid.items():
        _space(key, texts)
    if "experiment" in config.tree:
        raise ConfigError(f"--search = {trials}: a study has no validation split to search by")
    problem = build(config)
    shared_by(config)
    if problem.validation.shape[1] == 0:
        raise ConfigError(f"--search = {trials}: the data leave no validation split to search by")
    return "validation_rmse" if problem.data.task == "regression" else "validation_error"


def search(
    config: Config,
    grid: Grid,
    trials: int,
    folder: Path,
    metric: str,
    progress: sweep.Progress | None = None,
    stop: Callable[[], int | None] = lambda: None,
) -> None:
    """Runs trials until so many have ended, of all workers together.

    Each worker learns from what the others have found (TPE, whose first ten trials are random). A
    trial that a killed worker left does not count. Each worker ends the trial that it has begun, so
    there may be as many more as there are other workers.

    Args:
      grid: a setting's values to choose from; or a single text `LOW..HIGH`, a range of whole
        numbers where both are, with `:log` drawn log-uniformly.

    Raises:
      ConfigError, DataError, Interrupted: as `sweeping.work`.
    """
    import optuna

    study, seed = _study(folder), config.tree["seed"]
    while (done := len(_ended(study))) < trials:
        trial = study.ask()
        # by the trial's number, or workers that start together would all draw the same
        study.sampler = optuna.samplers.TPESampler(seed=seed + trial.number)
        chosen = {key: _suggest(trial, key, texts) for key, texts in grid.items()}
        each = sweep_runs.cell(config.path, config.overrides, chosen)
        sweep.work([each], folder, _counting(progress, done, trials), stop)
        if sweep.failure(folder, each) is not None:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            found = run_folder.read_json(folder / each.name / "summary.json")["metrics"]
            study.tell(trial, found[metric]["mean"])


def tried(config: Config, grid: Grid, folder: Path) -> list[Cell]:
    """The runs of all trials that have ended, in their order, each once."""
    found = {}
    for trial in _ended(_study(folder)):
        chosen = {key: _text(trial.params[key]) for key in grid if key in trial.params}
        each = sweep_runs.cell(config.path, config.overrides, chosen)
        found[each.name] = each
    return list(found.values())


def _study(folder: Path) -> Any:
    import optuna
    from optuna.storages.journal import (  # type: ignore[import-not-found,unused-ignore]
        JournalFileBackend,
    )

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder / STORAGE)))
    return optuna.create_study(
        storage=storage, study_name="sweep", direction="minimize", load_if_exists=True
    )


def _ended(study: Any) -> list[Any]:
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]


def _space(key: str, texts: Sequence[str]) -> Any:
    """The texts to choose from, or (low, high, log) of a range."""
    match = _RANGE.fullmatch(texts[0]) if len(texts) == 1 else None
    if match is None:
        return list(texts)
    log, ends = match["log"] is not None, (match["low"], match["high"])
    try:
        low, high = (int(e) if all(map(str.isdecimal, ends)) else float(e) for e in ends)
    except ValueError:
        low = high = 0.0
    if not low < high or (log and low <= 0):
        remedy = "must be LOW..HIGH with LOW < HIGH, and LOW > 0 before :log"
        raise ConfigError(f"--grid {key} = {texts[0]}: {remedy}")
    return low, high, log


def _suggest(trial: Any, key: str, texts: Sequence[str]) -> str:
    space = _space(key, texts)
    try:
        if isinstance(space, list):
            return trial.suggest_categorical(key, space)
        low, high, log = space
        suggest = trial.suggest_int if isinstance(low, int) else trial.suggest_float
        return _text(suggest(key, low, high, log=log))
    except ValueError as error:  # optuna keeps to the lists and kinds that it began with
        remedy = "the search in this folder began with other values; go on with those, or name "
        raise ConfigError(f"--grid {key} = {','.join(texts)}: {remedy}a new folder") from error


def _text(value: Any) -> str:
    """As `--set` takes it; a number with as many digits as anyone would want to read."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _counting(progress: Any, done: int, trials: int) -> sweep.Progress | None:
    def report(_done: int, _total: int, row: dict[str, Any]) -> None:
        progress(done, trials, row)

    return None if progress is None else report
