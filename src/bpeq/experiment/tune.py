"""Tuning on the validation split, for `compare --tune` and `sweep --search`.

`compare --tune` gives every rule the same number of trials. `sweep --search` searches the values of
a grid. Both take settings from samplers of optuna.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bpeq.config.loading import Config, ConfigError
from bpeq.config.problem import Problem, build
from bpeq.config.schema import fields
from bpeq.experiment import sweep, train
from bpeq.experiment.distributed import device_mesh
from bpeq.experiment.runner import Progress, silent
from bpeq.experiment.sweep_grid import Grid, SweepRun, read_range, sweep_run
from bpeq.runs import manifest, run_folder
from bpeq.settings import complaint

RATE_SPAN, SETTING_SPAN = 10.0, 3.0
"""The largest factor between a trial and the config: for the learning rate, for other settings."""
STORAGE = "optuna.log"
_EXACTNESS = ("tolerance",)
"""Settings of the accuracy of a solver. They are not tuned: a loose solver must not win."""


def validation_metric(config: Config, problem: Problem, option: str) -> str:
    """The metric that ranks trials: the validation error, or the RMSE for a regression.

    Args:
      config: the config, for error messages.
      problem: its built parts.
      option: the command-line option that needs the metric, such as `--tune`.

    Returns:
      The name of the metric.

    Raises:
      ConfigError: the data have no validation split.
    """
    if problem.validation.shape[1] == 0:
        data = config.data.as_dict()
        key = "validation" if "validation" in data else "name"
        remedy = f"leaves no validation split, by which {option} selects"
        raise config.error(f"data.{key}", data[key], remedy)
    return "validation_rmse" if problem.data.task == "regression" else "validation_error"


def tune(
    config: Config,
    problem: Problem,
    trials: int,
    folder: Path,
    progress: Progress = silent,
    stop: Callable[[], int | None] = lambda: None,
    record: dict[str, Any] | None = None,
    resume: bool = False,
) -> tuple[Config, dict[str, Any]]:
    """Trains under several settings and selects those with the lowest validation error.

    Trial 0 uses the settings of the config. `trial_settings` draws the others around it. Each trial
    is a whole training of all seeds, without the test examples. The mean over seeds ranks the
    trials; of two equal trials the earlier one wins. A trial also counts if it diverges, or if a
    part of the config refuses its settings.

    Args:
      config: the config to tune.
      problem: its built parts.
      trials: the number of trials, at least 1.
      folder: gets one run folder for each trial, named by its number. The weights of a trial are
        deleted when it has ended.
      progress: called after each row, with the turns of all trials together. The default shows
        nothing.
      stop: returns the number of a signal that asks to stop, else None. The default never stops.
      record: a dict that is filled while trials end, so that the caller keeps them after an
        interruption; None: a new dict.
      resume: finished trials in the folder are reused.

    Returns:
      The config with the settings of the best trial, and the record. The record has `metric`,
      `chosen` (None until all trials have ended), and `trials`. Each trial has `settings` by their
      keys in the config, the metric (None without a finite value), and `failed`, the reason, if it
      failed.

    Raises:
      ConfigError: the data have no validation split.
      Interrupted: `stop` returned a signal. The current trial saves first.
    """
    metric = validation_metric(config, problem, "--tune")
    record = {} if record is None else record
    rows: list[dict[str, Any]] = []
    record |= {"metric": metric, "chosen": None, "trials": rows}
    for i, settings in enumerate(trial_settings(config, trials)):

        def report(turn: int, turns: int, row: dict[str, Any], i: int = i) -> None:
            label = f"trial {i + 1} of {trials}"
            progress(i * turns + turn, trials * turns, {"said": label})

        trial = with_settings(config, settings)
        outcome = _run_trial(trial, problem, folder / str(i), report, stop, resume)
        rows.append({"settings": settings, metric: outcome.pop(metric, None), **outcome})
    chosen = min(range(trials), key=lambda i: (rows[i][metric] is None, rows[i][metric]))
    record["chosen"] = chosen
    return with_settings(config, rows[chosen]["settings"]), record


def trial_settings(config: Config, trials: int) -> list[dict[str, float]]:
    """Draws the settings of every trial. Trial 0 has the settings of the config.

    The others are a scrambled Halton sequence in the logarithms of the `search_space`, which covers
    every range evenly. They depend on `seed` alone. So a resumed tuning has the same trials, and
    all rules try the same multiples of their learning rates.

    Args:
      config: the config to tune.
      trials: the number of trials, at least 1.

    Returns:
      Settings by their keys in the config, one dict for each trial.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = search_space(config)
    distributions: dict[str, Any] = {
        key: optuna.distributions.FloatDistribution(low, high, log=True)
        for key, (_, low, high) in space.items()
    }
    with warnings.catch_warnings():  # optuna calls its quasi-random sampler experimental
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        seed = config.seed
        sampler = optuna.samplers.QMCSampler(qmc_type="halton", scramble=True, seed=seed)
    study = optuna.create_study(sampler=sampler)
    own = {key: value for key, (value, _, _) in space.items()}
    study.enqueue_trial(own)
    rows = []
    for _ in range(trials):
        trial = study.ask(distributions)
        study.tell(trial, 0.0)  # the sampler does not use this value
        rows.append({key: float(f"{value:.3g}") for key, value in trial.params.items()})
    return [own, *rows[1:]]


