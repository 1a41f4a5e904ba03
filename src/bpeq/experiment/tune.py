"""An equal tuning budget: as many trials for every rule, judged on the validation split alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_origin

import numpy as np
from annotated_types import Gt, Interval

from bpeq.config.loading import Config, ConfigError
from bpeq.config.problem import Problem, build
from bpeq.config.registry import resolve
from bpeq.config.schema import fields
from bpeq.experiment import train
from bpeq.runs import manifest
from bpeq.settings import complaint

RATE_SPAN, OWN_SPAN = 10.0, 3.0
"""How far trials go from a config's value, up and down: of the learning rate, of other settings."""
_EXACTNESS = ("tolerance",)
"""Settings of how exactly a rule solves: no trial should be better for being careless."""


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
    """The config with the settings of its best trial, and the record of all trials.

    Trial 0 is the config as it stands, the others are `drawn` around it. Each is a whole training
    of all seeds, without its test examples; the lowest mean validation error (or RMSE) over seeds
    is chosen, the earlier trial where two are equal. A trial that diverges, or whose settings a
    part of the config refuses, is spent all the same.

    Args:
      folder: gets a run folder a trial, by its number; the weights of finished ones are not kept.
      resume: trials that the folder holds are taken from there.
      record: is filled as trials end, so that whoever gave it has them if tuning is interrupted.

    Returns:
      The record has `metric`, `chosen` (None until all have ended), and `trials`: `settings` by
      their keys in the config, the metric (None where there is none), and `failed`, why, where it
      failed.

    Raises:
      ConfigError: the data have no validation split. Interrupted: after saving.
    """
    check(config, problem)
    metric = "validation_rmse" if problem.data.task == "regression" else "validation_error"
    record = {} if record is None else record
    done: list[dict[str, Any]] = []
    record |= {"metric": metric, "chosen": None, "trials": done}
    for i, settings in enumerate(drawn(config, trials)):
        report = None if progress is None else _part(progress, i, trials)
        found = _trial(applied(config, settings), problem, folder / str(i), report, stop, resume)
        done.append({"settings": settings, metric: found.pop(metric, None), **found})
    scores = [np.inf if each[metric] is None else each[metric] for each in done]
    chosen = record["chosen"] = int(np.argmin(scores))
    return (applied(config, done[chosen]["settings"]) if chosen else config), record


def check(config: Config, problem: Problem) -> None:
    """Raises ConfigError where the data have no validation split to select by."""
    if problem.validation.shape[1] == 0:
        key = "validation" if "validation" in config.tree["data"] else "name"
        remedy = "leaves no validation split, by which --tune selects"
        raise config.fault(f"data.{key}", config.tree["data"][key], remedy)


def drawn(config: Config, trials: int) -> list[dict[str, float]]:
    """The settings of every trial, by their keys in the config; the first are the config's own.

    The others are drawn log-uniformly from the `space`, one from each of as many parts of every
    setting's range as there are draws, in an order of its own (a Latin hypercube). They follow from
    `seed`, so that the learning rates of all rules are the same multiples of their own.
    """
    rng = np.random.default_rng(config.tree["seed"])
    own, columns, n = space(config), {}, trials - 1
    for key, (_, low, high) in own.items():
        places = (rng.permutation(n) + rng.random(n)) / max(n, 1)
        columns[key] = [float(f"{value:.3g}") for value in low * (high / low) ** places]
    rows = [{key: column[i] for key, column in columns.items()} for i in range(n)]
    return [{key: value for key, (value, _, _) in own.items()}, *rows]


def space(config: Config) -> dict[str, tuple[float, float, float]]:
    """What is tuned: the config's value and the ends of its range, by key.

    The learning rate, with any layer rates in proportion, ten times up and down; and the rule's own
    settings that are numbers above 0 and no whole ones, such as β, three times, as far as their
    ranges allow.
    """
    rate = config.tree["optimizer"]["learning_rate"]
    found = {"optimizer.learning_rate": (rate, rate / RATE_SPAN, rate * RATE_SPAN)}
    rule = config.tree["rule"]
    for name, (hint, _) in fields(resolve("rules", rule["name"], config.folder)).items():
        value = rule.get(name)
        if name not in _EXACTNESS and isinstance(value, float) and _positive(hint):
            low, high = (_allowed(hint, value, span) for span in (1 / OWN_SPAN, OWN_SPAN))
            found[f"rule.{name}"] = (value, low, high)
    return found


def applied(config: Config, settings: dict[str, float]) -> Config:
    """The config with a trial's settings; its layer rates keep their proportions."""
    given, rate = config.tree["optimizer"], settings["optimizer.learning_rate"]
    optimizer: dict[str, Any] = {"learning_rate": rate}
    if "layer_rates" in given:
        factor = rate / given["learning_rate"]
        optimizer["layer_rates"] = [factor * each for each in given["layer_rates"]]
    rule = {key[5:]: value for key, value in settings.items() if key.startswith("rule.")}
    return config.changed(optimizer=optimizer, rule=rule)


def _trial(
    config: Config, problem: Problem, folder: Path, progress: Any, stop: Any, resume: bool
) -> dict[str, Any]:
    """The validation metrics of one training, or why it failed."""
    plain = config._replace(tree={k: v for k, v in config.tree.items() if k != "fidelity"})
    try:
        problem = build(plain, problem.data)
        blind = problem._replace(test=problem.test[:, :0])
        metrics = train.run(plain, folder, progress, stop, blind, resume)["metrics"]
    except (ConfigError, train.Diverged) as error:
        return {"failed": str(error)}
    for path in (folder / "params.safetensors", *folder.glob("checkpoints/*")):
        path.unlink(missing_ok=True)  # of many trials they would fill a disk
    manifest.seal(folder)
    means = {name: statistic["mean"] for name, statistic in metrics.items()}
    return {k: v for k, v in means.items() if k.startswith("validation") and np.isfinite(v)}


def _part(progress: train.Progress, i: int, trials: int) -> train.Progress:
    """One bar for all trials of a rule."""

    def report(done: int, total: int, row: dict[str, Any]) -> None:
        said = f"trial {i + 1} of {trials}"
        progress(i * total + done, trials * total, {"said": said})

    return report


def _positive(hint: Any) -> bool:
    """Whether a setting is annotated as a number above 0, perhaps beside choices."""
    if get_origin(hint) is not None and hasattr(hint, "__metadata__"):
        above = (getattr(limit, "gt", None) for limit in _limits(hint))
        return get_args(hint)[0] is float and 0 in above
    return any(map(_positive, get_args(hint)))


def _limits(hint: Any) -> list[Any]:
    return [limit for limit in hint.__metadata__ if isinstance(limit, Gt | Interval)]


def _allowed(hint: Any, value: float, span: float) -> float:
    """value · span, or nearer to the value where the setting's range ends before."""
    while span != 1.0 and complaint(hint, value * span):
        span = float(np.sqrt(span))
    return value * span
