"""From a config to results: builds the parts, trains all seeds at once, writes a run folder."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bpeq.analysis.gradient_fidelity import grouped
from bpeq.config.checks import check_devices
from bpeq.config.errors import ConfigError, describe_error
from bpeq.config.loading import Config
from bpeq.config.problem import Problem, build, seed_keys
from bpeq.config.registry import load_study
from bpeq.core import trees
from bpeq.core.paths import user_path
from bpeq.experiment import saved_run
from bpeq.experiment.distributed import any_process, assert_same_config, device_mesh
from bpeq.experiment.rule_fidelity import before_and_after
from bpeq.experiment.runner import Diverged, Interrupted, Progress, Runner
from bpeq.runs import lock, manifest, run_folder
from bpeq.training import evaluation, loops
from bpeq.training.data_parallel import across
from bpeq.types import Caution, DataError

__all__ = ["Diverged", "Interrupted", "Progress", "run", "statistics"]

_KNOWN = ConfigError | DataError | Diverged | Interrupted | MemoryError | FileExistsError
"""Errors of a study whose message is already for the user."""


def run(
    config: Config,
    folder: Path,
    progress: Progress | None = None,
    stop: Callable[[], int | None] = lambda: None,
    problem: Problem | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Trains a config into a run folder.

    The run writes `config.toml`, `environment.json`, `metrics.jsonl` and `checkpoints/` while it
    trains. At the end it writes `params.safetensors` (all seeds, seeds on axis 0), `summary.json`
    and `manifest.json`. The folder is locked until the end, so that no second process writes into
    it.

    Args:
      config: the checked config.
      folder: the run folder. It is created if it does not exist.
      progress: called when training starts, with an empty row, and after every logged row; None:
        progress is not reported.
      stop: called after every row. It returns the number of a signal that came, or None. A number
        ends the run, which saves first. The default never stops.
      problem: the built parts of the config; None: `build` makes them.
      resume: a run in the folder continues from its newest undamaged checkpoint. The result has the
        same bits as a run without the interruption. A finished run stays unchanged.

    Returns:
      The content of `summary.json`.

    Raises:
      Diverged: a loss, a weight or a state is not finite. The run saves first.
      Interrupted: `stop` returned a signal. The run saves first.
      ConfigError: a setting is wrong. Nothing was trained.
      DataError: the data or the files of the folder are at fault. Nothing was trained.
      FileExistsError: the folder holds something else. Nothing was trained.
    """
    began, folder = time.perf_counter(), user_path(folder)
    resume = resume and saved_run.has_started(config, folder)
    if resume and saved_run.is_finished(folder):
        return saved_run.read_summary(folder)
    # Build the parts, or load the study, before the folder is touched.
    if config.experiment is not None:
        check_devices(config)
        study = load_study(config.experiment, config.folder)
        work, checksum = partial(_run_study, config, config.without_study(), study), ""
    else:
        problem = build(config) if problem is None else problem
        work = partial(_train, config, problem, device_mesh(config))
        checksum = problem.data.checksum
        assert_same_config(config, checksum)
    with lock.lock_folder(folder, resume), jax.enable_x64(config.double):
        if resume and (folder / "summary.json").exists():  # it was killed before the manifest
            manifest.write_manifest(folder)
            return saved_run.read_summary(folder)
        # Train, then write the summary and the manifest, which mark the run as finished.
        environment = saved_run.start_folder(config, folder, resume, checksum)
        runner = Runner(
            folder,
            str(config.path),
            progress,
            any_process(stop),
            identity=saved_run.identity(config),
            resume=resume,
            share=config.run.checkpoint_share,
        )
        runner.clock.started = began
        result = work(runner)
        result["metrics"] = {k: statistics(v) for k, v in result["metrics"].items()}
        summary = {
            "name": config.name,
            "config": config.as_dict(),
            "seeds": config.seeds,
            **result,
            "seconds": runner.clock.seconds(),
            "environment": environment,
        }
        run_folder.write_json(folder / "summary.json", summary)
        manifest.write_manifest(folder)
    return summary


