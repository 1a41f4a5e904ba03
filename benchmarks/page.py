"""bench.html: what bench.json says, as one self-contained page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.plots import Rows, bars, lines
from bpeq.report._numbers import duration, memory, plain
from bpeq.report._page import Cell, Detail, Group, Page, Section, Tile, flat, write

GOALS = {
    "eqprop_fixed_b128": ("EP, 30 + 10 sweeps, over backprop, batch 128", "≤ 2.5"),
    "eqprop_certified_b128": ("EP to a residual of 1e-5, over backprop, batch 128", "≤ 2.5"),
    "eqprop_fixed_b20": ("EP, 30 + 10 sweeps, over backprop, batch 20", "≤ 3.5"),
    "eqprop_fixed_b1024": ("EP, 30 + 10 sweeps, over backprop, batch 1024", "≤ 3"),
    "centered_over_one_sided": ("EP at ±β over EP at β, batch 128", "≤ 1.25"),
    "sweeps_saved_mlp1": ("plain sweeps over accelerated ones, 784-512-10", "≥ 3"),
    "sweeps_saved_mlp3": ("the same, 784-512-512-512-10", "≥ 3"),
    "sweeps_saved_cnn": ("the same, CNN", "≥ 3"),
    "roofline_b1024": ("certified EP over the floor of its two products, batch 1024", "≤ 2.5"),
    "compile_seconds": ("an epoch's compile time, the longer of 10 and 1,000 sweeps, s", "≤ 1.5"),
    "numpy_over_xor_50": ("50 NumPy runs of XOR over 50 seeds at once", "≥ 100"),
    "memory_1000_over_10": ("EP's memory at 1,000 sweeps over 10", "≤ 1.05"),
    "cnn_sweep_over_floor": ("CNN: a sweep over the floor of two convolutions", "≤ 2.5"),
    "cnn_fixed": ("CNN: EP, 30 + 10 sweeps, over backprop, batch 100", "≤ 20"),
    "cnn_certified": ("CNN: accelerated EP over backprop, batch 100", "≤ 10"),
    "backprop_over_autodiff": ("hand-written backprop over jax.grad, the worst net", "≤ 1"),
}
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
    for build in (updates, gradients, solving, convolution, rules, growing, remembered, starting):
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
        [Cell(name, detail=what), Cell(_ratio(result, name)), Cell(goal)]
        for name, (what, goal) in GOALS.items()
    ]
    reasons: dict[str, list[str]] = {}
    for name, why in result["skipped"].items():
        reasons.setdefault(why, []).append(name)
    notes = [f"{why}: {', '.join(names)}" for why, names in reasons.items()]
    lead = "Medians over rounds, of two times within a round: what slows one slows the other."
    columns = ("ratio", "read", "wanted")
    return Section("Ratios", lead, columns=columns, groups=[Group(rows)], notes=notes)


def updates(rows: Rows) -> Section | None:
    """The reference net, at each batch size."""
    own = [r for r in rows if r["group"] in ("eqprop", "pytorch") and "seconds" in r]
    figures = []
    for batch in sorted({r["batch"] for r in own}):
        some = [r for r in own if r["batch"] == batch]
        times = [1e3 * r["seconds"] for r in some]
        caption = "One update within the training scan, and matrix products of its size."
        figures.append(bars([r["name"] for r in some], times, f"ms, batch {batch}", caption))
    return _timed("An update of 784-512-10", own, figures)


def gradients(rows: Rows) -> Section | None:
    """How near the estimates come to the exact gradient."""
    own = [r for r in rows if "cosine" in r]
    if not own:
        return None
    table = [
        [
            Cell(r["name"]),
            Cell(str(r["examples"])),
            Cell(f"{100 * r['settled']:.2f} %"),
            Cell(plain(r["sweeps"])),
            Cell(", ".join(f"{c:.6f}" for c in r["cosine"].values())),
            Cell(plain(r["reference_residual"])),
        ]
        for r in own
    ]
    lead = "Cosines by layer, from the input, to implicit differentiation in float64."
    columns = ("estimate", "examples", "settled", "sweeps", "cosine by layer", "its residual")
    return Section("What the speed costs", lead, columns=columns, groups=[Group(table)])


def solving(rows: Rows) -> Section | None:
    """Sweeps and seconds to a residual."""
    own = [r for r in rows if r["group"] == "settling"]
    curves = [{**r, "sweeps": sum(r["sweeps_99"])} for r in own if "tolerance" in r]
    words = "Free, +β and −β phase of 784-512-10 together"
    figures = [
        lines(curves, "tolerance", "sweeps", 1, "sweeps", "residual", f"{words}, to 99 % settled."),
        lines(curves, "tolerance", "seconds", 1e3, "ms", "residual", f"{words}, until all are."),
    ]
    table = [
        [
            Cell(r["name"]),
            Cell(str(r["examples"])),
            Cell(" + ".join(plain(n) for n in r["sweeps_99"])),
            Cell(" + ".join(plain(n) for n in r["sweeps_mean"])),
            Cell(str(r["unsettled"])),
            Cell(duration(r["seconds"])),
        ]
        for r in own
        if "sweeps_99" in r and "tolerance" not in r
    ]
    notes = [
        f"{r['name']}: of {r['phases']} phases in float64 both solvers settle "
        f"{r['phases_settled_by_both']} to 1e-12, {r['phases_elsewhere']} of them more than "
        f"1e-8 apart (largest gap {plain(r['largest_gap'])})"
        for r in own
        if "phases" in r
    ]
    lead = "Sweeps of the free, +β and −β phase until 99 % of the examples are at residual 1e-5."
    columns = ("net, solver", "examples", "sweeps, 99 %", "mean", "unsettled", "time")
    return _section("Settling", lead, figures, columns, table, notes)


def convolution(rows: Rows) -> Section | None:
    """The CNN."""
    return _timed(
        "The CNN", [r for r in rows if r["group"] == "convolution" and "seconds" in r], ()
    )


def rules(rows: Rows) -> Section | None:
    """Updates a second of every rule; and hand-written backward passes."""
    own = sorted(
        (r for r in rows if r["group"] == "every_rule"), key=lambda r: -r["updates_a_second"]
    )
    caption = "784-512-10, batch 128; relaxing rules by 30 sweeps, and 10 in further phases."
    speeds = [r["updates_a_second"] for r in own]
    figures = [bars([r["name"] for r in own], speeds, "updates a second", caption)]
    nets = [r for r in rows if r["group"] == "backward" and "net" in r]
    table = [
        [Cell(r["name"]), Cell(duration(r["seconds"])), Cell(f"{r['ours_over_it']:.3f}")]
        for r in nets
    ]
    columns = ("gradient", "time", "hand-written over it")
    return _section("Every rule, and backprop by hand", "", figures, columns, table)


def growing(rows: Rows) -> Section | None:
    """Scaling."""
    own = [r for r in rows if r["group"] == "scaling"]
    figures = []
    for axis in dict.fromkeys(r["axis"] for r in own):
        some = [r for r in own if r["axis"] == axis]
        caption = f"One update over {axis}; else batch 64, width 256, one hidden layer, 30 + 10."
        figures.append(lines(some, "value", "seconds", 1e3, "ms", axis, caption))
    return _section("Growth", "", figures)


def remembered(rows: Rows) -> Section | None:
    """Memory over sweeps."""
    own = [r for r in rows if r["group"] == "memory" and "bytes" in r]
    caption = "Temporaries of one estimate, 784-512-10 at batch 128, by XLA's own account."
    figure = lines(own, "sweeps", "bytes", 2**-20, "MiB", "sweeps", caption)
    table = [
        [Cell(r["series"]), Cell(str(r["sweeps"])), Cell(memory(r["bytes"])), Cell(_peak(r))]
        for r in own
    ]
    columns = ("rule", "sweeps", "temporaries", "peak of a process")
    return _section("Memory", "", [figure], columns, table)


def starting(rows: Rows) -> Section | None:
    """Compiling, and whole processes."""
    figures = []
    for group, caption in (
        ("compiling", "Tracing and compiling an epoch, no cache."),
        ("starting", "Whole processes; `bpeq run` is one epoch of digits."),
    ):
        own = [r for r in rows if r["group"] == group and "seconds" in r]
        names = [r["name"].partition(" ")[2] for r in own]
        figures.append(bars(names, [r["seconds"] for r in own], "seconds", caption))
    xor = [r for r in rows if r["group"] == "xor" and "seconds" in r]
    notes = [f"{r['name']}, {r['seeds']} seeds × {r['epochs']:,} epochs: {_told(r)}" for r in xor]
    return _section("Compiling and starting; XOR", "", figures, notes=notes)


def _told(r: dict[str, Any]) -> str:
    more = f"; compiling {duration(r['compile_seconds'])}" if "compile_seconds" in r else ""
    scaled = f", scaled from {r['scaled_from']} runs" if "scaled_from" in r else ""
    return duration(r["seconds"]) + scaled + more


def _peak(r: dict[str, Any]) -> str:
    return memory(r["peak"]) if "peak" in r else ""


def _timed(title: str, rows: Rows, figures: Sequence[Any]) -> Section | None:
    table = [
        [
            Cell(r["name"]),
            Cell(str(r.get("batch", ""))),
            Cell(duration(r["seconds"])),
            Cell(duration(r["least"])),
            Cell(duration(r["compile_seconds"]) if "compile_seconds" in r else ""),
        ]
        for r in rows
    ]
    return _section(title, "", figures, ("program", "batch", "median", "least", "compiling"), table)


def _section(
    title: str,
    lead: str,
    figures: Sequence[Any],
    columns: Sequence[str] = (),
    table: Sequence[Any] = (),
    notes: Sequence[str] = (),
) -> Section | None:
    drawn = [figure for figure in figures if figure is not None]
    if not (drawn or table or notes):
        return None
    return Section(title, lead, drawn, columns, [Group(table)] if table else (), notes)


def _ratio(result: dict[str, Any], name: str) -> str:
    value = result["ratios"].get(name)
    return "—" if value is None else plain(value)


def _list(values: Sequence[float]) -> str:
    return ", ".join(map(str, values)) or "unknown"
