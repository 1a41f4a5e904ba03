"""XOR: the textbook's NumPy program and bpeq from the same initial weights, seeds as bands."""

from __future__ import annotations

import json
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from bpeq.experiment import Config, Runner, build, seed_keys
from bpeq.experiment import run as run_config

RATES = (1.0, 0.1)
OURS, TEXTBOOK = "#0072b2", "#d55e00"


def run(config: Config, runner: Runner) -> dict[str, Any]:
    """Trains at both rates with both programs; leaves xor.png and returns the shares solved.

    Metrics: `solved`, `solved_textbook` at rate 1.0; the same with `_slow` at rate 0.1; and
    `loss_gap`, the largest difference of the two programs' final losses over the seeds at rate 1.0.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    metrics: dict[str, Any] = {}
    for place, rate in enumerate(RATES):
        at_rate = config.changed(optimizer={"learning_rate": rate})
        ours = runner.folder / f"rate-{rate}"
        summary = run_config(at_rate, ours, resume=runner.resume)
        rows = [json.loads(line) for line in (ours / "metrics.jsonl").read_bytes().splitlines()]
        curve = np.array([row["values"]["test_loss"] for row in rows])
        epochs = [row["epoch"] for row in rows]
        with runner.clock("textbook"):
            weights = initial_weights(at_rate)
            textbook = np.stack([numpy_program(*w, rate, epochs) for w in weights], 1)
        ending = "" if place == 0 else "_slow"
        metrics[f"solved{ending}"] = summary["metrics"]["solved"]["values"]
        metrics[f"solved_textbook{ending}"] = textbook[-1, :, 1]
        if place == 0:
            metrics["loss_gap"] = np.abs(textbook[-1, :, 0] - curve[-1])
        draw(figure.add_subplot(1, 2, place + 1), rate, epochs, curve, textbook[..., 0], metrics)
        for part in ("compile", "train"):
            runner.clock.spent[part] += summary["seconds"][part]
    figure.savefig(runner.folder / "xor.png", dpi=160)
    return metrics


def initial_weights(config: Config) -> list[tuple[np.ndarray, ...]]:
    """(w1, b1, w2, b2) of every seed, in float64."""
    problem = build(config)
    keys = seed_keys(config.seed, config.seeds)
    params = jax.vmap(problem.init)(keys[:, 0])
    flat = [np.asarray(params[i][name], np.float64) for i in (0, 2) for name in ("w", "b")]
    return [tuple(leaf[seed].copy() for leaf in flat) for seed in range(config.seeds)]


def numpy_program(
    w1: np.ndarray,
    b1: np.ndarray,
    w2: np.ndarray,
    b2: np.ndarray,
    rate: float,
    record: list[int],
) -> np.ndarray:
    """Forward, δ's, mean gradient over the four rows, descent; (loss, solved) after some epochs."""
    x = np.array([[0.0, 0], [0, 1], [1, 0], [1, 1]])
    y = np.array([[0.0], [1], [1], [0]])
    wanted, kept = set(record), []
    for epoch in range(1, max(record) + 1):
        hidden = 1 / (1 + np.exp(-(x @ w1 + b1)))
        output = 1 / (1 + np.exp(-(hidden @ w2 + b2)))
        delta2 = (output - y) * output * (1 - output)
        delta1 = (delta2 @ w2.T) * hidden * (1 - hidden)
        w2 -= rate * hidden.T @ delta2 / 4
        b2 -= rate * delta2.sum(axis=0) / 4
        w1 -= rate * x.T @ delta1 / 4
        b1 -= rate * delta1.sum(axis=0) / 4
        if epoch in wanted:
            hidden = 1 / (1 + np.exp(-(x @ w1 + b1)))
            output = 1 / (1 + np.exp(-(hidden @ w2 + b2)))
            loss = 0.5 * ((output - y) ** 2).sum() / 4
            kept.append((loss, float(((output > 0.5) == (y > 0.5)).all())))
    return np.array(kept)


def draw(
    axes: Any,
    rate: float,
    epochs: list[int],
    ours: np.ndarray,
    textbook: np.ndarray,
    metrics: dict[str, Any],
) -> None:
    """Median and min-max band of bpeq's losses, and the textbook program's median on top."""
    axes.fill_between(epochs, ours.min(1), ours.max(1), color=OURS, alpha=0.18, lw=0)
    axes.plot(epochs, np.median(ours, 1), color=OURS, lw=3, label="bpeq, median and range")
    for edge in (textbook.min(1), textbook.max(1)):
        axes.plot(epochs, edge, color=TEXTBOOK, lw=0.8, ls=":")
    axes.plot(
        epochs, np.median(textbook, 1), color=TEXTBOOK, lw=1.2, ls="--", label="NumPy, the same"
    )
    ending = "" if rate == RATES[0] else "_slow"
    solved = [np.mean(metrics[f"solved{name}{ending}"]) for name in ("", "_textbook")]
    axes.set_title(
        f"learning rate {rate}: solved by {solved[0]:.0%} (bpeq), {solved[1]:.0%} (NumPy)",
        fontsize=10,
    )
    axes.set(yscale="log", xlabel="epoch", ylabel="loss ½(o − y)², mean of four rows")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