def _train(config: Config, problem: Problem, mesh: Mesh | None, runner: Runner) -> dict[str, Any]:
    """Trains all seeds of a config's problem, and saves the parameters.

    Returns:
      Its part of the summary. Metrics have one value for each seed.
    """
    # The data, and the initial weights of every seed.
    settings, seeds = config.training, config.seeds
    dtype = jnp.result_type(float)
    x = jnp.asarray(problem.data.x, dtype)
    classes = problem.data.task == "classification"
    y = jnp.asarray(problem.data.y, jnp.int32 if classes else dtype)
    keys = seed_keys(config.seed, seeds)
    params = jax.vmap(problem.init)(keys[:, 0])
    # The first carry of every seed, and the evaluation, placed on the devices of the mesh.
    rule, put, placing = across(mesh, problem.rule)
    optimizer, size = problem.optimizer, settings.batch_size
    carry = jax.vmap(lambda p, k: loops.start(rule, optimizer, p, k, x, size))(params, keys[:, 1])
    evaluate = evaluation.evaluator(rule, problem.cost, problem.data.task, unit=problem.data.unit)
    evaluate = loops.each_seed(evaluate, (0, None, None, 0), problem.network)
    evaluate = jax.jit(evaluate, out_shardings=placing)
    carry, x, y, keys, rows = put((carry, x, y, keys, jnp.asarray(problem.rows)))
    per_epoch = rows.shape[1] // size

    def measure(carry: loops.Carry) -> dict[str, Any]:
        metrics: dict[str, Any] = {}
        for split, chosen in (("validation", problem.validation), ("test", problem.test)):
            if chosen.shape[1]:
                metrics |= _named(split, evaluate(carry.params, x, y, put(jnp.asarray(chosen))))
        if settings.evaluate_train:  # the row's train_loss stays that of the updates
            train = evaluate(carry.params, x, y, rows)
            train.pop("loss")
            metrics = _named("train", train) | metrics
        return metrics

    def remedy(values: dict[str, Any]) -> str:
        rate = config.optimizer.settings["learning_rate"]
        advice = f"a smaller optimizer.learning_rate than {rate}"
        if "unsettled" in values:  # a phase or an adjoint may diverge under any weights
            advice += ", or solvers under which every phase settles"
        return advice

    def unsettled(trained: dict[str, np.ndarray], when: str) -> str:
        share = np.max(np.mean(trained.get("unsettled", [0.0]), axis=0))
        message = f"{100 * share:.3g} % of its phases did not settle"
        if share > 0 and settings.unsettled == "warn" and not warned:
            warned.append(when)
            warnings.warn(f"{config.path}: {when}: {message}", Caution, stacklevel=2)
        stops = share > 0 and settings.unsettled == "stop"
        return f"{message} (training.unsettled = 'stop')" if stops else ""

    # All epochs, with a row and an evaluation after every `evaluate_every`.
    warned: list[str] = []
    epochs = loops.epoch_scan(loops.supervised(rule, optimizer), size)
    carry, values, logged = runner.repeat(
        loops.over_seeds(epochs, problem.network, placing),
        carry,
        (x, y, rows, keys[:, 2]),
        total=settings.epochs,
        every=min(settings.evaluate_every, settings.epochs),
        measure=measure,
        row=lambda done: {"epoch": done, "step": done * per_epoch},
        unit="epoch",
        params=lambda carry: carry.params,
        remedy=remedy,
        refuse=unsettled,
    )
    # Without `evaluate_train` the training error is evaluated once, here.
    with runner.clock("evaluate"):
        values |= jax.device_get(_named("train", evaluate(carry.params, x, y, rows)))
    kept = ("train", "val", "test", "solved")
    params, last = jax.device_get(carry.params), logged[-1]
    run_folder.save_arrays(runner.folder / "params.safetensors", params)
    one, data = jax.tree.map(lambda leaf: leaf[0], params), problem.data
    layers = grouped(one, problem.network).items()
    result = {
        "rule": config.rule.name,
        "metrics": {name: value for name, value in values.items() if name.startswith(kept)},
        "updates": last["step"],
        "last": {name: value for name, value in last.items() if name != "values"},
        "layers": [{"name": name, "parameters": trees.size(part)} for name, part in layers],
        "data": {
            "name": data.name,
            "task": data.task,
            "train": problem.rows.shape[1],
            "validation": problem.validation.shape[1],
            "test": problem.test.shape[1],
            "splits": len(data.train),
            "checksum": data.checksum,
        },
    }
    if config.fidelity_or_none is not None:
        result["fidelity"] = before_and_after(config, problem, params)
    return result


def statistics(values: np.ndarray) -> dict[str, Any]:
    """Computes the mean and the sample standard deviation of a metric over seeds.

    Args:
      values: `[seeds]`, the metric of each seed.

    Returns:
      `mean`, `std` (with `seeds − 1` degrees of freedom; 0 for one seed) and `values`, a list.
    """
    values = np.asarray(values, np.float64)
    std = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return {"mean": float(values.mean()), "std": std, "values": values.tolist()}


def _named(split: str, metrics: dict[str, Any]) -> dict[str, Any]:
    """Puts the split before the names of metrics, as in test_error; `solved` has no split."""
    shared = {"solved": metrics["solved"]} if "solved" in metrics else {}
    return {f"{split}_{k}": v for k, v in metrics.items() if k != "solved"} | shared


def _run_study(
    config: Config, plain: Config, study: Callable[..., Any], runner: Runner
) -> dict[str, Any]:
    """Calls `run(config, runner, **settings)` of a study file.

    The study returns metrics, each a number or `[seeds]`. The report shows the PNG files that the
    study leaves in the folder. If the study fails before its first step, the folder is removed.

    Args:
      config: the config, for error messages.
      plain: the config without the study, which the study gets.
      study: the function `run` of the study file.
      runner: the runner of the study's loops.

    Returns:
      The study's part of the summary: `metrics`, each `[seeds]`, and `pictures`.
    """
    try:
        metrics = study(plain, runner, **config.study)
        if not isinstance(metrics, dict):
            raise TypeError(f"run returned {type(metrics).__name__}, not metrics by their names")
        metrics = {k: np.atleast_1d(np.asarray(v, np.float64)) for k, v in metrics.items()}
        for name, values in metrics.items():
            if values.ndim > 1 or not values.size:
                raise TypeError(f"metric {name} has shape {values.shape}, not a number or [seeds]")
    except BaseException as error:  # a study's code may also call sys.exit
        disk = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
        known = isinstance(error, _KNOWN) or disk or "RESOURCE_EXHAUSTED" in str(error)
        if not known or isinstance(error, ConfigError | DataError):
            run_folder.remove_if_unstarted(runner.folder)
        if known:
            raise
        # Any other error is one of the study's own code: name its file and line.
        files = frozenset(map(str, Path(study.__code__.co_filename).parent.glob("*.py")))
        remedy = f"fails: {describe_error(error, files)}"
        raise config.error("experiment", config.experiment, remedy) from error
    pictures = sorted(path.name for path in runner.folder.glob("*.png"))
    return {"metrics": metrics, "pictures": pictures}
