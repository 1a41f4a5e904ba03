"""From a config to results: build the parts, train every seed at once, leave a run folder."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tomli_w

from bpeq import runs, training, trees
from bpeq.config import Config
from bpeq.fidelity import grouped
from bpeq.probe import before_and_after
from bpeq.problem import Problem, build, seed_keys
from bpeq.types import Params

Progress = Callable[[int, int, dict[str, Any]], None]
"""(epochs done, epochs in all, the row just logged)"""


class Diverged(ArithmeticError):
    """A loss or a weight is no longer finite. Exit code 4; the last good parameters are saved."""


class Interrupted(Exception):
    """A signal asked to stop, and what there was has been saved. `signal` is its number."""

    def __init__(self, signal: int, message: str) -> None:
        super().__init__(message)
        self.signal = signal


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
        return _study(config, folder)
    began = time.perf_counter()
    problem = build(config) if problem is None else problem
    runs.claim(folder)
    _write_config(config, folder)
    with jax.enable_x64(config.tree["precision"] == "float64"):
        environment = runs.environment()
        runs.write_json(folder / "environment.json", environment)
        params, metrics, seconds, last = _train(config, problem, folder, progress, stop)
        runs.save_arrays(folder / "params.safetensors", params)
        fidelity = before_and_after(config, problem, params) if "fidelity" in config.tree else {}
    seconds["total"] = time.perf_counter() - began
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


def _train(
    config: Config, problem: Problem, folder: Path, progress: Progress | None, stop: Any
) -> tuple[Params, dict[str, np.ndarray], dict[str, float], dict[str, Any]]:
    settings, seeds = config.tree["training"], config.tree["seeds"]
    total, stride = settings["epochs"], min(settings["evaluate_every"], settings["epochs"])
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
    step = training.supervised(rule, optimizer)
    epochs = training.over_seeds(training.epoch_scan(step, size))
    measure = training.evaluator(
        problem.rule, problem.cost, problem.data.task, unit=problem.data.unit
    )
    measure = jax.jit(jax.vmap(measure, in_axes=(0, None, None, 0)))
    rows, clock = jnp.asarray(problem.rows), _Clock()
    compiled: dict[int, Any] = {}
    per_epoch = rows.shape[1] // size
    good, row = jax.device_get(carry.params), {}
    if progress is not None:
        progress(0, total, {})
    for first in range(0, total, stride):
        count = min(stride, total - first)
        inputs = (carry, x, y, rows, keys[:, 2], jnp.asarray(first))
        if count not in compiled:
            with clock("compile"):
                compiled[count] = epochs.lower(*inputs, count).compile()
        with clock("train"):
            carry, trained = jax.block_until_ready(compiled[count](*inputs))
        with clock("evaluate"):
            values = {f"train_{k}" if k == "loss" else k: v[:, -1] for k, v in trained.items()}
            for split, chosen in (("validation", problem.validation), ("test", problem.test)):
                if chosen.shape[1]:
                    values |= _named(split, measure(carry.params, x, y, jnp.asarray(chosen)))
            values = jax.device_get(values)
        after = jax.device_get(carry.params)
        _check_finite(config, folder, np.asarray(trained["loss"]), values, first, good, after)
        good = after
        row = {"epoch": first + count, "step": (first + count) * per_epoch}
        row |= {name: float(np.mean(value)) for name, value in values.items()}
        row |= {"seconds": clock.spent["train"], "values": values}
        runs.append_json(folder / "metrics.jsonl", row)
        if progress is not None:
            progress(first + count, total, row)
        signal = stop()
        if signal is not None and first + count < total:
            runs.save_arrays(folder / "params.safetensors", good)
            raise Interrupted(
                signal, f"stopped after epoch {first + count} of {total}; saved {folder}"
            )
    with clock("evaluate"):
        values |= jax.device_get(_named("train", measure(carry.params, x, y, rows)))
    reported = {k: v for k, v in values.items() if k.startswith(("train", "val", "test", "solved"))}
    return good, reported, clock.spent, {k: v for k, v in row.items() if k != "values"}


def statistics(values: np.ndarray) -> dict[str, Any]:
    """mean, sample standard deviation (0 for one seed) and every seed's value."""
    values = np.asarray(values, np.float64)
    std = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return {"mean": float(values.mean()), "std": std, "values": values.tolist()}


class _Clock:
    """Adds up seconds by name."""

    def __init__(self) -> None:
        self.spent = {"compile": 0.0, "train": 0.0, "evaluate": 0.0}
        self._name = ""

    def __call__(self, name: str) -> _Clock:
        self._name = name
        return self

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.spent[self._name] += time.perf_counter() - self._began


def _named(split: str, metrics: dict[str, Any]) -> dict[str, Any]:
    """test_error, train_loss, …; `solved` is said of the run, not of a split."""
    shared = {"solved": metrics["solved"]} if "solved" in metrics else {}
    return {f"{split}_{k}": v for k, v in metrics.items() if k != "solved"} | shared


def _check_finite(
    config: Config, folder: Path, losses: Any, values: dict, first: int, good: Params, new: Params
) -> None:
    bad = ~np.isfinite(losses)
    late = [k for k, v in values.items() if k.endswith("loss") and not np.isfinite(v).all()]
    named = zip(trees.names(new), jax.tree.leaves(new), strict=True)
    late += [f"the parameter {k}" for k, v in named if not np.isfinite(v).all()]
    if not bad.any() and not late:
        return
    path = folder / "params.safetensors"
    runs.save_arrays(path, good)
    if bad.any():
        seed, epoch = np.argwhere(bad)[0][0], first + int(np.argwhere(bad.any(axis=0))[0, 0]) + 1
        seed = int(np.argmax(bad[:, epoch - first - 1]))
        what = f"the training loss of seed {seed} is {losses[seed, epoch - first - 1]}"
    else:
        epoch, what = first + losses.shape[1], f"{late[0]} is not finite"
    remedy = f"a smaller optimizer.learning_rate than {config.tree['optimizer']['learning_rate']}"
    if "unsettled" in values:  # a phase or an adjoint may have run away, whatever the weights
        remedy += ", or solvers under which every phase settles"
    raise Diverged(
        f"{config.path}: diverged in epoch {epoch}: {what}; try {remedy}; "
        f"the parameters of epoch {first} are in {path}"
    )


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


def _study(config: Config, folder: Path) -> dict[str, Any]:
    """Runs `run(config, folder)` of the study file that the config names; it returns metrics."""
    path = config.path.parent / config.tree["experiment"]
    path = path if path.exists() else Path(config.tree["experiment"])
    if not path.is_file():
        given = config.tree["experiment"]
        raise config.fault("experiment", given, "no such study file beside the config or here")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    runs.claim(folder)
    plain = config._replace(tree={k: v for k, v in config.tree.items() if k != "experiment"})
    _write_config(config, folder)
    about = {"name": config.name, "config": config.tree, "seeds": config.tree["seeds"]}
    summary = {**about, **module.run(plain, folder), "environment": runs.environment()}
    runs.write_json(folder / "summary.json", summary)
    return summary
