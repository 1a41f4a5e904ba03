"""Compares rules: same data order, same initial weights, null controls, fidelity, costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from bpeq.analysis.compare_rules import function_of, functions_note, remark
from bpeq.analysis.gradient_cost import CompiledGradient, compiled_gradient, measure_gradients
from bpeq.analysis.paired_differences import paired
from bpeq.config.loading import Config, ConfigError
from bpeq.config.problem import Problem, build, build_data
from bpeq.core.paths import user_path
from bpeq.experiment import train, tune
from bpeq.experiment.distributed import device_mesh
from bpeq.experiment.rule_fidelity import before_and_after, first_examples, initial_point
from bpeq.experiment.runner import silent
from bpeq.experiment.saved_run import saved_params
from bpeq.layers import cut
from bpeq.runs import lock, run_folder

CONTROLS = {
    "linear_readout": "null control: no hidden layer, trained by backprop on {}",
    "frozen_hidden": "null control: hidden layers stay random, the last block is trained on {}",
}


def run_comparison(
    config: Config,
    rules: Sequence[str],
    folder: Path,
    progress: Callable[[str], train.Progress] | None = None,
    stop: Callable[[], int | None] = lambda: None,
    trials: int | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Trains a config under each rule and the null controls, and writes comparison.json.

    The folder gets one run folder for each row, named by the rule. With `trials` it also gets
    tuning/NAME/TRIAL. A row that diverges has a message under `diverged`, and cost and fidelity at
    its last good weights. The other rows continue.

    Args:
      config: the config that all rows share.
      rules: names or dotted paths. Each rule takes its own [rules.NAME] settings.
      folder: the folder of the comparison.
      progress: maps the name of a row to the progress callback of its run; None: progress is not
        reported.
      stop: returns the number of a signal that asks to stop, else None. The default never stops.
      trials: the number of tuning trials of every row and null control, on the validation split,
        before its final run (see `tune.tune`); None: every row uses the settings of the config.
      resume: finished rows and trials in the folder are reused, and unfinished ones continue.

    Returns:
      The content of comparison.json.

    Raises:
      ConfigError: a setting is wrong. Nothing was trained.
      DataError: the data are at fault. Nothing was trained.
      FileExistsError: the folder holds something else. Nothing was trained.
      Interrupted: `stop` returned a signal. comparison.json then has the finished rows and trials,
        without costs, and the message under `interrupted`. Without a finished row or trial there is
        no comparison.json.
    """
    if trials is not None and trials < 1:
        raise ConfigError("--tune", "", trials, "must be a whole number >= 1")
    folder, data = user_path(folder), build_data(config)
    configs = {name: config.with_rule(name) for name in rules}
    configs |= _controls(config.for_controls())
    problems: dict[str, Problem] = {}
    for name, each in configs.items():
        problems[name] = build(each, data)
        device_mesh(each)
        if trials is not None:
            tune.validation_metric(each, problems[name], "--tune")
    if resume and (folder / "config.toml").exists():
        raise FileExistsError(f"the folder {folder} already holds a run; name a new one")
    rows: dict[str, Any] = {}
    tuned: dict[str, Any] = {}
    gradients: dict[str, CompiledGradient] = {}
    stopped: train.Interrupted | None = None
    track = progress or (lambda name: silent)
    with lock.lock_folder(folder, resume):
        # Tune and train every row in turn.
        try:
            for name, each in configs.items():
                inside = name.replace(":", ".")
                if trials is not None:
                    report = track(f"{name}, tuning")
                    tuned[name] = {}
                    args = (trials, folder / "tuning" / inside, report, stop, tuned[name], resume)
                    configs[name], _ = tune.tune(each, problems[name], *args)
                    problems[name] = build(configs[name], problems[name].data)
                report = track(name)
                row = (configs[name], problems[name], folder / inside, report, stop, resume)
                rows[name], gradients[name] = _row(name, *row)
        except train.Interrupted as error:
            stopped = error
            if not rows and not any(record["trials"] for record in tuned.values()):
                raise
        else:
            # Time the gradients of all rows together, after the training.
            with jax.enable_x64(config.double):
                for name, cost in measure_gradients(gradients).items():
                    rows[name]["cost"] = cost._asdict()
        comparison = {
            "name": config.name,
            "config": config.as_dict(),
            "seeds": config.seeds,
            "rules": rows,
            "paired": paired(rows),
            **({"tuning": tuned} if trials is not None else {}),
            "notes": _notes(config, configs, problems),
            "environment": run_folder.environment(),
            **({"interrupted": str(stopped)} if stopped else {}),
        }
        run_folder.write_json(folder / "comparison.json", comparison)
        if stopped:
            raise stopped
        return comparison


