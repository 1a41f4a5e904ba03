"""The parts of the page: a plot and a table for each group of rows; None where it has none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.plots import Rows, bars, lines
from bpeq.report.numbers import duration, format_number, memory
from bpeq.report.page import Section
from bpeq.report.tables import Column, Group, Table


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
            r["name"],
            str(r["examples"]),
            f"{100 * r['settled']:.2f} %",
            format_number(r["sweeps"]),
            ", ".join(f"{c:.6f}" for c in r["cosine"].values()),
            format_number(r["reference_residual"]),
        ]
        for r in own
    ]
    lead = "Cosines by layer, from the input, to implicit differentiation in float64."
    columns = ("estimate", "examples", "settled", "sweeps", "cosine by layer", "its residual")
    return Section("What the speed costs", lead, table=table_of(columns, table))


def solving(rows: Rows) -> Section | None:
    """Sweeps and seconds to a residual."""
    own = [r for r in rows if r["group"] == "settling"]
    settled = [r for r in own if "tolerance" in r and None not in r["sweeps_99"]]
    curves = [{**r, "sweeps": sum(r["sweeps_99"])} for r in settled]
    words = "Free, +β and −β phase of 784-512-10 together"
    figures = [
        lines(curves, "tolerance", "sweeps", 1, "sweeps", "residual", f"{words}, to 99 % settled."),
        lines(curves, "tolerance", "seconds", 1e3, "ms", "residual", f"{words}, until all are."),
    ]
    table = [
        [
            r["name"],
            str(r["examples"]),
            " + ".join(_count(n) for n in r["sweeps_99"]),
            " + ".join(format_number(n) for n in r["sweeps_mean"]),
            str(r["unsettled"]),
            duration(r["seconds"]),
        ]
        for r in own
        if "sweeps_99" in r and "tolerance" not in r
    ]
    notes = [
        f"{r['name']}: of {r['phases']} phases in float64 both solvers settle "
        f"{r['phases_settled_by_both']} to 1e-12, {r['phases_elsewhere']} of them more than "
        f"1e-8 apart (largest gap {format_number(r['largest_gap'])})"
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
    table = [[r["name"], duration(r["seconds"]), f"{r['ours_over_it']:.3f}"] for r in nets]
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
    table = [[r["series"], str(r["sweeps"]), memory(r["bytes"]), _peak(r)] for r in own]
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


def _count(sweeps: int | None) -> str:
    return "not reached" if sweeps is None else str(sweeps)


def _told(r: dict[str, Any]) -> str:
    more = f"; compiling {duration(r['compile_seconds'])}" if "compile_seconds" in r else ""
    scaled = f", scaled from {r['scaled_from']} runs" if "scaled_from" in r else ""
    return duration(r["seconds"]) + scaled + more


def _peak(r: dict[str, Any]) -> str:
    return memory(r["peak"]) if "peak" in r else ""


def _timed(title: str, rows: Rows, figures: Sequence[Any]) -> Section | None:
    table = [
        [
            r["name"],
            str(r.get("batch", "")),
            duration(r["seconds"]),
            duration(r["least"]),
            duration(r["compile_seconds"]) if "compile_seconds" in r else "",
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
    return Section(title, lead, drawn, table_of(columns, table) if table else None, notes)


def table_of(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """A table of texts."""
    return Table([*map(Column, columns)], [Group(rows)])


SECTIONS: tuple[Callable[[Rows], Section | None], ...] = (
    *(updates, gradients, solving, convolution, rules, growing, remembered, starting),
)
