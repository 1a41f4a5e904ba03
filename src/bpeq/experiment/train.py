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
from bpeq.config.loading import Config
from bpeq.config.problem import Problem, build, seed_keys
from bpeq.core import trees
from bpeq.experiment.distributed import any_process, assert_same_config, device_mesh
from bpeq.experiment.resume import (
    has_started,
    identity,
    is_finished,
    read_summary,
    start_folder,
)
from bpeq.experiment.rule_fidelity import before_and_after
from bpeq.experiment.runner import Diverged, Interrupted, Progress, Runner
from bpeq.experiment.study import study_work
from bpeq.runs import lock, manifest, run_folder
from bpeq.training import evaluation, loops
from bpeq.training.data_parallel import across
from bpeq.types import Caution, Params

__all__ = ["Diverged", "Interrupted", "Progress", "run", "statistics"]


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
    began = time.perf_counter()
    resume = resume and has_started(config, folder)
    if resume and is_finished(folder) and manifest.has_manifest(folder):
        return read_summary(folder)
    # Build the parts, or load the study, before the folder is touched.
    if config.experiment is not None:
        check_devices(config)
        work, checksum = study_work(config), ""
    else:
        problem = build(config) if problem is None else problem
        work = partial(_training, config, problem, device_mesh(config))
        checksum = problem.data.checksum
        assert_same_config(config, checksum)
    with lock.lock_folder(folder, resume), jax.enable_x64(config.double):
        if resume and is_finished(folder):
            manifest.write_manifest(folder)
            return read_summary(folder)
        # Train, then write the summary and the manifest, which mark the run as finished.
        environment = start_folder(config, folder, resume, checksum)
        runner = Runner(
            folder,
            str(config.path),
            progress,
            any_process(stop),
            identity=identity(config),
            resume=resume,
            share=config.run.checkpoint_share,
        )
        runner.clock.started = began
        found = work(runner)
        found["metrics"] = {k: statistics(v) for k, v in found["metrics"].items()}
        summary = {
            "name": config.name,
            "config": config.as_dict(),
            "seeds": config.seeds,
            **found,
            "seconds": runner.clock.seconds(),
            "environment": environment,
        }
        run_folder.write_json(folder / "summary.json", summary)
        manifest.write_manifest(folder)
    return summary


def _training(
    config: Config, problem: Problem, mesh: Mesh | None, runner: Runner
) -> dict[str, Any]:
    """Trains a config's problem and saves the parameters; returns its part of the summary."""
    params, metrics, last = _train(config, problem, mesh, runner)
    run_folder.save_arrays(runner.folder / "params.safetensors", params)
    found = {
        "rule": config.rule.name,
        "metrics": metrics,
        "updates": last["step"],
        "last": last,
        "layers": _layer_sizes(problem, params),
        "data": _about(problem),
    }
    if config.fidelity_or_none is not None:
        found["fidelity"] = before_and_after(config, problem, params)
    return found


def _train(
    config: Config, problem: Problem, mesh: Mesh | None, runner: Runner
) -> tuple[Params, dict[str, np.ndarray], dict[str, Any]]:
    """Trains all seeds. Returns parameters and metrics, seeds on axis 0, and the last row."""
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
        found: dict[str, Any] = {}
        for split, chosen in (("validation", problem.validation), ("test", problem.test)):
            if chosen.shape[1]:
                found |= _named(split, evaluate(carry.params, x, y, put(jnp.asarray(chosen))))
        return found

    def remedy(values: dict[str, Any]) -> str:
        rate = config.optimizer.settings["learning_rate"]
        said = f"a smaller optimizer.learning_rate than {rate}"
        if "unsettled" in values:  # a phase or an adjoint may diverge under any weights
            said += ", or solvers under which every phase settles"
        return said

    def unsettled(trained: dict[str, np.ndarray], when: str) -> str:
        share = np.max(np.mean(trained.get("unsettled", [0.0]), axis=0))
        said = f"{100 * share:.3g} % of its phases did not settle"
        if share > 0 and settings.unsettled == "warn" and not told:
            told.append(when)
            warnings.warn(f"{config.path}: {when}: {said}", Caution, stacklevel=2)
        stops = share > 0 and settings.unsettled == "stop"
        return f"{said} (training.unsettled = 'stop')" if stops else ""

    # All epochs, with a row and an evaluation after every `evaluate_every`.
    told: list[str] = []
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
    # The training error is evaluated once, at the end.
    with runner.clock("evaluate"):
        values |= jax.device_get(_named("train", evaluate(carry.params, x, y, rows)))
    reported = {k: v for k, v in values.items() if k.startswith(("train", "val", "test", "solved"))}
    params = jax.device_get(carry.params)
    return params, reported, {k: v for k, v in logged[-1].items() if k != "values"}


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


def _layer_sizes(problem: Problem, params: Params) -> list[dict[str, Any]]:
    """Counts the parameters of one seed in each layer."""
    one = jax.tree.map(lambda leaf: leaf[0], params)
    rows = grouped(one, problem.network)
    return [{"name": name, "parameters": trees.size(part)} for name, part in rows.items()]


def _about(problem: Problem) -> dict[str, Any]:
    """Describes the data of a run for its summary."""
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
