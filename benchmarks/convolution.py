"""The convolutional network on 28 × 28 pictures, batch 100: a sweep, and an update."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from benchmarks import nets
from benchmarks.eqprop import fidelity
from benchmarks.timing import (
    Effort,
    Found,
    Program,
    Seconds,
    Skipped,
    compiled,
    interleaved,
    ratio,
    row,
    timed_rows,
)
from bpeq import rules, solvers
from bpeq.rules import free_phase
from bpeq.training import loops
from bpeq.types import LearningRule

RATIOS = ("cnn_sweep_over_floor", "cnn_fixed", "cnn_certified")
BATCH, JUDGED, MORE, LESS, ROUNDS = 100, 48, 8, 2, 3
FIXED, CERTIFIED = "eqprop fixed 30 + 10", "eqprop accelerated"
IN_SCAN = "backprop within a scan"
FREE, NUDGED = (3e-3, 100), (3e-4, 20)
"""Tolerance and sweeps at most: with less the gradient is worse than that of 30 + 10 sweeps."""
PIXELS, PATCH, CHANNELS = 8 * 8, 5 * 5 * 32, 64
"""The second convolution: outputs of an example, inputs of one output, output channels."""


def run(effort: Effort) -> Found:
    """Milliseconds of a sweep and of updates; the floor is the second layer's two convolutions."""
    if effort.quick:
        raise Skipped("quick")
    task = nets.convolutional(effort.quick)
    sweeps = sweeping(task)
    seconds = interleaved(sweeps, effort.rounds)
    flops = 2 * 2.0 * BATCH * PIXELS * PATCH * CHANNELS
    seconds["a sweep"] = _difference(seconds)
    seconds["floor"] = [flops / rate for rate in _rates(seconds)]
    rows = [row(f"cnn {name}", times, batch=BATCH) for name, times in seconds.items()]
    made = {
        "backprop": rules.autodiff(task.network, nets.COST),
        FIXED: nets.fixed(task.system),
        CERTIFIED: accelerated(task),
    }
    scanned = {name: nets.steps(task, rule, BATCH, 1) for name, rule in made.items()}
    slow = {IN_SCAN: scanned.pop("backprop")}
    programs = {"backprop": alone(task, made["backprop"]), **scanned}
    updates = interleaved(programs, ROUNDS)
    updates |= interleaved(slow, 1)
    more = {"batch": BATCH, "net": task.name, "trained": task.trained, "test_error": task.error}
    rows += [
        {**r, "name": f"cnn {r['name']}"} for r in timed_rows(updates, programs | slow, **more)
    ]
    settle = solvers.anderson(1e-5, 300, window=3, near=0.05)
    judged = {f"cnn {name}": made[name] for name in (FIXED, CERTIFIED)}
    judged |= {
        f"cnn eqprop settled to 1e-5, β {b}": nets.eqprop(task.system, settle, settle, beta=b)
        for b in (0.1, 0.05, 0.02)
    }
    rows += fidelity(task, judged, JUDGED)
    return Found(
        rows,
        {
            "cnn_sweep_over_floor": ratio(seconds, "a sweep", "floor"),
            "cnn_fixed": ratio(updates, FIXED, "backprop"),
            "cnn_certified": ratio(updates, CERTIFIED, "backprop"),
        },
    )


def accelerated(task: nets.Task) -> LearningRule:
    """Both phases accelerated, and no further than the gradient of 30 + 10 sweeps needs."""
    free, nudged = (solvers.anderson(*most, window=1, near=0.05) for most in (FREE, NUDGED))
    return nets.eqprop(task.system, free, nudged)


def alone(task: nets.Task, rule: LearningRule) -> Program:
    """One update outside of any scan, which slows jax.grad's own convolutions down many times.

    A ratio to the update within a scan would say nothing of EP; it has a row all the same.
    """
    optimizer, key = optax.sgd(nets.RATE), jax.random.key(1)
    step = loops.supervised(rule, optimizer)
    carry = loops.start(rule, optimizer, task.params, key)
    return compiled(step, carry, nets.examples(task, BATCH), key)


def sweeping(task: nets.Task) -> dict[str, Program]:
    """Free phases that differ by a few sweeps, and products of the sizes of the convolutions'."""

    def free(count: int) -> Program:
        solver = solvers.fixed_steps(count)
        return compiled(
            lambda p, x: free_phase(task.system, solver, p, x).output, task.params, task.x[:BATCH]
        )

    key = jax.random.key(5)
    patches = jax.random.normal(key, (BATCH * PIXELS, PATCH))
    kernel = jax.random.normal(key, (PATCH, CHANNELS))
    square = jax.random.normal(key, (1024, 1024))
    return {
        f"{MORE} sweeps": free(MORE),
        f"{LESS} sweeps": free(LESS),
        "product forward": compiled(jnp.matmul, patches, kernel),
        "product backward": compiled(jnp.matmul, patches @ kernel, kernel.T),
        "product of squares": compiled(jnp.matmul, square, square),
    }


def _difference(seconds: Seconds) -> list[float]:
    pairs = zip(seconds[f"{MORE} sweeps"], seconds[f"{LESS} sweeps"], strict=True)
    return [(a - b) / (MORE - LESS) for a, b in pairs]


def _rates(seconds: Seconds) -> list[float]:
    """The best rate of each round, in operations a second."""
    one = 2.0 * BATCH * PIXELS * PATCH * CHANNELS
    sizes = {"product forward": one, "product backward": one, "product of squares": 2.0 * 1024**3}
    return [
        max(size / seconds[name][i] for name, size in sizes.items())
        for i in range(len(seconds["product forward"]))
    ]
