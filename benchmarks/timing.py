"""Interleaved timing: every round calls each program once, so that a busy machine slows all."""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from bpeq.runs import run_folder
from bpeq.training.loops import compiling

Seconds = dict[str, list[float]]
"""Of every program, a value a round."""


ENOUGH = 0.02
"""Seconds of a program in a round, at least."""


class Effort(NamedTuple):
    """How much is measured: rounds of each program, examples that settle, whether it is a glance.

    quick leaves out the slow rows, and takes small samples of the others.
    """

    rounds: int = 15
    examples: int = 1024
    quick: bool = False


QUICK = Effort(rounds=5, examples=256, quick=True)


class Ratio(NamedTuple):
    """One time over another: the median of the rounds, and the least time over the least.

    Where the two differ much, the machine was too busy for either.
    """

    median: float
    least: float


class Found(NamedTuple):
    """What a group of rows has measured; why a ratio is not among them stands under `skipped`."""

    rows: list[dict[str, Any]]
    ratios: dict[str, float | Ratio]
    skipped: dict[str, str] = {}  # noqa: RUF012


class Skipped(Exception):
    """Why a group of rows cannot be measured here."""


class Program(NamedTuple):
    """A compiled program of `steps` steps, and what it took to compile: time, and processor time.

    On a busy machine the latter, which all threads share, is what can be compared.
    """

    call: Callable[[], Any]
    steps: int = 1
    compile_seconds: float = 0.0
    compile_processor_seconds: float = 0.0


def compiled(f: Callable[..., Any], *args: Any, steps: int = 1) -> Program:
    """`f(*args)` as one program, traced and compiled here."""
    start, busy = time.perf_counter(), time.process_time()
    ready = jax.jit(f, compiler_options=compiling()).lower(*args).compile()  # as training does
    spent = time.perf_counter() - start, time.process_time() - busy
    return Program(lambda: ready(*args), steps, *spent)


def interleaved(programs: Mapping[str, Program], rounds: int, warm: int = 1) -> Seconds:
    """Seconds a step of every program in every round, after `warm` rounds that warm up.

    A short program is called often enough in each round that a hiccup of the machine is small.
    """
    seconds: Seconds = {name: [] for name in programs}
    calls = dict.fromkeys(programs, 1)
    for round_ in range(rounds + warm):
        for name, program in programs.items():
            start = time.perf_counter()
            for _ in range(calls[name]):
                jax.block_until_ready(program.call())
            spent = (time.perf_counter() - start) / calls[name]
            if round_ >= warm:
                seconds[name].append(spent / program.steps)
            else:
                calls[name] = max(1, round(ENOUGH / spent))
    return seconds


def ratio(seconds: Seconds, over: str, under: str) -> Ratio:
    """One program's time over another's in the same round."""
    pairs = zip(seconds[over], seconds[under], strict=True)
    least = min(seconds[over]) / min(seconds[under])
    return Ratio(statistics.median(a / b for a, b in pairs), least)


def row(name: str, times: Sequence[float], **more: Any) -> dict[str, Any]:
    """A timed row: median, least and rounds, in seconds."""
    median = statistics.median(times)
    return {"name": name, "seconds": median, "least": min(times), "rounds": len(times), **more}


def timed_rows(seconds: Seconds, programs: Mapping[str, Program], **more: Any) -> list[dict]:
    """A row for every program."""
    return [
        row(name, times, compile_seconds=programs[name].compile_seconds, **more)
        for name, times in seconds.items()
    ]


def machine() -> dict[str, Any]:
    """The environment of every bpeq run, and the processor and how busy it is."""
    return {**run_folder.environment(), "processor": _processor(), "load_before": load()}


def load() -> list[float]:
    """Load averages over 1, 5 and 15 minutes; of a quiet machine the first is below 1 or so."""
    return [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else []


def said(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = {line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")}
    return ", ".join(sorted(names)) or platform.processor()
