"""Sequences: the adding problem, by a plain recurrent net, a GRU and an LSTM.

Two numbers of a long sequence are marked, and their sum is asked for at the end: the error must
find its way back through all the steps between.
"""

from __future__ import annotations

from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge
from jaxtyping import Array, Float
from matplotlib.figure import Figure

from bpeq.costs import squared_error
from bpeq.experiment import Config, Runner, build_networks, learner, seed_keys
from bpeq.settings import Count
from bpeq.training.loops import Carry, over_seeds, step_scan
from bpeq.types import Batch, Key, Layer, Params, Step

Length = Annotated[int, Ge(2)]

LENGTHS = [50, 100]
TRIVIAL = 1 / 6
"""The error of always answering 1: the variance of a sum of two uniform numbers."""
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#a8508c")


def run(
    config: Config,
    runner: Runner,
    *,
    lengths: list[Length] = LENGTHS,
    steps: Count = 3000,
    batch_size: Count = 64,
    tests: Count = 2000,
    smoke: bool = False,
) -> dict[str, Any]:
    """Leaves sequence.png. Metrics, for each network NAME of the config and length T, `[seeds]`:

    `mse_NAME_T`, the mean squared error of the sum on sequences not trained on, and
    `reach_NAME_T`, ‖∂C/∂x_1‖ / ‖∂C/∂x_T‖ before training; `mse_trivial`, that of always answering
    1.

    Args:
      lengths: of the sequences.
      steps, batch_size: updates, and fresh sequences an update.
      tests: sequences to measure on.
      smoke: 200 updates on 5 steps, for the tests.
    """
    if not lengths:
        raise config.error("study.lengths", lengths, "must be one or more")
    if smoke:
        lengths, steps, tests = [5], min(steps, 200), min(tests, 500)
    named = config.networks or ["rnn"]
    nets = build_networks(config, dict.fromkeys(named, ((None, 2), (1,))))
    keys = seed_keys(config.seed, config.seeds)
    metrics: dict[str, Any] = {"mse_trivial": TRIVIAL}
    curves: dict[str, np.ndarray] = {}
    reaches: dict[str, np.ndarray] = {}
    for length in lengths:
        test = adding(jax.random.fold_in(jax.random.key(config.seed), 1), tests, length)
        for name, net in nets.items():
            place, own = f"{name}_{length}", net._replace(shape=(length, *net.shape[1:]))
            carry, step = learner(config, own, squared_error(), keys, steps)
            with runner.clock("evaluate"):
                back = reaches[place] = jax.device_get(reach(net.layer, carry.params, test))
            curve = learn(runner, place, net.layer, carry, step, keys, test, steps, batch_size)
            curves[place], metrics[f"mse_{place}"] = curve, curve[-1]
            metrics[f"reach_{place}"] = back[:, 0] / back[:, -1]
    draw(curves, reaches, list(nets), lengths, steps).savefig(
        runner.folder / "sequence.png", dpi=110
    )
    return metrics


def adding(key: Key, count: int, length: int) -> Batch:
    """x `[count, length, 2]`: numbers from [0, 1], and marks: a 1 in either half, 0 elsewhere.

    y `[count, 1]`: the sum of the two numbers marked.

    Source: Hochreiter & Schmidhuber 1997, Long short-term memory, experiment 4; the marks as in Le,
    Jaitly & Hinton 2015, A simple way to initialize recurrent networks of rectified linear units.
    """
    number_key, first_key, second_key = jax.random.split(key, 3)
    numbers = jax.random.uniform(number_key, (count, length))
    first = jax.random.randint(first_key, (count,), 0, length // 2)
    second = jax.random.randint(second_key, (count,), length // 2, length)
    marks = jax.nn.one_hot(first, length) + jax.nn.one_hot(second, length)
    y = jnp.sum(numbers * marks, axis=1, keepdims=True)
    return Batch(jnp.stack([numbers, marks], axis=-1), y)


def learn(
    runner: Runner,
    place: str,
    net: Layer,
    carry: Carry,
    step: Step,
    keys: Key,
    test: Batch,
    steps: int,
    batch_size: int,
) -> Float[np.ndarray, "rows seeds"]:
    """Takes every seed's steps, and returns the errors on `test` on the way."""
    length = test.x.shape[1]

    @jax.jit
    @jax.vmap
    def mse(own: Params) -> Array:
        return jnp.mean((net.forward(own, test.x)[0] - test.y) ** 2)

    _, _, rows = runner.repeat(
        over_seeds(step_scan(step, lambda key: adding(key, batch_size, length))),
        carry,
        (keys[:, 2],),
        total=steps,
        every=max(steps // 60, 1),
        measure=lambda carry: {"mse": mse(carry.params)},
        name=place,
        params=lambda carry: carry.params,
    )
    return np.array([row["values"][f"{place}_mse"] for row in rows])


def reach(net: Layer, params: Params, test: Batch) -> Float[Array, "seeds steps"]:
    """‖∂C/∂x_t‖, root mean square over examples: how much of the error gets back to step t."""

    def one(own: Params) -> Array:
        output, residuals = net.forward(own, test.x)
        _, dx = net.backward(own, own, residuals, squared_error().error(output, test.y))
        return jnp.sqrt(jnp.mean(jnp.sum(dx * dx, axis=-1), axis=0))

    return jax.jit(jax.vmap(one))(params)


def draw(
    curves: dict[str, np.ndarray],
    reaches: dict[str, np.ndarray],
    names: list[str],
    lengths: list[int],
    steps: int,
) -> Figure:
    """A row for each length: the error over the updates, and how far back it reaches."""
    figure = Figure(figsize=(10, 3.3 * len(lengths) + 0.4), layout="constrained")
    panels = figure.subplots(len(lengths), 2, squeeze=False)
    for row, length in zip(panels, lengths, strict=True):
        for name, colour in zip(names, COLOURS, strict=False):
            curve, back = curves[f"{name}_{length}"], reaches[f"{name}_{length}"]
            updates = np.arange(1, len(curve) + 1) * steps / len(curve)
            row[0].fill_between(updates, curve.min(1), curve.max(1), color=colour, alpha=0.18, lw=0)
            row[0].plot(updates, np.median(curve, 1), color=colour, lw=2, label=name)
            back = np.median(back / back[:, -1:], axis=0)
            row[1].plot(np.arange(1, length + 1), back, color=colour, lw=2, label=name)
        row[0].axhline(TRIVIAL, color="#77828e", lw=1, ls="--", label="always 1")
        row[0].set(xlabel="update", ylabel="mean squared error")
        row[1].set(xlabel="step t of the sequence", ylabel="‖∂C/∂x_t‖ / ‖∂C/∂x_T‖")
        row[0].set_title(f"length {length}: error, median and range", fontsize=11)
        row[1].set_title("what of the error gets back to step t, before training", fontsize=11)
        for axes in row:
            axes.set_yscale("log")
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(axis="y", color="#e2e6eb", lw=0.8)
    panels[0][0].legend(frameon=False, fontsize=9, loc="lower left")
    return figure
