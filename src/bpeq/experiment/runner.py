"""Runs a compiled loop to its end, with rows, checkpoints, signals and divergence."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bpeq.core import trees
from bpeq.runs import host_arrays, run_folder
from bpeq.runs.checkpoints import FOLDER, Checkpoint, Checkpoints
from bpeq.runs.metrics_log import MetricsLog, Values, as_read
from bpeq.types import Caution

Progress = Callable[[int, int, dict[str, Any]], None]
"""Called with (turns done, total turns, the row logged last)."""


def silent(done: int, total: int, row: dict[str, Any]) -> None:
    """The progress callback that shows nothing.

    Args:
      done: the number of turns done.
      total: the number of all turns.
      row: the row logged last.
    """


class Diverged(ArithmeticError):
    """A loss, a weight or a state is not finite. The exit code is 4. The last good one is saved."""

    exit_code = 4


class Interrupted(Exception):
    """A signal stopped the run, and the run saved its state.

    Args:
      signal: the number of the signal.
      message: what the user sees.
    """

    def __init__(self, signal: int, message: str) -> None:
        super().__init__(message)
        self.signal, self.exit_code = signal, 128 + signal


class Clock:
    """Adds up seconds by name. They include the seconds before an interruption.

    `started` is the start of the run, by `time.perf_counter`. `spent` holds the seconds by name.
    """

    def __init__(self) -> None:
        self.spent = {"compile": 0.0, "train": 0.0, "evaluate": 0.0}
        self.started = time.perf_counter()
        self._earlier = dict[str, float]()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Adds the time of a block to a name.

        Args:
          name: the name, such as "compile"; a new name starts at 0.
        """
        before = time.perf_counter()
        try:
            yield
        finally:
            self.spent[name] = self.spent.get(name, 0.0) + time.perf_counter() - before

    def seconds(self) -> dict[str, float]:
        """The seconds of the whole run.

        Returns:
          Seconds by name, and `total`.
        """
        elapsed = time.perf_counter() - self.started
        return {**self.spent, "total": elapsed + self._earlier.get("total", 0.0)}

    def share(self, name: str) -> float:
        """The share of this process's time that a name has taken.

        Args:
          name: the name, such as "checkpoint".

        Returns:
          The share, 0 to 1.
        """
        spent = self.spent.get(name, 0.0) - self._earlier.get(name, 0.0)
        return spent / (time.perf_counter() - self.started)

    def add_earlier(self, earlier: dict[str, float]) -> None:
        """Adds the seconds of the interrupted process.

        Every loop of a resumed run reports the seconds of all earlier loops again. So each call
        replaces the values of the call before.

        Args:
          earlier: what `seconds` returned in the interrupted process.
        """
        for name in earlier.keys() - {"total"}:
            more = earlier[name] - self._earlier.get(name, 0.0)
            self.spent[name] = self.spent.get(name, 0.0) + more
        self._earlier = dict(earlier)


