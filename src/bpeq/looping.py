"""Steps run to their end: compiled by strides, logged as they come, stopped where need be."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bpeq import runs, trees

Progress = Callable[[int, int, dict[str, Any]], None]
"""(done, in all, the row just logged)"""
Values = dict[str, np.ndarray]
"""Metric -> `[seeds]`"""


class Diverged(ArithmeticError):
    """A loss or a weight is no longer finite. Exit code 4; the last good parameters are saved."""


class Interrupted(Exception):
    """A signal asked to stop, and what there was has been saved. `signal` is its number."""

    def __init__(self, signal: int, message: str) -> None:
        super().__init__(message)
        self.signal = signal


class Clock:
    """Adds up seconds by name."""

    def __init__(self) -> None:
        self.spent = {"compile": 0.0, "train": 0.0, "evaluate": 0.0}
        self._name = ""

    def __call__(self, name: str) -> Clock:
        self._name = name
        return self

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        spent = time.perf_counter() - self._began
        self.spent[self._name] = self.spent.get(self._name, 0.0) + spent


class Runner:
    """Runs compiled loops into a run folder; what a study gets to run its own steps with.

    folder: of the run, already made. clock: seconds spent compiling, training and evaluating.
    progress, stop: the callbacks that it was given, for runs inside the run.
    """

    def __init__(
        self,
        folder: Path,
        subject: str,
        progress: Progress | None = None,
        stop: Callable[[], int | None] = lambda: None,
    ) -> None:
        self.folder, self.subject, self.clock = folder, subject, Clock()
        self.progress, self.stop = progress, stop

    def repeat(
        self,
        run: Callable[..., tuple[Any, dict[str, Any]]],
        carry: Any,
        inputs: tuple[Any, ...],
        *,
        total: int,
        every: int,
        measure: Callable[[Any], dict[str, Any]] = lambda carry: {},
        row: Callable[[int], dict[str, Any]] = lambda done: {"step": done},
        unit: str = "step",
        name: str = "",
        params: Callable[[Any], Any] = lambda carry: carry,
        may_diverge: bool = False,
        remedy: Callable[[Values], str] | None = None,
    ) -> tuple[Any, Values, list[dict[str, Any]]]:
        """`total` turns of a loop, `every` so many of them one row of `metrics.jsonl`.

        Args:
          run: jitted, (carry, *inputs, first, count) -> (carry, metrics), `count` static and last;
            metrics `[seeds, anything]`, whose last entry is logged. `carry` may be donated.
          measure: carry -> `{metric: [seeds]}`, taken after every stride.
          row: turns done -> what else the row says, such as its step.
          name: put before the names of all metrics, and after the file name of saved parameters.
          params: carry -> what is saved where the loop ends early.
          may_diverge: a loss that is not finite is logged, and no reason to stop.
          remedy: the last values -> what to try where it diverged.

        Returns:
          The last carry, the last values, and all rows.

        Raises:
          Diverged, Interrupted: a `loss` or a parameter is not finite; a signal came. After saving.
        """
        before = f"{name}_" if name else ""
        path = self.folder / f"params{'-' if name else ''}{name}.safetensors"
        good, rows, values = jax.device_get(params(carry)), [], {}
        compiled: dict[int, Any] = {}
        self._show(0, total, {}, name)
        for first in range(0, total, every):
            count = min(every, total - first)
            given = (carry, *inputs, jnp.asarray(first))
            if count not in compiled:
                with self.clock("compile"):
                    compiled[count] = run.lower(*given, count).compile()  # type: ignore[attr-defined]
            with self.clock("train"):
                carry, trained = jax.block_until_ready(compiled[count](*given))
            with self.clock("evaluate"):
                trained = jax.device_get(trained)
                found = {f"train_{k}" if k == "loss" else k: v[:, -1] for k, v in trained.items()}
                values = {f"{before}{k}": v for k, v in (found | measure(carry)).items()}
                values = {k: np.asarray(v) for k, v in jax.device_get(values).items()}
            after, done = jax.device_get(params(carry)), first + count
            if not may_diverge and (said := _lost(trained, values, after, first, count, unit)):
                runs.save_arrays(path, good)
                who = f"{name} diverged" if name else "diverged"
                hint = f"try {remedy(values)}; " if remedy else ""
                raise Diverged(
                    f"{self.subject}: {who} in {said}; {hint}"
                    f"the parameters of {unit} {first} are in {path}"
                )
            good = after
            rows.append(row(done) | {k: float(np.mean(v)) for k, v in values.items()})
            rows[-1] |= {"seconds": self.clock.spent["train"], "values": values}
            runs.append_json(self.folder / "metrics.jsonl", rows[-1])
            self._show(done, total, rows[-1], name)
            signal = self.stop()
            if signal is not None and done < total:
                runs.save_arrays(path, good)
                raise Interrupted(
                    signal, f"stopped after {unit} {done} of {total}; saved {self.folder}"
                )
        return carry, values, rows

    def _show(self, done: int, total: int, row: dict[str, Any], name: str) -> None:
        if self.progress is None:
            return
        if name:  # a study's part: the bar's own headline knows nothing of its metrics
            own = [f"{k[len(name) + 1 :]} {row[k]:.4g}" for k in row if k.startswith(f"{name}_")]
            said = [name]
            for text in own[:3]:  # as many as leave room for the bar in 80 columns
                said += [text] if len(", ".join([*said, text])) <= 40 else []
            row = {**row, "said": ", ".join(said)}
        self.progress(done, total, row)


def _lost(trained: Values, values: Values, after: Any, first: int, count: int, unit: str) -> str:
    """When and what is no longer finite, or nothing."""
    losses = np.asarray(trained.get("loss", np.zeros((1, 1))))
    bad, done = ~np.isfinite(losses), first + count
    if bad.any():
        turn = int(np.argwhere(bad.any(axis=0))[0, 0])
        seed = int(np.argmax(bad[:, turn]))
        when = f"{unit} {first + turn + 1}"
        if losses.shape[1] < count:  # a mean over the stride
            when = f"{unit}s {first + 1} to {done}"
        return f"{when}: the training loss of seed {seed} is {losses[seed, turn]}"
    late = [k for k, v in values.items() if k.endswith("loss") and not np.isfinite(v).all()]
    named = zip(trees.names(after), jax.tree.leaves(after), strict=True)
    late += [f"the parameter {k}" for k, v in named if not np.isfinite(v).all()]
    return f"{unit} {done}: {late[0]} is not finite" if late else ""