def search_space(config: Config) -> dict[str, tuple[float, float, float]]:
    """The settings that `--tune` varies, with their ranges.

    The learning rate varies from a tenth to ten times its value; layer rates keep their
    proportions. The rule's settings that are positive real numbers, such as β, vary from a third to
    three times their value, within their permitted ranges.

    Args:
      config: the config to tune.

    Returns:
      For each key: the config's value, and the low and the high end of the range.
    """
    rate = config.optimizer.settings["learning_rate"]
    space = {"optimizer.learning_rate": (rate, rate / RATE_SPAN, rate * RATE_SPAN)}
    for name, (hint, _) in fields(config.rule.factory).items():
        value = config.rule.settings.get(name)
        if not isinstance(value, float) or name in _EXACTNESS:
            continue
        if value > 0 and complaint(hint, 0.0):
            low, high = (_within(hint, value, span) for span in (1 / SETTING_SPAN, SETTING_SPAN))
            space[f"rule.{name}"] = (value, low, high)
    return space


def with_settings(config: Config, settings: dict[str, float]) -> Config:
    """Puts the settings of a trial into a config. Layer rates keep their proportions.

    Args:
      config: the config to change.
      settings: values by key, as `trial_settings` returns them.

    Returns:
      The changed config.
    """
    before, rate = config.optimizer.settings, settings["optimizer.learning_rate"]
    optimizer: dict[str, Any] = {"learning_rate": rate}
    if "layer_rates" in before:
        factor = rate / before["learning_rate"]
        optimizer["layer_rates"] = [factor * each for each in before["layer_rates"]]
    rule = {key[5:]: value for key, value in settings.items() if key.startswith("rule.")}
    return config.changed(optimizer=optimizer, rule=rule)


def check_search(config: Config, grid: Grid, trials: int) -> str:
    """Checks everything that `--search` needs.

    Args:
      config: the config that the search varies.
      grid: the texts of the values of each key.
      trials: the number of trials.

    Returns:
      The metric to minimise.

    Raises:
      ConfigError: `trials` is below 1, a range is wrong, the config runs a study, or the data have
        no validation split.
    """
    if trials < 1:
        raise ConfigError(f"--search = {trials}: must be a whole number >= 1")
    for key, texts in grid.items():
        read_range(key, texts)
    if config.experiment is not None:
        raise ConfigError(f"--search = {trials}: a study has no validation split to search by")
    problem = build(config)
    device_mesh(config)
    return validation_metric(config, problem, "--search")


