"""Tuning on the validation split: `compare --tune`, as many trials for every rule, and `sweep
--search`, a search over the values of a grid. Both draw settings by optuna's samplers.
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
from bpeq.experiment.sweep_runs import Grid, SweepRun, read_range, sweep_run
from bpeq.runs import manifest, run_folder
from bpeq.settings import complaint

RATE_SPAN, SETTING_SPAN = 10.0, 3.0
"""How far trials go from the config's value, up and down: of the learning rate, of a setting."""
STORAGE = "optuna.log"
_EXACTNESS = ("tolerance",)
"""Settings of how exactly a rule solves: no trial should be better for being careless."""


def validation_metric(config: Config, problem: Problem, option: str) -> str:
    """The metric that trials are judged by: the validation error, or RMSE for a regression.

    Args:
      config: names the data in an error.
      problem: the parts of the config.
      option: the command line's option that asks, such as `--tune`.

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
    progress: train.Progress | None = None,
    stop: Callable[[], int | None] = lambda: None,
    record: dict[str, Any] | None = None,
    resume: bool = False,
) -> tuple[Config, dict[str, Any]]:
    """Trains under several settings, and chooses those of the lowest validation error.

    Trial 0 is the config as it stands; `trial_settings` draws the others around it. Each trial is a
    whole training of all seeds, without the test examples. The mean over seeds decides, and the
    earlier of two equal trials. A trial that diverges, or whose settings a part of the config
    refuses, counts as a trial.

    Args:
      config: the config to tune.
      problem: its parts.
      trials: how many trials, at least 1.
      folder: gets a run folder for each trial, named by its number. The weights of a trial are
        deleted when it has ended.
      progress: called as a run's, with the steps of all trials together.
      stop: returns the number of a signal that asks to stop, else None.
      record: is filled as trials end, so that the caller has them if tuning is interrupted.
      resume: trials that the folder holds are taken from there.

    Returns:
      The config with the settings of the best trial, and the record: `metric`, `chosen` (None until
      all trials have ended), and `trials`, each with `settings` by their keys in the config, the
      metric (None if there is none), and the reason under `failed` if it failed.

    Raises:
      ConfigError: the data have no validation split.
      Interrupted: after saving.
    """
    metric = validation_metric(config, problem, "--tune")
    record = {} if record is None else record
    rows: list[dict[str, Any]] = []
    record |= {"metric": metric, "chosen": None, "trials": rows}
    for i, settings in enumerate(trial_settings(config, trials)):

        def report(turn: int, turns: int, row: dict[str, Any], i: int = i) -> None:
            if progress is not None:
                label = f"trial {i + 1} of {trials}"
                progress(i * turns + turn, trials * turns, {"said": label})

        trial = with_settings(config, settings)
        outcome = _run_trial(trial, problem, folder / str(i), report, stop, resume)
        rows.append({"settings": settings, metric: outcome.pop(metric, None), **outcome})
    chosen = min(range(trials), key=lambda i: (rows[i][metric] is None, rows[i][metric]))
    record["chosen"] = chosen
    return with_settings(config, rows[chosen]["settings"]), record


def trial_settings(config: Config, trials: int) -> list[dict[str, float]]:
    """The settings of every trial, by their keys in the config; those of trial 0 are the config's.

    The others are a scrambled Halton sequence in the logarithms of the `search_space`, which fills
    every range evenly. They follow from `seed` alone, so that a resumed tuning has the same trials
    and the learning rates of all rules are the same multiples of their own.

    Args:
      config: the config to tune.
      trials: how many, at least 1.
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
        study.tell(trial, 0.0)  # whatever it is, the sequence goes on
        rows.append({key: float(f"{value:.3g}") for key, value in trial.params.items()})
    return [own, *rows[1:]]


