"""Steps run to their end: compiled by strides, logged as they come, stopped where need be."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bpeq.core import trees
from bpeq.experiment.clock import Clock
from bpeq.runs import host_arrays, run_folder
from bpeq.runs.checkpoints import FOLDER, Checkpoints, Point
from bpeq.runs.metrics_log import Journal, Values, canonical
from bpeq.types import Caution

Progress = Callable[[int, int, dict[str, Any]], None]
"""(done, in all, the row just logged)"""


class Diverged(ArithmeticError):
    """A loss, a weight or a state is not finite. Exit code 4; the last good ones are saved."""


class Interrupted(Exception):
    """A signal asked to stop, and what there was has been saved. `signal` is its number."""

    def __init__(self, signal: int, message: str) -> None:
        super().__init__(message)
        self.signal = signal


class Runner:
    """Runs compiled loops into a run folder; what a study gets to run its own steps with.

    folder: of the run, already made. clock: seconds spent compiling, training and evaluating.
    progress, stop, resume: what it was given, for runs inside the run.

    Args:
      identity: what must be the same where a run goes on, as words to their values.
      resume: loops go on from their checkpoints.
      share: of its time may be spent on checkpoints; those at a loop's end are always made.
    """

    def __init__(
        self,
        folder: Path,
        subject: str,
        progress: Progress | None = None,
        stop: Callable[[], int | None] = lambda: None,
        *,
        identity: dict[str, Any] | None = None,
        resume: bool = False,
        share: float = 1.0,
    ) -> None:
        self.folder, self.subject, self.clock = folder, subject, Clock()
        self.progress, self.stop, self.resume, self.share = progress, stop, resume, share
        self._identity, self._journal = identity or {}, Journal(folder / "metrics.jsonl")
        self._loops, self._saving = 0, 0.0

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
        refuse: Callable[[Values, str], str] | None = None,
    ) -> tuple[Any, Values, list[dict[str, Any]]]:
        """`total` turns of a loop, `every` so many of them one row of `metrics.jsonl`.

        After a row there may be a checkpoint, from which a resumed run goes on: all that matters
        to what comes after must be in `carry` or follow from the config. `measure` must not count
        on having been called before.

        Args:
          run: jitted, (carry, *inputs, first, count) -> (carry, metrics), `count` static and last;
            metrics `[seeds, anything]`, whose last entry is logged. `carry` may be donated.
          measure: carry -> `{metric: [seeds]}`, taken after every stride.
          row: turns done -> what else the row says, such as its step.
          name: put before the names of all metrics, and after the file name of saved parameters.
          params: carry -> what is saved where the loop ends early.
          may_diverge: a loss that is not finite is logged, and no reason to stop.
          remedy: the last values -> what to try where it diverged.
          refuse: (a stride's metrics, its turns in words) -> why it is as bad as diverged, or
            nothing.

        Returns:
          The last carry, the last values, and all rows.

        Raises:
          Diverged, Interrupted: a `loss` or a parameter is not finite; a signal came. After saving.
        """
        before = f"{name}_" if name else ""
        path = self.folder / f"params{'-' if name else ''}{name}.safetensors"
        saved = self._checkpoints(name, inputs, total=total, every=every)
        good, rows, started = self._begin(saved, carry)
        values, done, excused = good.values, good.done, _unbounded(started, "state")
        if done:
            carry = host_arrays.to_device(good.carry, carry)
        best = host_arrays.to_host(params(carry))
        compiled: dict[int, Any] = {}
        self._show(done, total, rows[-1] if rows else {}, name)
        for first in range(done, total, every):
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
            after, done = host_arrays.to_host(params(carry)), first + count
            host = host_arrays.to_host(carry)
            ends, how = (first, done), "diverged"
            said = "" if may_diverge else _lost(trained, values, ends, unit, row)
            leaves = _unbounded(after, "parameter") + _unbounded(host, "state", excused)
            if leaves and not may_diverge:
                said = f"{said}, " if said else f"{_when(unit, ends, row)}: "
                said += f"{leaves[0]} is not finite"
            if said and remedy:
                said += f"; try {remedy(values)}"
            when = _when(unit, ends, row)
            if not said and refuse and (why := refuse(trained, when)):
                how, said = "stopped", f"{when}: {why}"
            if said:
                run_folder.save_arrays(path, best)
                who = f"{name} {how}".lstrip()
                raise Diverged(
                    f"{self.subject}: {who} in {said}; the last good checkpoint is "
                    f"{saved.save(good, self.clock.all())}, "
                    f"the parameters of {unit} {first} are in {path}"
                )
            best = after
            new = row(done) | {k: float(np.mean(v)) for k, v in values.items()}
            new |= {"seconds": self.clock.spent["train"], "values": values}
            rows.append(canonical(self._journal.append(new), values))
            good = Point(done, host, values, row(done), self._journal.mark(), good.start)
            self._show(done, total, rows[-1], name)
            signal = self.stop()
            stopped = signal is not None and done < total
            if stopped or done == total or self._saving <= self.share * self.clock.elapsed:
                self._save(saved, good)
            if stopped:
                assert signal is not None
                run_folder.save_arrays(path, best)
                raise Interrupted(
                    signal, f"stopped after {unit} {done} of {total}; saved {self.folder}"
                )
        saved.finish()
        if name:
            path.unlink(missing_ok=True)  # of an interruption before
        return carry, values, rows

    def _checkpoints(self, name: str, inputs: Any, **length: int) -> Checkpoints:
        """Where a loop's checkpoints are; a study's loops come in the same order every time."""
        self._loops += 1
        part = f"{self._loops}{'-' if name else ''}{name}"
        keys = host_arrays.random_keys(inputs)
        return Checkpoints(self.folder / FOLDER, part, self._identity | length, keys)

    def _begin(self, saved: Checkpoints, carry: Any) -> tuple[Point, list[dict[str, Any]], Any]:
        """Where a loop starts or goes on, its rows so far, and its carry as it starts."""
        started = host_arrays.to_host(carry)
        found = saved.newest(carry, self._journal) if self.resume else None
        if found is None:
            if self.resume and self._loops == 1 and not saved.told:
                said = f"{self.folder}: has no checkpoint yet: the run starts anew"
                warnings.warn(said, Caution, stacklevel=3)
            return Point(0, started, {}, {}, self._journal.mark(), self._journal.size), [], started
        point, seconds, rows = found
        self.clock.go_on(seconds)
        return point, rows, started

    def _save(self, saved: Checkpoints, point: Point) -> None:
        began = time.perf_counter()
        with self.clock("checkpoint"):
            self._journal.sync()
            saved.save(point, self.clock.all())
        self._saving += time.perf_counter() - began

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


def _lost(trained: Values, values: Values, ends: tuple[int, int], unit: str, row: Any) -> str:
    """When a loss was no longer finite, and whose, or nothing."""
    first, done = ends
    losses = np.asarray(trained.get("loss", np.zeros((1, 1))))
    bad = ~np.isfinite(losses)
    if bad.any():
        turn = int(np.argwhere(bad.any(axis=0))[0, 0])
        seed = int(np.argmax(bad[:, turn]))
        if losses.shape[1] == done - first:  # and no mean over the stride
            ends = first + turn, first + turn + 1
        said = f"the training loss of seed {seed} is {losses[seed, turn]}"
        return f"{_when(unit, ends, row)}: {said}"
    late = [k for k, v in values.items() if k.endswith("loss") and not np.isfinite(v).all()]
    return f"{_when(unit, (done - 1, done), row)}: {late[0]} is not finite" if late else ""


def _when(unit: str, ends: tuple[int, int], row: Callable[[int], dict[str, Any]]) -> str:
    """The turns from `ends[0]`, not counted, to `ends[1]`, and the steps that they took."""
    said = _span(unit, *ends)
    steps = [row(turns).get("step", 0) for turns in ends]
    return said if unit == "step" or not steps[1] else f"{said} ({_span('step', *steps)})"


def _span(unit: str, before: int, last: int) -> str:
    return f"{unit} {last}" if last == before + 1 else f"{unit}s {before + 1} to {last}"


def _unbounded(host: Any, kind: str, excused: Sequence[str] = ()) -> list[str]:
    """The leaves that are not finite, as `the parameter 0.w`."""
    named = zip(trees.names(host), map(np.asarray, jax.tree.leaves(host)), strict=True)
    floats = ((k, v) for k, v in named if np.issubdtype(v.dtype, np.inexact))
    lost = (f"the {kind} {k}".rstrip() for k, v in floats if not np.isfinite(v).all())
    return [name for name in lost if name not in excused]