def search(
    config: Config,
    grid: Grid,
    trials: int,
    folder: Path,
    metric: str,
    progress: Progress = silent,
    stop: Callable[[], int | None] = lambda: None,
) -> None:
    """Runs trials in a sweep's folder until all workers together have finished `trials` of them.

    Each worker learns from the trials of all (TPE, whose first ten trials are random). A trial does
    not count if its worker was killed. Each worker finishes its current trial. So the total may
    exceed `trials` by the number of other workers.

    Args:
      config: the config that the search varies.
      grid: for each key, the values to choose from, or one text `LOW..HIGH`. This is a range of
        whole numbers if both ends are whole. `:log` makes it logarithmic.
      trials: the number of trials, at least 1.
      folder: the folder of the sweep.
      metric: the metric of summary.json to minimise.
      progress: called as in `sweep.run_all`. The default shows nothing.
      stop: returns the number of a signal that asks to stop, else None. The default never stops.

    Raises:
      ConfigError: the search in this folder began with other values.
      DataError: the disk fails.
      Interrupted: `stop` returned a signal. The current run saves first.
    """
    import optuna

    study = _study(folder)
    while (done := len(_ended(study))) < trials:

        def report(_done: int, _all: int, row: dict[str, Any], done: int = done) -> None:
            progress(done, trials, row)

        trial = study.ask()
        # Without the trial's number in the seed, workers that start together draw equal settings.
        study.sampler = optuna.samplers.TPESampler(seed=config.seed + trial.number)
        for key, texts in grid.items():
            _suggest(trial, key, texts)
        run = _run_of(config, trial)
        sweep.run_all([run], folder, report, stop)
        if sweep.failure(folder, run) is not None:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            metrics = run_folder.read_json(folder / run.name / "summary.json")["metrics"]
            study.tell(trial, metrics[metric]["mean"])


def searched_runs(config: Config, folder: Path) -> list[SweepRun]:
    """The runs of all ended trials of a search, in order, without repeats.

    Args:
      config: the config that the search varies.
      folder: the folder of the sweep.

    Returns:
      The runs.
    """
    runs = (_run_of(config, trial) for trial in _ended(_study(folder)))
    return list({run.name: run for run in runs}.values())


def _run_trial(
    config: Config,
    problem: Problem,
    folder: Path,
    progress: Progress,
    stop: Callable[[], int | None],
    resume: bool,
) -> dict[str, Any]:
    """Trains once without the test examples. Returns the validation metrics or the failure."""
    config = config.changed(fidelity=None)
    try:
        problem = build(config, problem.data)
        blind = problem._replace(test=problem.test[:, :0])
        metrics = train.run(config, folder, progress, stop, blind, resume)["metrics"]
    except (ConfigError, train.Diverged) as error:
        return {"failed": str(error)}
    for path in (folder / "params.safetensors", *folder.glob("checkpoints/*")):
        path.unlink(missing_ok=True)  # the weights of many trials would fill the disk
    manifest.write_manifest(folder)
    means = {name: statistic["mean"] for name, statistic in metrics.items()}
    return {k: v for k, v in means.items() if k.startswith("validation") and np.isfinite(v)}


def _within(hint: Any, value: float, span: float) -> float:
    """The product value · span, or a value nearer to `value` if the setting's range ends there."""
    while span != 1.0 and complaint(hint, value * span):
        span = float(np.sqrt(span))
    return value * span


def _study(folder: Path) -> Any:
    """Opens the optuna study of a sweep's folder, or creates it."""
    import optuna
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder / STORAGE)))
    return optuna.create_study(storage=storage, study_name="sweep", load_if_exists=True)


def _ended(study: Any) -> list[Any]:
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]


def _run_of(config: Config, trial: Any) -> SweepRun:
    """The run of a trial. Its numbers have four digits, which are easy to read."""
    params = trial.params.items()
    chosen = {key: f"{v:.4g}" if isinstance(v, float) else str(v) for key, v in params}
    return sweep_run(config, chosen)


def _suggest(trial: Any, key: str, texts: Sequence[str]) -> None:
    """Lets the sampler choose the value of a key. The trial's params then hold the value."""
    values = read_range(key, texts)
    try:
        if isinstance(values, list):
            trial.suggest_categorical(key, values)
        else:
            low, high, log = values
            suggest = trial.suggest_int if isinstance(low, int) else trial.suggest_float
            suggest(key, low, high, log=log)
    except ValueError as error:  # optuna refuses values that the study did not begin with
        remedy = "the search in this folder began with other values; use those, or a new folder"
        raise ConfigError(f"--grid {key} = {','.join(texts)}: {remedy}") from error