def _row(
    name: str,
    config: Config,
    problem: Problem,
    folder: Path,
    progress: train.Progress,
    stop: Callable[[], int | None],
    resume: bool,
) -> tuple[dict[str, Any], CompiledGradient]:
    """Trains one rule or control; returns its row and the compiled gradient for the cost.

    The gradient is that of the first seed's first batch, at the weights after training.
    """
    control, epochs = name in CONTROLS, config.training.epochs
    note = CONTROLS[name].format(config.cost.name) if control else remark(problem.rule)
    row: dict[str, Any] = {"metrics": {}, "control": control, "note": note}
    summary: dict[str, Any] = {}
    try:
        summary = train.run(config, folder, progress, stop, problem, resume)
        row |= {"metrics": summary["metrics"], "seconds": summary["seconds"]}
        last = {name: statistic["mean"] for name, statistic in summary["metrics"].items()}
    except train.Diverged as error:
        row["diverged"] = str(error)
        last = {"said": "diverged"}
    progress(epochs, epochs, {"said": "measuring"})
    with jax.enable_x64(config.double):
        trained = saved_params(folder, problem, config.seeds)
        if not control:
            row["fidelity"] = summary.get("fidelity") or before_and_after(config, problem, trained)
        point = initial_point(config, problem)
        params = jax.tree.map(lambda leaf: leaf[0], trained)
        batch = first_examples(config, problem, config.training.batch_size)
        gradient = compiled_gradient(problem.rule, params, batch, point.state, point.key)
    progress(epochs, epochs, last)
    return row, gradient


def raise_diverged(comparison: dict[str, Any]) -> None:
    """Raises Diverged if a row of a comparison diverged.

    Args:
      comparison: the content of comparison.json.

    Raises:
      Diverged: with the message of the first such row and the names of the others.
    """
    lost = {name: row["diverged"] for name, row in comparison["rules"].items() if "diverged" in row}
    if lost:
        first, *others = lost
        also = f"; also diverged: {', '.join(others)}" if others else ""
        raise train.Diverged(f"{lost[first]}{also}")


def _controls(config: Config) -> dict[str, Config]:
    """The null controls: a linear readout, and the network with frozen hidden layers.

    Without a [network] there is no network to freeze, and a single dense layer is the readout.
    """
    if config.network is None:
        alone = {"name": "dense", "features": build_data(config).outputs}
        config = config.changed(network={"layers": [{"name": "flatten"}, alone]})
    assert config.network is not None
    specs = config.network.as_dict()["layers"]
    network = config.build_network()
    if config.cost.name == "softmax_cross_entropy" and network.parts[-1].activation:
        specs.pop()  # logits must be unbounded, or the control would be too weak
        config = config.changed(network={"layers": specs})
    optimizer = config.optimizer.settings
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


def _notes(config: Config, configs: dict[str, Config], problems: dict[str, Problem]) -> list[str]:
    """The notes of a comparison: different functions, overlapping splits, what the costs mean."""
    names = [name for name in configs if name not in CONTROLS]
    groups = {name: _function(configs[name], config, problems[name]) for name in names}
    notes = [functions_note(groups)] if functions_note(groups) else []
    if next(iter(problems.values())).data.train.shape[0] > 1:
        notes.append(
            "Seeds use different splits of one data set, whose training parts overlap: the "
            "intervals are approximate."
        )
    notes.append(
        "Cost, at the trained weights: sweeps, an example's mean, all phases together; macs, "
        "products and convolutions of one batch, until its slowest example has settled; seconds, "
        "the median of warm compiled gradients of one batch, all rows in turn on this machine."
    )
    return notes


def _function(config: Config, usual: Config, problem: Problem) -> str:
    """Describes the function that a row differentiates, and its differences from the config."""
    reference = problem.rule.info.reference
    settled = "the settled system" if problem.relaxes else "the feed-forward map"
    function = settled if reference is None else function_of(reference)
    differences = []
    for section in ["cost", *(["system"] if function == "the settled system" else [])]:
        here, usually = getattr(config, section).as_dict(), getattr(usual, section).as_dict()
        keys = ["name"] if here["name"] != usually["name"] else here
        changed = [key for key in keys if here[key] != usually.get(key)]
        differences += [f"{section}.{key} = {here[key]!r}" for key in changed]
    differences += ["another network"] * (config.network != usual.network)
    return f"{function} with {', '.join(differences)}" if differences else function