class Runner:
    """Runs compiled loops into a run folder. A study gets a runner for its own training steps.

    `folder`, `subject`, `progress`, `stop`, `resume` and `share` are attributes too. `clock` holds
    the seconds spent on compiling, training and evaluating.

    Args:
      folder: the run folder, which must exist.
      subject: what is run, such as the config file. Error messages begin with it.
      progress: called when a loop starts and after each row; None: progress is not reported.
      stop: called after each row. It returns the number of a signal that came, or None. The default
        never stops.
      identity: values that must be equal when a run is resumed; None: no values.
      resume: loops continue from their checkpoints.
      share: the share of the elapsed time, 0 to 1, that checkpoints may take. The default 1 saves
        after every row. The end of a loop always has a checkpoint.
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
        self.progress, self.stop = progress or silent, stop
        self.resume, self.share = resume, share
        self._identity, self._log = identity or {}, MetricsLog(folder / "metrics.jsonl")
        self._loops = 0

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
        """Runs a loop, with one row of `metrics.jsonl` after every `every` turns.

        A checkpoint may follow a row. A resumed run continues from it. So `carry` and the config
        must determine all later turns, and `measure` must not depend on its earlier calls.

        Args:
          run: jitted, (carry, *inputs, first, count) -> (carry, metrics). `count` is static and
            last. Metrics have shape `[seeds, anything]`; the runner logs the last entry. `carry`
            may be donated.
          carry: the carry before the first turn.
          inputs: the other arguments of `run`, before `first`.
          total: the number of turns of the loop, at least 1.
          every: the number of turns between two rows, at least 1.
          measure: carry -> `{metric: [seeds]}`, called for every row. The default measures nothing.
          row: turns done -> other entries of the row. The default is the number of turns as `step`.
          unit: the noun for a turn in messages.
          name: the name of the loop. It begins the names of the metrics and ends the file name of
            saved parameters. The default is for the only loop of a run.
          params: carry -> the parameters to save if the loop ends early. The default is the whole
            carry.
          may_diverge: a value that is not finite is logged and does not end the loop.
          remedy: last values -> advice for the message of a divergence; None: no advice.
          refuse: (metrics, their turns in words) -> the reason to end the loop, or an empty text;
            None: the loop never ends for such a reason.

        Returns:
          The last carry, the last values, and all rows.

        Raises:
          Diverged: a loss, a parameter or a state is not finite, or `refuse` gave a reason. The
            runner saves first.
          Interrupted: a signal came. The runner saves first.
        """
        prefix = f"{name}_" if name else ""
        ending = f"-{name}" if name else ""
        path = self.folder / f"params{ending}.safetensors"
        # Continue from the newest checkpoint of this loop, or begin.
        self._loops += 1
        part, identity = f"{self._loops}{ending}", self._identity | {"total": total, "every": every}
        keys, start = host_arrays.random_keys(inputs), host_arrays.to_host(carry)
        checkpoints = Checkpoints(self.folder / FOLDER, part, identity, keys)
        last, rows = self._begin(checkpoints, carry, start)
        # A state may be infinite at the start, such as the best loss. That is no divergence.
        excused = _not_finite(start, "state")
        values, done = last.values, last.done
        if done:
            carry = host_arrays.to_device(last.carry, carry)
        kept = host_arrays.to_host(params(carry))
        compiled: dict[int, Any] = {}
        self._show(done, total, rows[-1] if rows else {}, name)
        for first in range(done, total, every):
            done = min(first + every, total)
            when = _when(unit, row, first, done)
            # Run the turns up to the next row, then measure.
            arguments, count = (carry, *inputs, jnp.asarray(first)), done - first
            if count not in compiled:
                with self.clock("compile"):
                    compiled[count] = run.lower(*arguments, count).compile()  # type: ignore[attr-defined]
            with self.clock("train"):
                carry, trained = jax.block_until_ready(compiled[count](*arguments))
            with self.clock("evaluate"):
                trained = jax.device_get(trained)
                ends = {f"train_{k}" if k == "loss" else k: v[:, -1] for k, v in trained.items()}
                values = {f"{prefix}{k}": v for k, v in (ends | measure(carry)).items()}
                values = {k: np.asarray(v) for k, v in jax.device_get(values).items()}
            before, kept = kept, host_arrays.to_host(params(carry))
            host = host_arrays.to_host(carry)
            # The loop ends here if a number is not finite, or if the caller refuses to go on.
            how, why = "diverged", ""
            if not may_diverge:
                why = _lost(trained, values, unit, row, first, done)
                leaves = _not_finite(kept, "parameter") + _not_finite(host, "state", excused)
                if leaves:
                    why = (f"{why}, " if why else f"{when}: ") + f"{leaves[0]} is not finite"
            if why and remedy:
                why += f"; try {remedy(values)}"
            if not why and refuse and (reason := refuse(trained, when)):
                how, why = "stopped", f"{when}: {reason}"
            if why:
                run_folder.save_arrays(path, before)
                raise Diverged(
                    f"{self.subject}: {f'{name} {how}'.lstrip()} in {why}; the last good "
                    f"checkpoint is {checkpoints.save(last, self.clock.seconds())}, "
                    f"the parameters of {unit} {first} are in {path}"
                )
            # Log the row, and save a checkpoint if the share of time allows it.
            new = row(done) | {k: float(np.mean(v)) for k, v in values.items()}
            new |= {"seconds": self.clock.spent["train"], "values": values}
            rows.append(as_read(self._log.append(new), values))
            last = Checkpoint(done, host, values, row(done), self._log.position(), last.start)
            self._show(done, total, rows[-1], name)
            signal, ended = self.stop(), done == total
            if signal is not None or ended or self.clock.share("checkpoint") <= self.share:
                with self.clock("checkpoint"):
                    self._log.sync()
                    checkpoints.save(last, self.clock.seconds())
            if signal is not None and not ended:
                run_folder.save_arrays(path, kept)
                message = f"stopped after {unit} {done} of {total}; saved {self.folder}"
                raise Interrupted(signal, message)
        checkpoints.finish()
        if name:
            path.unlink(missing_ok=True)  # an earlier interruption left it
        return carry, values, rows

    def _begin(
        self, checkpoints: Checkpoints, carry: Any, start: Any
    ) -> tuple[Checkpoint, list[dict[str, Any]]]:
        """Finds the checkpoint where a loop starts or continues, and its rows so far."""
        newest = checkpoints.newest(carry, self._log) if self.resume else None
        if newest is not None:
            self.clock.add_earlier(newest[1])
            return newest[0], newest[2]
        if self.resume and self._loops == 1 and not checkpoints.reported:
            message = f"{self.folder}: has no checkpoint yet: the run starts anew"
            warnings.warn(message, Caution, stacklevel=3)
        return Checkpoint(0, start, {}, {}, self._log.position(), self._log.size), []

    def _show(self, done: int, total: int, row: dict[str, Any], name: str) -> None:
        """Calls `progress`, with the first metrics of a named loop in words."""
        if name:  # the progress bar does not know the metrics of a study's loops
            own = {k.removeprefix(f"{name}_"): row[k] for k in row if k.startswith(f"{name}_")}
            metrics = [f"{metric} {value:.4g}" for metric, value in own.items()]
            words = [name]
            for text in metrics[:3]:  # the bar needs the rest of 80 columns
                words += [text] if len(", ".join([*words, text])) <= 40 else []
            row = {**row, "said": ", ".join(words)}
        self.progress(done, total, row)


def _lost(
    trained: Values, values: Values, unit: str, row: Callable[[int], Any], first: int, done: int
) -> str:
    """Says when a loss was not finite, and for which seed; an empty text if all are finite."""
    losses = np.asarray(trained.get("loss", np.zeros((1, 1))))
    bad = ~np.isfinite(losses)
    if bad.any():
        turn = int(np.argwhere(bad.any(axis=0))[0, 0])
        seed = int(np.argmax(bad[:, turn]))
        if losses.shape[1] == done - first:  # a loss for each turn, and no mean over them
            first, done = first + turn, first + turn + 1
        loss = losses[seed, turn]
        return f"{_when(unit, row, first, done)}: the training loss of seed {seed} is {loss}"
    late = [k for k, v in values.items() if k.endswith("loss") and not np.isfinite(v).all()]
    return f"{_when(unit, row, done - 1, done)}: {late[0]} is not finite" if late else ""


def _when(unit: str, row: Callable[[int], dict[str, Any]], before: int, last: int) -> str:
    """The turns after `before` up to `last` in words, with their steps."""
    steps = [row(turns).get("step", 0) for turns in (before, last)]
    extra = f" ({_span('step', *steps)})" if unit != "step" and steps[1] else ""
    return f"{_span(unit, before, last)}{extra}"


def _span(unit: str, before: int, last: int) -> str:
    return f"{unit} {last}" if last == before + 1 else f"{unit}s {before + 1} to {last}"


def _not_finite(host: Any, kind: str, excused: Sequence[str] = ()) -> list[str]:
    """Names the leaves that are not finite, such as `the parameter 0.w`, except excused ones."""
    leaves = zip(trees.names(host), map(np.asarray, jax.tree.leaves(host)), strict=True)
    floats = ((name, leaf) for name, leaf in leaves if np.issubdtype(leaf.dtype, np.inexact))
    lost = (f"the {kind} {name}".rstrip() for name, leaf in floats if not np.isfinite(leaf).all())
    return [name for name in lost if name not in excused]
