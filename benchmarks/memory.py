"""Memory of an update over the number of sweeps: EP's stays, BPTT's grows.

python -m benchmarks.memory eqprop 1000        a child's own figures, as JSON
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import nets
from benchmarks.timing import Effort, Found
from bpeq import rules, systems
from bpeq.types import Batch, LearningRule, System

RATIOS = ("memory_1000_over_10",)
BATCH, SWEEPS = 128, (10, 100, 1000)
RULES = {
    "eqprop": lambda system, n: nets.fixed(system, n, n),
    "bptt": lambda system, n: rules.bptt(system, nets.COST, sweeps=n),
}


def run(effort: Effort) -> Found:
    """Bytes of temporaries that XLA sets aside; peak memory of a whole process that runs it."""
    rows: list[dict[str, Any]] = []
    held: dict[tuple[str, int], int] = {}
    for name in RULES:
        for sweeps in (SWEEPS[0], SWEEPS[-1]) if effort.quick else SWEEPS:
            held[name, sweeps] = temporaries(*estimate(name, sweeps))
            made = {"series": name, "sweeps": sweeps, "bytes": held[name, sweeps]}
            if sweeps in (SWEEPS[0], SWEEPS[-1]) and not effort.quick:
                made |= child(name, sweeps)
            rows.append({"name": f"memory of {name}, {sweeps} sweeps", **made})
    growth = {name: held[name, SWEEPS[-1]] / held[name, SWEEPS[0]] for name in RULES}
    rows.append({"name": "memory, most sweeps over fewest", **growth})
    return Found(rows, {"memory_1000_over_10": growth["eqprop"]})


def estimate(name: str, sweeps: int) -> tuple[Any, ...]:
    """A rule's jitted estimate of 784-512-10, and its arguments."""
    network = nets.mlp(512)
    system: System = systems.hopfield(network)
    rule: LearningRule = RULES[name](system, sweeps)
    params, state = rule.init(jax.random.key(0), network.init(jax.random.key(0), (784,))[0])
    x = jax.random.uniform(jax.random.key(1), (BATCH, 784))
    batch = Batch(x, jnp.arange(BATCH) % 10)
    return jax.jit(rule.estimate), params, batch, state, jax.random.key(2)


def temporaries(program: Any, *args: Any) -> int:
    """Bytes that the compiled program needs besides its arguments and results."""
    return program.lower(*args).compile().memory_analysis().temp_size_in_bytes


def child(name: str, sweeps: int) -> dict[str, int]:
    """A process of its own runs one estimate: the peak of its resident memory, in bytes."""
    command = [sys.executable, "-m", "benchmarks.memory", name, str(sweeps)]
    here = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def _peak() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    program, *args = estimate(sys.argv[1], int(sys.argv[2]))
    before = _peak()
    jax.block_until_ready(program(*args))
    print(json.dumps({"peak_before": before, "peak": _peak()}))
