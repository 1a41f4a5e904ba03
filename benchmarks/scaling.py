"""How an update of EP and of backprop grows with batch, width, depth, sweeps and seeds."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from benchmarks import nets
from benchmarks.timing import Effort, Found, Program, compiled, interleaved, row
from bpeq import rules, systems
from bpeq.training import loops
from bpeq.types import LearningRule

RATIOS: tuple[str, ...] = ()


class Point(NamedTuple):
    """784-width-…-10 of so many hidden layers; what one update of it takes."""

    batch: int = 64
    width: int = 256
    depth: int = 1
    sweeps: int = 30
    seeds: int = 1


AXES = {
    "batch": (8, 32, 128, 512),
    "width": (64, 256, 1024),
    "depth": (1, 2, 4),
    "sweeps": (10, 30, 100),
    "seeds": (1, 4, 16),
}


def run(effort: Effort) -> Found:
    """A row a point and rule, from the initial weights; EP by 30 + 10 sweeps unless it says."""
    rows: list[dict[str, Any]] = []
    for axis, values in AXES.items():
        if effort.quick and axis != "batch":
            continue
        programs = {}
        for value in values[:2] if effort.quick else values:
            point = Point(**{axis: value})
            for series, rule in made(point).items():
                programs[series, value] = update(rule, point)
        seconds = interleaved(programs, max(3, effort.rounds // 3))
        for (series, value), times in seconds.items():
            name = f"scaling {series}, {axis} {value}"
            rows.append(row(name, times, series=series, axis=axis, value=value))
    return Found(rows, {})


def made(point: Point) -> dict[str, LearningRule]:
    """The rules of a point; backprop has no sweeps, and stands at each of them all the same."""
    network = nets.mlp(*[point.width] * point.depth)
    return {
        "backprop": rules.autodiff(network, nets.COST),
        "eqprop": nets.fixed(systems.hopfield(network), point.sweeps, max(1, point.sweeps // 3)),
    }


def update(rule: LearningRule, point: Point) -> Program:
    """Updates of all seeds, side by side."""
    images, optimizer = nets.images(), optax.sgd(nets.RATE)
    x = images.x.reshape(-1, 784)
    count = max(2, 256 // (point.batch * point.seeds))
    network = nets.mlp(*[point.width] * point.depth)
    keys = jax.vmap(jax.random.key)(jnp.arange(point.seeds))

    def start(key: jax.Array) -> loops.Carry:
        return loops.start(rule, optimizer, network.init(key, (784,))[0], key)

    run = loops.epoch_scan(loops.supervised(rule, optimizer), point.batch)
    side_by_side = loops.each_seed(partial(run, count=1), (0, None, None, None, 0, None))
    rows = jnp.resize(images.rows, (point.batch * count,))
    args = jax.vmap(start)(keys), x, images.y, rows, keys, jnp.asarray(0)
    return compiled(side_by_side, *args, steps=count)
