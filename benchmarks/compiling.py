"""What it takes to trace and compile an epoch, with no cache of an earlier process."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from benchmarks import nets
from benchmarks.timing import Effort, Found, row
from bpeq import layers, rules, solvers, systems
from bpeq.types import LearningRule, System

RATIOS = ("compile_seconds",)
BATCH, COUNT = 128, 400


def run(effort: Effort) -> Found:
    """Seconds by program; the ratio's is the longer of 10 and of 1,000 sweeps in both phases."""
    task = nets.reference(effort.quick)
    times: dict[str, list[float]] = {name: [] for name in makers(task)}
    busy: dict[str, list[float]] = {name: [] for name in makers(task)}
    for _ in range(1 if effort.quick else 3):
        for name, make in makers(task).items():  # new values each time: jit knows none of them
            program = nets.steps(task, make(), BATCH, COUNT)
            times[name].append(program.compile_seconds)
            busy[name].append(program.compile_processor_seconds)
    rows = [
        row(f"compile {name}", found, processor=statistics.median(busy[name]), batch=BATCH)
        for name, found in times.items()
    ]
    ends = ("eqprop, 10 sweeps", "eqprop, 1000 sweeps")
    longest = max(statistics.median(times[name]) for name in ends)
    return Found(rows, {"compile_seconds": longest})


def makers(task: nets.Task) -> dict[str, Callable[[], LearningRule]]:
    """Every rule whose epoch is compiled."""
    settle = solvers.anderson(1e-5, window=2)

    def fresh() -> System:
        return systems.hopfield(layers.chain(*task.network.parts))

    return {
        "backprop by jax.grad": lambda: rules.autodiff(task.network, nets.COST),
        "eqprop, 10 sweeps": lambda: nets.fixed(fresh(), 10, 10),
        "eqprop, 1000 sweeps": lambda: nets.fixed(fresh(), 1000, 1000),
        "eqprop, certified": lambda: nets.eqprop(fresh(), settle, settle),
    }
