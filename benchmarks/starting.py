"""How long a command takes to start: imports, and compiling without and with a cache of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.nets import images
from benchmarks.timing import Effort, Found, row

RATIOS: tuple[str, ...] = ()
ROOT = Path(__file__).parents[1]
BPEQ = "from bpeq.cli import script; script()"
COMMANDS = {
    "python": ["-c", "pass"],
    "import jax": ["-c", "import jax"],
    "import bpeq": ["-c", "import bpeq"],
    "import bpeq.rules": ["-c", "import bpeq.rules"],
    "bpeq --help": ["-c", BPEQ, "--help"],
}
RUN = ["-c", BPEQ, "run", str(ROOT / "configs" / "digits.toml"), "--seeds", "1"]
EPOCH = ["--set", "training.epochs=1", "--set", "training.evaluate_every=1"]


def run(effort: Effort) -> Found:
    """Seconds of whole processes, in turn."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(1 if effort.quick else 3):
        for name, command in COMMANDS.items():
            times[name].append(spent(command))
    if not effort.quick:
        times |= training()
    rows = [row(f"start {name}", found) for name, found in times.items()]
    if not effort.quick and images().name == "MNIST":
        rows += past_97()
    return Found(rows, {})


def past_97() -> list[dict[str, Any]]:
    """MNIST by equilibrium propagation, a whole process, programs compiled by one before it."""
    with tempfile.TemporaryDirectory() as folder:
        times = []
        for out in ("first", "cold", "again"):
            command = ["-c", BPEQ, "run", str(ROOT / "configs" / "mnist_quick.toml"), "--out"]
            cache = {"JAX_COMPILATION_CACHE_DIR": f"{folder}/cache"}
            times.append(spent([*command, f"{folder}/{out}"], cache))
        summary = json.loads(Path(folder, "again", "summary.json").read_text())
    error = summary["metrics"]["test_error"]["mean"]
    return [row("start bpeq run configs/mnist_quick.toml", times[1:], test_error=error)]


def training() -> dict[str, list[float]]:
    """One epoch of digits: with an empty compilation cache, then with what that left."""
    times: dict[str, list[float]] = {"bpeq run, cold cache": [], "bpeq run, warm cache": []}
    with tempfile.TemporaryDirectory() as folder:
        cache = {
            "JAX_COMPILATION_CACHE_DIR": f"{folder}/cache",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
        }
        for i, name in enumerate(["cold", "warm", "warm"]):
            out = ["--out", f"{folder}/run-{i}"]
            times[f"bpeq run, {name} cache"].append(spent([*RUN, *EPOCH, *out], cache))
    return times


def spent(command: list[str], environment: dict[str, str] | None = None) -> float:
    """Seconds of a Python process."""
    env = {**os.environ, **(environment or {})}
    start = time.perf_counter()
    subprocess.run([sys.executable, *command], env=env, capture_output=True, check=True)
    return time.perf_counter() - start
