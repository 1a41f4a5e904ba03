"""What a checkpoint an epoch costs on MNIST: runs with and without, in turn, on this machine.

    python benchmarks/checkpoints.py            # needs $BPEQ_DATA/mnist, or a download

`share` is the time that saving took, of the same run's epochs; `ratio` that of a whole epoch with a
checkpoint to one without, medians over the epochs but the first of all rounds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from bpeq.config import loading
from bpeq.experiment import train

CONFIG = Path(__file__).parents[1] / "configs" / "mnist.toml"


def epochs(share: float, count: int) -> tuple[list[float], float]:
    """Seconds of each epoch but the first, and what of the run's time went into checkpoints."""
    pairs = [f"training.epochs={count}", "training.evaluate_every=1", f"checkpoint_share={share}"]
    ends: list[float] = []

    def progress(done: int, total: int, row: dict[str, Any]) -> None:
        ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory(dir=".") as folder:
        summary = train.run(loading.load_config(CONFIG, pairs), Path(folder) / "run", progress)
    spent = summary["seconds"]
    return (
        [b - a for a, b in itertools.pairwise(ends[1:])],
        spent["checkpoint"] / (spent["train"] + spent["evaluate"]),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    arguments = parser.parse_args()
    found: dict[float, list[float]] = {0.0: [], 1.0: []}
    shares = []
    for _ in range(arguments.rounds):
        for share, seconds in found.items():  # 0: one checkpoint, at the end; 1: one an epoch
            own, spent = epochs(share, arguments.epochs)
            seconds += own
            shares += [spent] if share else []
    without, with_ = (statistics.median(seconds) for seconds in found.values())
    said = {
        "epoch_seconds": without,
        "ratio": with_ / without,
        "share": statistics.median(shares),
        "shares": shares,
    }
    print(json.dumps({k: v if k == "shares" else round(v, 4) for k, v in said.items()}))


if __name__ == "__main__":
    main()