def search_space(config: Config) -> dict[str, tuple[float, float, float]]:
    """What `--tune` varies: for each key the config's value and the two ends of its range.

    That is the learning rate, ten times up and down, with any layer rates in proportion; and the
    rule's own settings that are numbers above 0 and not whole, such as β, three times up and down,
    as far as their ranges allow.
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
    """The config with the settings of a trial. Its layer rates keep their proportions.

    Args:
      config: the config to change.
      settings: by key, as `trial_settings` gives them.
    """
    before, rate = config.optimizer.settings, settings["optimizer.learning_rate"]
    optimizer: dict[str, Any] = {"learning_rate": rate}
    if "layer_rates" in before:
        factor = rate / before["learning_rate"]
        optimizer["layer_rates"] = [factor * each for each in before["layer_rates"]]
    rule = {key[5:]: value for key, value in settings.items() if key.startswith("rule.")}
    return config.changed(optimizer=optimizer, rule=rule)


def check_search(config: Config, grid: Grid, trials: int) -> str:
    """Checks all that `--search` needs, and returns the metric to search by.

    Args:
      config, grid, trials: as `search` takes them.

    Raises:
      ConfigError: trials < 1, a range that means nothing, a study, or no validation split.
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
    progress: sweep.Progress | None = None,
    stop: Callable[[], int | None] = lambda: None,
) -> None:
    """Runs trials in a sweep's folder until so many have ended, of all workers together.

    Each worker learns from the trials of all (TPE, whose first ten trials are random). A trial that
    a killed worker left does not count. Each worker ends the trial that it has begun, so that there
    may be as many more trials as there are other workers.

    Args:
      config: the config that the search varies.
      grid: the values of a setting to choose from; or a single text `LOW..HIGH`, a range of whole
        numbers if both are, with `:log` drawn log-uniformly.
      trials: how many.
      folder: the folder of the sweep.
      metric: the metric of a run's summary.json to minimise.
      progress: as `sweep.run_all` calls it.
      stop: returns the number of a signal that asks to stop, else None.

    Raises:
      ConfigError: the search in this folder began with other values.
      DataError, Interrupted: as `sweep.run_all`.
    """
    import optuna

    study = _study(folder)
    while (done := len(_ended(study))) < trials:

        def report(_done: int, _all: int, row: dict[str, Any], done: int = done) -> None:
            if progress is not None:
                progress(done, trials, row)

        trial = study.ask()
        # The seed has the trial's number, or workers that start together would draw the same.
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
    """The runs of all trials of a search that have ended, in their order, each once.

    Args:
      config: the config that the search varies.
      folder: the folder of the sweep.
    """
    runs = (_run_of(config, trial) for trial in _ended(_study(folder)))
    return list({run.name: run for run in runs}.values())


def _run_trial(
    config: Config,
    problem: Problem,
    folder: Path,
    progress: train.Progress,
    stop: Callable[[], int | None],
    resume: bool,
) -> dict[str, Any]:
    """Trains once without the test examples. Returns the validation metrics, or why it failed."""
    config = config.changed(fidelity=None)
    try:
        problem = build(config, problem.data)
        blind = problem._replace(test=problem.test[:, :0])
        metrics = train.run(config, folder, progress, stop, blind, resume)["metrics"]
    except (ConfigError, train.Diverged) as error:
        return {"failed": str(error)}
    for path in (folder / "params.safetensors", *folder.glob("checkpoints/*")):
        path.unlink(missing_ok=True)  # those of many trials would fill a disk
    manifest.write_manifest(folder)
    means = {name: statistic["mean"] for name, statistic in metrics.items()}
    return {k: v for k, v in means.items() if k.startswith("validation") and np.isfinite(v)}


def _within(hint: Any, value: float, span: float) -> float:
    """value · span, or nearer to the value if the setting's range ends before."""
    while span != 1.0 and complaint(hint, value * span):
        span = float(np.sqrt(span))
    return value * span


def _study(folder: Path) -> Any:
    import optuna
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder / STORAGE)))
    return optuna.create_study(storage=storage, study_name="sweep", load_if_exists=True)


def _ended(study: Any) -> list[Any]:
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]


def _run_of(config: Config, trial: Any) -> SweepRun:
    """The run of a trial. Its numbers have four digits, to be read."""
    params = trial.params.items()
    chosen = {key: f"{v:.4g}" if isinstance(v, float) else str(v) for key, v in params}
    return sweep_run(config.path, config.overrides, chosen)


def _suggest(trial: Any, key: str, texts: Sequence[str]) -> None:
    """Lets the sampler choose a value of a key, which is then in the trial's params."""
    values = read_range(key, texts)
    try:
        if isinstance(values, list):
            trial.suggest_categorical(key, values)
        else:
            low, high, log = values
            suggest = trial.suggest_int if isinstance(low, int) else trial.suggest_float
            suggest(key, low, high, log=log)
    except ValueError as error:  # optuna keeps to the lists and kinds that a study began with
        remedy = "the search in this folder began with other values; use those, or a new folder"
        raise ConfigError(f"--grid {key} = {','.join(texts)}: {remedy}") from error
