"""From a config to results: build the parts, train every seed at once, leave a run folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tomli_w

from bpeq import runs, scoring, training, trees
from bpeq._schema import ConfigError
from bpeq.config import Config, load
from bpeq.fidelity import grouped
from bpeq.looping import Diverged, Interrupted, Progress, Runner
from bpeq.probe import before_and_after
from bpeq.problem import Problem, build, seed_keys
from bpeq.registry import load_study, told
from bpeq.types import DataError, Params

__all__ = ["Diverged", "Interrupted", "Progress", "run", "statistics"]


def run(
    config: Config,
    folder: Path,
    progress: Progress | None = None,
    stop: Callable[[], int | None] = lambda: None,
    problem: Problem | None = None,
) -> dict[str, Any]:
    """Trains what a config says into a new run folder, and returns its summary.

    The folder gets `config.toml`, `environment.json`, `metrics.jsonl` as it goes, and at the end
    `params.safetensors` (every seed's, seeds on axis 0) and `summary.json`.

    Args:
      progress: called when training starts, with an empty row, and after every logged row.
      stop: asked between rows; a signal's number ends the run with what it has.
      problem: the config's parts, where they are built already.

    Raises:
      Diverged, Interrupted: after saving. ConfigError, DataError, FileExistsError: before starting.
    """
    if "experiment" in config.tree:
        return _study(config, folder, progress, stop)
    began = time.perf_counter()
    problem = build(config) if problem is None else problem
    runs.claim(folder)
    _write_config(config, folder)
    with jax.enable_x64(config.tree["precision"] == "float64"):
        environment = runs.environment()
        runs.write_json(folder / "environment.json", environment)
        runner = Runner(folder, str(config.path), progress, stop)
        params, metrics, last = _train(config, problem, runner)
        runs.save_arrays(folder / "params.safetensors", params)
        fidelity = before_and_after(config, problem, params) if "fidelity" in config.tree else {}
    seconds = {**runner.clock.spent, "total": time.perf_counter() - began}
    summary = {
        "name": config.name,
        "rule": config.tree["rule"]["name"],
        "config": config.tree,
        "seeds": config.tree["seeds"],
        "metrics": {name: statistics(values) for name, values in metrics.items()},
        "seconds": seconds,
        "updates": last["step"],
        "last": last,
        "layers": _layer_sizes(problem, params),
        "data": _about(problem),
        "environment": environment,
    }
    if fidelity:
        summary["fidelity"] = fidelity
    runs.write_json(folder / "summary.json", summary)
    return summary


def _faulty(config: Config, study: Any, error: BaseException) -> BaseException:
    """What a study raised as it is to be told: its own code's errors in one line."""
    ours = ConfigError | DataError | Diverged | Interrupted | MemoryError | FileExistsError
    disk = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
    if isinstance(error, ours) or disk or "RESOURCE_EXHAUSTED" in str(error):
        return error
    path = study.__code__.co_filename
    beside = {str(file) for file in Path(path).parent.glob("*.py")}
    return config.fault("experiment", config.tree["experiment"], f"fails: {told(error, beside)}")


def _train(
    config: Config, problem: Problem, runner: Runner
) -> tuple[Params, dict[str, np.ndarray], dict[str, Any]]:
    settings, seeds = config.tree["training"], config.tree["seeds"]
    dtype = jnp.result_type(float)
    x = jnp.asarray(problem.data.x, dtype)
    classes = problem.data.task == "classification"
    y = jnp.asarray(problem.data.y, jnp.int32 if classes else dtype)
    keys = seed_keys(config.tree["seed"], seeds)
    params = jax.vmap(problem.init)(keys[:, 0])
    rule, optimizer, size = problem.rule, problem.optimizer, settings["batch_size"]
    carry = jax.vmap(lambda p, k: training.start(rule, optimizer, p, k, x, size))(
        params, keys[:, 1]
    )
    evaluate = scoring.evaluator(rule, problem.cost, problem.data.task, unit=problem.data.unit)
    evaluate = jax.jit(training.each_seed(evaluate, (0, None, None, 0), problem.network))
    rows = jnp.asarray(problem.rows)
    per_epoch = rows.shape[1] // size

    def measure(carry: training.Carry) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for split, chosen in (("validation", problem.validation), ("test", problem.test)):
            if chosen.shape[1]:
                found |= _named(split, evaluate(carry.params, x, y, jnp.asarray(chosen)))
        return found

    def remedy(values: dict[str, Any]) -> str:
        rate = config.tree["optimizer"]["learning_rate"]
        said = f"a smaller optimizer.learning_rate than {rate}"
        if "unsettled" in values:  # a phase or an adjoint may have run away, whatever the weights
            said += ", or solvers under which every phase settles"
        return said

    epochs = training.epoch_scan(training.supervised(rule, optimizer), size)
    carry, values, logged = runner.repeat(
        training.over_seeds(epochs, problem.network),
        carry,
        (x, y, rows, keys[:, 2]),
        total=settings["epochs"],
        every=min(settings["evaluate_every"], settings["epochs"]),
        measure=measure,
        row=lambda done: {"epoch": done, "step": done * per_epoch},
        unit="epoch",
        params=lambda carry: carry.params,
        remedy=remedy,
    )
    with runner.clock("evaluate"):
        values |= jax.device_get(_named("train", evaluate(carry.params, x, y, rows)))
    reported = {k: v for k, v in values.items() if k.startswith(("train", "val", "test", "solved"))}
    params = jax.device_get(carry.params)
    return params, reported, {k: v for k, v in logged[-1].items() if k != "values"}


def statistics(values: np.ndarray) -> dict[str, Any]:
    """mean, sample standard deviation (0 for one seed) and every seed's value."""
    values = np.asarray(values, np.float64)
    std = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return {"mean": float(values.mean()), "std": std, "values": values.tolist()}


def _named(split: str, metrics: dict[str, Any]) -> dict[str, Any]:
    """test_error, train_loss, …; `solved` is said of the run, not of a split."""
    shared = {"solved": metrics["solved"]} if "solved" in metrics else {}
    return {f"{split}_{k}": v for k, v in metrics.items() if k != "solved"} | shared


def _layer_sizes(problem: Problem, params: Params) -> list[dict[str, Any]]:
    one = jax.tree.map(lambda leaf: leaf[0], params)
    rows = grouped(one, problem.network)
    return [{"name": name, "parameters": trees.size(part)} for name, part in rows.items()]


def _about(problem: Problem) -> dict[str, Any]:
    data = problem.data
    return {
        "name": data.name,
        "task": data.task,
        "train": problem.rows.shape[1],
        "validation": problem.validation.shape[1],
        "test": problem.test.shape[1],
        "splits": len(data.train),
        "checksum": data.checksum,
    }


def _write_config(config: Config, folder: Path) -> None:
    """The resolved config, its data file by its whole path, so that it loads from anywhere."""
    data = dict(config.tree.get("data", {}))
    if "path" in data:
        data["path"] = str(Path(data["path"]).resolve())
    tree = {**config.tree, "data": data} if data else config.tree
    runs.write_text(folder / "config.toml", tomli_w.dumps(tree))


def _study(
    config: Config, folder: Path, progress: Progress | None, stop: Callable[[], int | None]
) -> dict[str, Any]:
    """Runs `run(config, runner, **settings)` of the study file that the config names.

    It returns metrics, each a number or `[seeds]`; PNG files that it leaves in the folder join the
    report.
    """
    began = time.perf_counter()
    plain = config._replace(tree={k: v for k, v in config.tree.items() if k != "experiment"})
    if "training" in config.tree:  # then the rest is a config of its own, also under other rules
        beside = [o for o in config.overrides if not o.startswith(("study.", "experiment"))]
        plain = load(config.path, beside, study=False)._replace(source=config.source)
    study = load_study(config.tree["experiment"], config.folder)
    runs.claim(folder)
    _write_config(config, folder)
    runner = Runner(folder, str(config.path), progress, stop)
    with jax.enable_x64(config.tree["precision"] == "float64"):
        environment = runs.environment()
        runs.write_json(folder / "environment.json", environment)
        try:
            found = study(plain, runner, **config.tree.get("study", {}))
            metrics = {name: statistics(np.atleast_1d(value)) for name, value in found.items()}
        except (Exception, SystemExit) as error:
            own = _faulty(config, study, error)
            if isinstance(own, ConfigError | DataError):  # nothing was run: nothing is left
                runs.disclaim(folder)
            if own is error:
                raise
            raise own from error
    summary = {
        "name": config.name,
        "config": config.tree,
        "seeds": config.tree["seeds"],
        "metrics": metrics,
        "seconds": {**runner.clock.spent, "total": time.perf_counter() - began},
        "pictures": sorted(path.name for path in folder.glob("*.png")),
        "environment": environment,
    }
    runs.write_json(folder / "summary.json", summary)
    return summary
