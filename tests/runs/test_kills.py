"""Real processes, killed outright at random moments: gone on with, not a bit or a row differs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from bpeq.registry import KINDS

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "digits.toml"
SMALL = {
    "seeds": 2,
    "training.epochs": 30,
    "training.evaluate_every": 1,
    "network.layers.1.features": 8,
    "checkpoint_share": 1.0,
}


class Kills:
    """Runs of one rule: `whole` as it is without, and what became of those that were killed."""

    def __init__(self, folder: Path, rule: str, seed: int) -> None:
        self.folder, self.rng = folder, np.random.default_rng(seed)
        self.pairs = [f"--set={key}={value}" for key, value in SMALL.items()]
        self.pairs.append(f"--set=rule.name={rule}")
        self.whole = folder / "whole"
        began = time.monotonic()
        self.end(self.start("whole"), 0)
        self.seconds = time.monotonic() - began
        self.killed: list[int] = []
        """Rows that there were at each kill."""

    def start(self, out: str, *more: str) -> subprocess.Popen[str]:
        program = "from bpeq.cli import script; script()"
        argv = [sys.executable, "-c", program, "run", str(CONFIG), "--out", out, *more]
        cache = {"JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"), "JAX_PLATFORMS": "cpu"}
        cache["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        return subprocess.Popen(
            [*argv, *self.pairs],
            cwd=self.folder,
            env={**os.environ, **cache},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self, process: subprocess.Popen[str], code: int) -> None:
        try:
            _, errors = process.communicate(timeout=300)
        finally:
            process.kill()
        assert (process.returncode, "Traceback" in errors) == (code, False), errors

    def kill(self, out: str) -> bool:
        """Kills a run at a random moment after it has its folder, if it is not over before."""
        process = self.start(out, "--resume")
        rows = self.folder / out / "metrics.jsonl"
        before = count(rows)
        at = before + self.rng.integers(0, SMALL["training.epochs"] - before + 1)
        later = self.rng.uniform(0, 0.1)
        while process.poll() is None and not (self.folder / out / ".lock").exists():
            time.sleep(0.005)
        while process.poll() is None and count(rows) < at:
            time.sleep(0.002)
        time.sleep(later)
        alive = process.poll() is None
        self.killed += [count(rows)] if alive else []
        process.kill()
        self.end(process, -9 if alive else 0)
        return alive

    def differ(self, out: str) -> tuple[int, int]:
        """(bits of the parameters, rows) that differ from the whole run's, once it has ended."""
        self.end(self.start(out, "--resume"), 0)
        ours, theirs = (
            load_file(f / "params.safetensors") for f in (self.folder / out, self.whole)
        )
        assert set(ours) == set(theirs)
        bits = sum(apart(array, theirs[name]) for name, array in ours.items())
        mine, other = (logged(f / "metrics.jsonl") for f in (self.folder / out, self.whole))
        lost = abs(len(mine) - len(other)) + sum(a != b for a, b in zip(mine, other, strict=False))
        return bits, lost


def apart(a: np.ndarray, b: np.ndarray) -> int:
    one, other = (np.frombuffer(each.tobytes(), np.uint8) for each in (a, b))
    return int(np.bitwise_count(one ^ other).sum())


def count(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def logged(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in rows]


def kill_and_go_on(folder: Path, rule: str, times: int, seed: int = 0) -> Kills:
    """Kills runs of a rule so many times, each run until it is over; none may differ."""
    kills = Kills(folder, rule, seed)
    number = 0
    while len(kills.killed) < times:
        number += 1
        out = f"killed-{number}"
        while len(kills.killed) < times and kills.kill(out):
            pass
        assert kills.differ(out) == (0, 0)
    print(f"{rule}: killed after rows {kills.killed}, in {number} runs; 0 bits, 0 rows differ")
    return kills


def test_a_killed_process_goes_on_and_not_a_bit_or_a_row_differs(tmp_path):
    assert len(kill_and_go_on(tmp_path, "backprop", 2).killed) == 2


@pytest.mark.slow
@pytest.mark.parametrize("rule", KINDS["rules"])
def test_every_rule_killed_three_times_goes_on_and_not_a_bit_or_a_row_differs(tmp_path, rule):
    seed = list(KINDS["rules"]).index(rule)
    assert len(kill_and_go_on(tmp_path, rule, 3, seed).killed) == 3
