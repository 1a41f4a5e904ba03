"""bench.html: what bench.json says, as one self-contained page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.goals import GOALS
from benchmarks.sections import SECTIONS, table_of
from bpeq.report.numbers import format_number
from bpeq.report.page import Detail, Page, Section, Tile, flat, write
from bpeq.report.tables import TableCell

TILES = ("eqprop_fixed_b128", "eqprop_certified_b128", "sweeps_saved_mlp1", "numpy_over_xor_50")


def write_page(result: dict[str, Any], path: Path) -> Path:
    """The page of a result; groups that were not measured are left out."""
    machine, rows = result["machine"], result["rows"]
    first, last = machine["load_before"][:1], machine.get("load_after", [])[:1]
    subtitle = (
        f"{machine['processor']}, {machine['cpu_count']} cores, jax {machine['versions']['jax']}, "
        f"{machine['backend']}; {result.get('data', '')}; load average {_list(first)} before and "
        f"{_list(last)} after{'; quick: a glance only' if result['quick'] else ''}"
    )
    tiles = [Tile(name, _ratio(result, name), GOALS[name][0]) for name in TILES]
    made = [ratios(result)]
    for build in SECTIONS:
        section = build(rows)
        if section is not None:
            made.append(section)
    skipped = [f"{r['group']}: {r['skipped']}" for r in rows if "skipped" in r]
    if skipped or result["failed"]:
        made.append(Section("Not measured", notes=[*skipped, *result["failed"]]))
    details = [
        Detail("Machine", pairs=flat(machine)),
        Detail("Minutes", pairs=flat(result["seconds"])),
    ]
    page = Page("benchmark", "Speed and memory", subtitle, tiles, made, details)
    return write(page, path)


def ratios(result: dict[str, Any]) -> Section:
    """All of them, with what is wanted."""
    rows = [
        [
            TableCell(name, detail=what),
            _ratio(result, name),
            _least(result, name),
            goal,
        ]
        for name, (what, goal) in GOALS.items()
    ]
    reasons: dict[str, list[str]] = {}
    for name, why in result["skipped"].items():
        reasons.setdefault(why, []).append(name)
    notes = [f"{why}: {', '.join(names)}" for why, names in reasons.items()]
    lead = (
        "Medians over rounds, of two times within a round: what slows one slows the other. Beside "
        "them the least time over the least; where the two differ much the machine was too busy."
    )
    columns = ("ratio", "read", "of the least", "wanted")
    return Section("Ratios", lead, table=table_of(columns, rows), notes=notes)


def _ratio(result: dict[str, Any], name: str) -> str:
    value = result["ratios"].get(name)
    return "—" if value is None else format_number(value)


def _least(result: dict[str, Any], name: str) -> str:
    return (
        format_number(result["ratios_of_least"][name]) if name in result["ratios_of_least"] else ""
    )


def _list(values: Sequence[float]) -> str:
    return ", ".join(map(str, values)) or "unknown"
