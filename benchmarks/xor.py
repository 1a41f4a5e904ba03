"""Fifty seeds of XOR at once, by vmap, against fifty runs of the textbook's NumPy loop."""

from __future__ import annotations

import functools
import runpy
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.timing import Effort, Found, Program, compiled, interleaved, ratio, row
from bpeq import costs, data, rules
from bpeq.layers import chain, dense, sigmoid
from bpeq.training import loops

RATIOS = ("numpy_over_xor_50",)
SEEDS, EPOCHS, RATE = 50, 10_000, 1.0
TIMED = 2
"""Runs of the NumPy loop in a round; their time is scaled to 50."""
STUDY = Path(__file__).parents[1] / "experiments" / "xor" / "study.py"


def run(effort: Effort) -> Found:
    """Both programs from the same weights; compiling stands apart."""
    epochs = EPOCHS // 10 if effort.quick else EPOCHS
    program, params = ours(epochs)
    loop = partial(textbook, params, epochs)
    programs = {"bpeq": program, "NumPy": Program(loop)}
    seconds = interleaved(programs, max(3, effort.rounds // 3))
    seconds["NumPy"] = [s * SEEDS / TIMED for s in seconds["NumPy"]]
    losses = np.asarray(program.call()[1]["loss"])[:TIMED, -1]
    more = {"seeds": SEEDS, "epochs": epochs}
    rows = [
        row("xor bpeq", seconds["bpeq"], compile_seconds=program.compile_seconds, **more),
        row("xor NumPy", seconds["NumPy"], scaled_from=TIMED, **more),
        {"name": "xor final losses", "bpeq": losses.tolist(), "NumPy": loop()},
    ]
    return Found(rows, {"numpy_over_xor_50": ratio(seconds, "NumPy", "bpeq")})


def ours(epochs: int) -> tuple[Program, Any]:
    """`epochs` epochs of all seeds as one program, and their initial weights."""
    parts = [
        layer for n in (4, 1) for layer in (dense(n, init="normal", bias_init="normal"), sigmoid())
    ]
    network = chain(*parts)
    rule, optimizer = rules.backprop(network, costs.squared_error()), optax.sgd(RATE)
    keys = jax.vmap(jax.random.key)(jnp.arange(SEEDS))
    params = jax.vmap(lambda key: network.init(key, (2,))[0])(keys)
    carry = jax.vmap(partial(loops.start, rule, optimizer))(params, keys)
    found = data.xor()
    x, y, rows = jnp.asarray(found.x), jnp.asarray(found.y), jnp.arange(4)
    run = partial(loops.epoch_scan(loops.supervised(rule, optimizer), 4), count=epochs)
    all_seeds = loops.each_seed(run, (0, None, None, None, 0, None))
    return compiled(all_seeds, carry, x, y, rows, keys, jnp.asarray(0)), params


def textbook(params: Any, epochs: int) -> list[float]:
    """The study's NumPy program, from the first seeds' weights; their final losses."""
    program = _study()["numpy_program"]
    losses = []
    for seed in range(TIMED):
        weights = (params[i][name][seed] for i in (0, 2) for name in ("w", "b"))
        copied = [np.array(w, np.float64) for w in weights]
        losses.append(float(program(*copied, RATE, [epochs])[-1, 0]))
    return losses


@functools.cache
def _study() -> dict[str, Any]:
    return runpy.run_path(str(STUDY))
