"""Real processes, killed outright at random moments: gone on with, not a bit or a row differs."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from bpeq.config.registry import KINDS

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "digits.toml"
SMALL = {
    "seeds": 2,
    "training.epochs": 30,
    "training.evaluate_every": 1,
    "network.layers.1.features": 8,
    "checkpoint_share": 1.0,
}


NURSERY = """\
import json, os, sys
import bpeq.cli.entry, bpeq.cli.terminal, bpeq.experiment.train, bpeq.report.figures
import matplotlib.figure, sklearn
for line in sys.stdin:
    argv, said = json.loads(line)
    child = os.fork()
    if child == 0:
        file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1), os.dup2(file, 2)
        sys.exit(bpeq.cli.main(argv))
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Nursery:
    """Forks a process for each command line, so that each need not import what all need."""

    def __init__(self) -> None:
        own = {"JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"), "JAX_PLATFORMS": "cpu"}
        own["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        argv, pipe = [sys.executable, "-c", NURSERY], subprocess.PIPE
        environment = {**os.environ, **own}
        self.process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, env=environment)

    def start(self, argv: list[str], said: Path) -> int:
        """The process's number."""
        self.process.stdin.write(json.dumps([argv, str(said)]).encode() + b"\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def running(self) -> bool:
        return not select.select([self.process.stdout], [], [], 0.0)[0]

    def code(self) -> int:
        """The exit code, once the process has ended."""
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def nursery():
    nursery = Nursery()
    yield nursery
    nursery.process.stdin.close()
    nursery.process.wait(60)
    nursery.process.stdout.close()


class Kills:
    """Runs of one rule: `whole` as it is without, and what became of those that were killed."""

    def __init__(self, nursery: Nursery, folder: Path, rule: str, seed: int) -> None:
        self.nursery, self.folder, self.rng = nursery, folder, np.random.default_rng(seed)
        self.pairs = [f"--set={key}={value}" for key, value in SMALL.items()]
        self.pairs.append(f"--set=rule.name={rule}")
        self.whole = folder / "whole"
        self.start("whole")
        self.end(0)
        self.killed: list[int] = []
        """Rows that there were at each kill."""

    def start(self, out: str, *more: str) -> int:
        argv = ["run", str(CONFIG), "--out", str(self.folder / out), *more, *self.pairs]
        return self.nursery.start(argv, self.folder / "said")

    def end(self, code: int) -> None:
        found, said = self.nursery.code(), (self.folder / "said").read_text()
        assert (found, "Traceback" in said) == (code, False), said

    def kill(self, out: str) -> bool:
        """Kills a run at a random moment after it has its folder, if it is not over before."""
        process, rows = self.start(out, "--resume"), self.folder / out / "metrics.jsonl"
        before = count(rows)
        at = before + self.rng.integers(0, SMALL["training.epochs"] - before + 1)
        later = self.rng.uniform(0, 0.1)
        while self.nursery.running() and not (self.folder / out / ".lock").exists():
            time.sleep(0.005)
        while self.nursery.running() and count(rows) < at:
            time.sleep(0.002)
        time.sleep(later)
        if not self.nursery.running():
            self.end(0)
            return False
        os.kill(process, signal.SIGKILL)  # or it ends this very moment: nobody has waited for it
        code = self.nursery.code()
        self.killed += [count(rows)] if code == -signal.SIGKILL else []
        return code == -signal.SIGKILL

    def differ(self, out: str) -> tuple[int, int]:
        """(bits of the parameters, rows) that differ from the whole run's, once it has ended."""
        self.start(out, "--resume")
        self.end(0)
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


def kill_and_go_on(nursery: Nursery, folder: Path, rule: str, times: int, seed: int = 0) -> None:
    """Kills runs of a rule so often, each at most twice before it may end; none may differ."""
    kills, number = Kills(nursery, folder, rule, seed), 0
    while len(kills.killed) < times:
        number += 1
        left = min(2, times - len(kills.killed))
        for _ in range(left):
            if not kills.kill(f"killed-{number}"):
                break
        assert kills.differ(f"killed-{number}") == (0, 0)
    print(f"{rule}: killed after rows {kills.killed}, in {number} runs; 0 bits, 0 rows differ")


def test_a_killed_process_goes_on_and_not_a_bit_or_a_row_differs(nursery, tmp_path):
    kill_and_go_on(nursery, tmp_path, "backprop", 2)


@pytest.mark.long
@pytest.mark.parametrize("rule", KINDS["rules"])
def test_every_rule_killed_three_times_goes_on_and_none_differs(nursery, tmp_path, rule):
    kill_and_go_on(nursery, tmp_path, rule, 3, seed=list(KINDS["rules"]).index(rule))
