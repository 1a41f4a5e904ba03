"""Vision: one CNN by backprop and by feedback alignment, another by equilibrium propagation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from bpeq.experiment import Config, Runner, load_config, load_run, run_comparison

COLOURS = {
    "backprop": "#0072b2",
    "eqprop": "#009e73",
    "feedback_alignment": "#d55e00",
    "frozen_hidden": "#777777",
    "linear_readout": "#777777",
}


def run(
    config: Config, runner: Runner, *, digits: str = "digits_cnn.toml", smoke: bool = False
) -> dict[str, Any]:
    """Two comparisons with their null controls, in the folders mnist and digits; vision.png.

    Metrics: `test_error` of backprop's CNN on MNIST at the last epoch, with an ending for the other
    rows of the comparison; `test_error_digits_…` for every row of the one on digits.

    Args:
      digits: the config of the CNN on digits, beside this one.
      smoke: two epochs of digits in place of MNIST, and no other CNN.
    """
    first = config
    same = [f"{key}={getattr(config, key)}" for key in ("seed", "seeds", "precision")]
    if smoke:
        first = config.override('data={name="digits"}', "training.epochs=2")
    found = {}
    both = (
        ("mnist", first, ["backprop", "feedback_alignment"]),
        ("digits", load_config(config.folder / digits, same), ["eqprop", "backprop"]),
    )
    for name, each, rules in both[:1] if smoke else both:
        place, shown = runner.folder / name, lambda _: runner.progress or _silent
        result = run_comparison(each, rules, place, shown, runner.stop, resume=runner.resume)
        found[name] = result["rules"]
    metrics = {}
    for name, rows in found.items():
        for row, entry in rows.items():
            ending = f"_{row}" if name == "mnist" else f"_{name}_{row}"
            ending = ending.removeprefix("_backprop")
            metrics[f"test_error{ending}"] = entry["metrics"]["test_error"]["values"]
            for part in ("compile", "train", "evaluate"):
                runner.clock.spent[part] += entry["seconds"][part]
    draw(runner.folder, found).savefig(runner.folder / "vision.png", dpi=130)
    return metrics


def mistaken(folder: Path, count: int = 12) -> list[tuple[np.ndarray, int, int]]:
    """(image, label, taken for) of the test images that the first seed is most wrong about."""
    made = load_run(folder)
    test = made.data.test[0]
    outputs = jax.jit(made.rule.apply)(made.params, jnp.asarray(made.data.x[test]))
    taken, true = np.asarray(outputs.argmax(axis=-1)), made.data.y[test]
    sure = np.asarray(outputs.max(axis=-1) - outputs[np.arange(len(test)), true])
    worst = np.argsort(-sure)[:count]
    return [(made.data.x[test[i], ..., 0], int(true[i]), int(taken[i])) for i in worst if sure[i]]


def draw(folder: Path, found: dict[str, dict[str, Any]]) -> Figure:
    """First kernels by both rules, the worst mistakes, and every row's errors, seed by seed."""
    figure = Figure(figsize=(9.5, 6.0), layout="constrained")
    top, middle, bottom = figure.subfigures(3, 1, height_ratios=[1.1, 0.8, 1.5])
    halves = top.subfigures(1, 2)
    for half, rule in zip(halves, ("backprop", "feedback_alignment"), strict=True):
        half.suptitle(f"first kernels by {rule.replace('_', ' ')}", fontsize=10)
        kernels = np.asarray(load_run(folder / "mnist" / rule).params[0]["w"])[:, :, 0]
        for axes, kernel in zip(half.subplots(2, 8).flat, np.moveaxis(kernels, -1, 0), strict=True):
            axes.imshow(kernel, cmap="RdBu", vmin=-abs(kernel).max(), vmax=abs(kernel).max())
            axes.axis("off")
    middle.suptitle("what backprop's net is most wrong about: label → taken for", fontsize=10)
    cells = middle.subplots(1, 12)
    for axes in cells:
        axes.axis("off")
    for axes, (image, true, taken) in zip(
        cells, mistaken(folder / "mnist" / "backprop"), strict=False
    ):
        axes.imshow(image, cmap="gray_r")
        axes.set_title(f"{true} → {taken}", fontsize=9)
    for axes, (name, rows) in zip(bottom.subplots(1, 2), found.items(), strict=False):
        for place, (row, entry) in enumerate(reversed(rows.items())):
            values = 100 * np.array(entry["metrics"]["test_error"]["values"])
            axes.plot(values, np.full(len(values), place), "o", color=COLOURS[row], alpha=0.5)
            axes.plot(values.mean(), place, "|", color=COLOURS[row], ms=18, mew=2.5)
        axes.set_yticks(range(len(rows)), [row.replace("_", " ") for row in reversed(rows)])
        axes.set(xscale="log", xlabel="test error, %", ylim=(-0.6, len(rows) - 0.4))
        axes.set_title(f"{name}: a dot a seed, a bar their mean", fontsize=10)
        axes.xaxis.set_major_locator(LogLocator(subs=[1, 2, 5]))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _silent(done: int, total: int, row: dict[str, Any]) -> None: ...
