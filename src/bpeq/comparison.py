"""Rules side by side: same data order, same initial weights, null controls, costs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bpeq import experiment, runs
from bpeq.accounting import count_macs, temporary_bytes
from bpeq.config import Config
from bpeq.layers import cut
from bpeq.problem import Problem, build
from bpeq.types import Batch

CONTROLS = {
    "linear_readout": "null control: no hidden layer, trained by backprop on {}",
    "frozen_hidden": "null control: hidden layers stay random, the last block is trained on {}",
}


def compare(
    config: Config,
    rules: Sequence[str],
    folder: Path,
    progress: Callable[[str], experiment.Progress] | None = None,
    stop: Callable[[], int | None] = lambda: None,
) -> dict[str, Any]:
    """Trains a config under each rule and the null controls, and sets the results side by side.

    The folder gets one run folder a row, named by the rule, and `comparison.json`.

    Args:
      rules: names or dotted paths, each with its own [rules.NAME] settings.
      progress: given a row's name, makes the callback for its run.

    Raises:
      ConfigError, DataError, FileExistsError: before anything is trained. Diverged, Interrupted:
        after saving; the rows that were finished stay.
    """
    configs = {name: config.with_rule(name) for name in rules}
    configs |= _controls(config.for_controls())
    problems: dict[str, Problem] = {}
    for name, each in configs.items():
        shared = next(iter(problems.values())).data if problems else None
        problems[name] = build(each, shared)
    runs.claim(folder)
    rows: dict[str, Any] = {}
    for name, each in configs.items():
        report = progress(name) if progress else None
        path = folder / name.replace(":", ".")
        summary = experiment.run(each, path, report, stop, problems[name])
        rows[name] = {
            "metrics": summary["metrics"],
            "cost": _cost(each, problems[name], summary),
            "control": name in CONTROLS,
            "note": _note(name, each),
        }
    comparison = {
        "name": config.name,
        "config": config.tree,
        "seeds": config.tree["seeds"],
        "rules": rows,
        "paired": paired(rows),
        "notes": _notes(configs, problems),
        "environment": runs.environment(),
    }
    runs.write_json(folder / "comparison.json", comparison)
    return comparison


def paired(rows: dict[str, Any], level: float = 0.95) -> list[dict[str, Any]]:
    """a − b for every two rows, seed by seed, with Student's interval for the mean difference.

    On test_error, or test_rmse for a regression. One seed has no interval.

    Example:
      >>> rows = {n: {"metrics": {"test_error": {"values": v}}} for n, v in
      ...         {"a": [0.1, 0.2], "b": [0.0, 0.2]}.items()}
      >>> [(p["a"], p["b"], round(p["mean"], 3), round(p["high"], 3)) for p in paired(rows)]
      [('a', 'b', 0.05, 0.685)]
    """
    from scipy import stats

    found = []
    for a, b in itertools.combinations(rows, 2):
        known = [set(rows[name]["metrics"]) for name in (a, b)]
        metric = next((m for m in ("test_error", "test_rmse") if all(m in k for k in known)), None)
        if metric is None:
            continue
        values = [np.array(rows[name]["metrics"][metric]["values"]) for name in (a, b)]
        gap, n = values[0] - values[1], len(values[0])
        half = None
        if n > 1:
            half = float(stats.t.ppf(0.5 + level / 2, n - 1) * gap.std(ddof=1) / np.sqrt(n))
        mean = float(gap.mean())
        low, high = (None, None) if half is None else (mean - half, mean + half)
        found.append({"a": a, "b": b, "metric": metric, "mean": mean, "low": low, "high": high})
        found[-1] |= {"level": level, "n": n}
    return found


def _controls(config: Config) -> dict[str, Config]:
    """Backprop on a linear readout, and on the same net with its hidden blocks frozen.

    Without a [network], as with a system of the user's own, there is no net to freeze.
    """
    if "network" not in config.tree:
        dense = {"name": "dense", "features": config.build("data").outputs}
        config = config.changed(network={"layers": [{"name": "flatten"}, dense]})
    specs = list(config.tree["network"]["layers"])
    network = config.build_network()
    assert network is not None
    if config.tree["cost"]["name"] == "softmax_cross_entropy" and network.parts[-1].activation:
        specs.pop()  # its logits are unbounded: a squashed output would cripple the control
        config = config.changed(network={"layers": specs})
    optimizer = config.tree["optimizer"]
    rates = optimizer.get("layer_rates") or [optimizer["learning_rate"]] * len(cut(network))
    last = next((spec for spec in reversed(specs) if spec["name"] == "dense"), None)
    controls = {}
    if last is not None:
        layers = [{"name": "flatten"}, last]
        readout = config.changed(network={"layers": layers})
        controls["linear_readout"] = readout.changed(optimizer={"layer_rates": [rates[-1]]})
    if len(rates) > 1:
        frozen = [0.0] * (len(rates) - 1) + [rates[-1]]
        controls["frozen_hidden"] = config.changed(optimizer={"layer_rates": frozen})
    return controls


def _cost(config: Config, problem: Problem, summary: dict[str, Any]) -> dict[str, float]:
    """One gradient of one seed's batch, in sweeps, multiply-accumulates, seconds and bytes."""
    with jax.enable_x64(config.tree["precision"] == "float64"):
        key = jax.random.key(0)
        params, state = problem.rule.init(key, problem.init(key))
        chosen = problem.rows[0][: config.tree["training"]["batch_size"]]
        dtype = jnp.result_type(float)
        classes = problem.data.task == "classification"
        x = jnp.asarray(problem.data.x[chosen], dtype)
        y = jnp.asarray(problem.data.y[chosen], jnp.int32 if classes else dtype)
        last = summary["last"]
        # A rule settles freely first; its other phases follow.
        phases = sorted((k for k in last if k.startswith("sweeps_")), key="sweeps_free".__ne__)
        args = (params, Batch(x, y), state, key)
        # A loop to a residual sweeps once before it starts.
        macs = count_macs(problem.rule.estimate, *args, trips=[last[k] - 1 for k in phases])
        memory = temporary_bytes(problem.rule.estimate, *args)
    seconds = summary["seconds"]["train"] / summary["updates"] / summary["seeds"]
    return {"sweeps": last.get("sweeps", 0.0), "macs": macs, "seconds": seconds, "bytes": memory}


def _note(name: str, config: Config) -> str:
    return CONTROLS.get(name, "").format(config.tree["cost"]["name"])


def _notes(configs: dict[str, Config], problems: dict[str, Problem]) -> list[str]:
    names = [name for name in configs if name not in CONTROLS]
    relaxing = [name for name in names if problems[name].relaxes]
    direct = [name for name in names if not problems[name].relaxes]
    notes = []
    if relaxing and direct:
        notes.append(
            f"{', '.join(direct)} on the feed-forward map and {', '.join(relaxing)} on the settled "
            "system differentiate different functions of the same parameters."
        )
    if next(iter(problems.values())).data.train.shape[0] > 1:
        notes.append(
            "Seeds use different splits of one data set, whose training parts overlap: the "
            "intervals are approximate."
        )
    notes.append(
        "seconds: training time an update and seed, all seeds side by side on this machine; macs: "
        "one batch's products and convolutions; sweeps: an example's mean, all phases together."
    )
    return notes
