"""RESULTS.md: a run's ratios as a table, each with its command, the machine and the date."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

from benchmarks.goals import GOALS
from bpeq.report.numbers import format_number


def write_results(result: dict[str, Any], path: Path) -> Path:
    """Writes the table to `path`, in place of an earlier one."""
    machine, today = result["machine"], datetime.date.today().isoformat()
    where = (
        f"{machine['processor']}, {machine['cpu_count']} cores, jax {machine['versions']['jax']}, "
        f"{machine['backend']}, {result['data']}, {today}; load average "
        f"{_first(machine['load_before'])} before and {_first(machine['load_after'])} after, which "
        "includes the benchmark itself."
    )
    lines = [
        "# Speed and memory, as measured",
        "",
        "A figure for speed is a ratio of two times that were measured in turn in one run: the "
        "median over rounds. In brackets: the smallest time divided by the smallest time. Other "
        "figures are ratios of sweeps or of memory, and seconds. The floor of a product is its "
        "time at the highest rate that this machine reached. `make bench` measures all of them "
        f"in {result['seconds']['total'] / 60:.0f} minutes.",
        where,
        "",
        "| ratio | what is divided by what | `python -m benchmarks.bench` | measured | goal |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, (what, goal) in GOALS.items():
        group = result["groups"][name]
        lines.append(f"| `{name}` | {what} | `--only {group}` | {_read(result, name)} | {goal} |")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _read(result: dict[str, Any], name: str) -> str:
    value, least = result["ratios"][name], result["ratios_of_least"].get(name)
    if value is None:
        return f"not measured: {result['skipped'][name]}"
    return format_number(value) + ("" if least is None else f" [{format_number(least)}]")


def _first(load: list[float]) -> str:
    return str(load[0]) if load else "unknown"
