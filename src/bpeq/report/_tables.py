"""Terminal tables, at most 80 columns wide: one run, or the rules of a comparison side by side."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from bpeq.report import _numbers as n
from bpeq.report._comparison_notes import notes
from bpeq.report._metrics import best_worst, metric, spread, stats
from bpeq.report._read import mapping, number
from bpeq.report._rows import COSTS, Row, differences, interval, lead, omitted, rows

if TYPE_CHECKING:
    from rich.table import Table

_MOST_PAIRS = 6  # that a caption spells out


def run_table(summary: dict[str, Any]) -> Table:
    """The metrics of one run: mean ± std over seeds, the best and the worst seed; timings below.

    Args:
      summary: what summary.json holds; `name`, `rule`, `seeds`, `seconds` and each metric may lack.

    Raises:
      DataError: a metric or a timing is not a number.
    """
    found = stats(summary.get("metrics"), "metrics")
    several = any(len(stat.values) > 1 for stat in found.values())
    table = blank(title_of(summary), _timings(summary))
    table.add_column("metric", overflow="fold")
    table.add_column("mean ± std" if several else "value", justify="right", no_wrap=True)
    if several:
        table.add_column("best seed", justify="right", no_wrap=True)
        table.add_column("worst seed", justify="right", no_wrap=True)
    for name, stat in found.items():
        m = metric(name)
        extremes = () if not several else ("", "") if m.family == "solved" else best_worst(m, stat)
        label = m.label if m.family == "solved" else m.axis
        table.add_row(words(label), spread(m, stat), *extremes)
    return table


def comparison_table(comparison: dict[str, Any]) -> Table:
    """The rules of a comparison: the leading metric over seeds, fidelity, the cost of one gradient.

    Null controls stand apart below the rules, under a line that says what they are. The caption
    holds the paired differences and the comparison's notes. Where fidelity is known it takes the
    place of the best and the worst seed: a table is 80 columns wide.

    Args:
      comparison: what comparison.json holds.

    Raises:
      DataError: a metric or a cost is not a number.
    """
    found = rows(comparison)
    measured = lead(found)
    costs = [key for key in COSTS if any(key in row.cost for row in found)]
    solved = any("solved" in row.stats for row in found)
    several = measured is not None and any(
        len(row.stats[measured.name].values) > 1 for row in found if measured.name in row.stats
    )
    near = any(row.fidelity for row in found)
    several = several and not near
    table = blank(title_of(comparison), _caption(comparison, found))
    table.add_column("rule", overflow="fold", min_width=12)
    if measured is not None:
        head = measured.axis if len(measured.axis) < 14 else measured.axis.replace(", ", ",\n")
        table.add_column(head, justify="right", no_wrap=True)
    if solved:
        table.add_column("solved", justify="right", no_wrap=True)
    elif several:
        table.add_column("best – worst", justify="right", no_wrap=True)
    if near:
        table.add_column("grad.\nerror", justify="right", no_wrap=True)
        table.add_column("worst\ncosine", justify="right", no_wrap=True)
    for key in costs:
        table.add_column(COSTS[key][0], justify="right", no_wrap=True)

    def cells(row: Row) -> list[str]:
        line = []
        if measured is not None:
            stat = row.stats.get(measured.name)
            absent = "diverged" if row.diverged else "no result"
            line.append(absent if stat is None else spread(measured, stat))
            if several and not solved:
                many = stat is not None and len(stat.values) > 1
                line.append(" – ".join(best_worst(measured, stat)) if stat and many else "")
        if solved:
            share = row.stats.get("solved")
            line.append(spread(metric("solved"), share) if share else "")
        line += _nearness(row) if near else []
        return line + [COSTS[k][1](row.cost[k]) if k in row.cost else n.ABSENT for k in costs]

    lines = [(row, cells(row)) for row in found]
    columns = zip(*(c for _, c in lines), strict=True)
    heads = [max(map(len, str(column.header).split("\n"))) for column in table.columns[1:]]
    others = sum(max(h, *map(len, c)) + 2 for h, c in zip(heads, columns, strict=True))
    width = max(12, 80 - others)
    for row, line in lines:
        if row.control and row is next(r for r in found if r.control):
            table.add_section()
            table.add_row(words("null controls", "italic dim"))
        name = words(folded_name(row.name, width), "dim" if row.control else "bold")
        table.add_row(name, *line, style="dim" if row.control else None)
    return table


def _nearness(row: Row) -> list[str]:
    """With trained parameters: the whole gradient's relative error, the worst layer's cosine."""
    if "trained" not in row.fidelity:
        return ["", ""] if row.control else [n.ABSENT, n.ABSENT]
    found = row.fidelity["trained"]
    # Weights that the exact gradient leaves alone, such as trained inverses, have no direction to
    # be judged by: their cosine is 0 by definition, their relative error infinite.
    judged = [m for m in found.layers.values() if m.cosine or math.isfinite(m.relative_error)]
    cosines = [m.cosine for m in judged or [found.total]]
    worst = math.nan if any(map(math.isnan, cosines)) else min(cosines)
    return [n.plain(found.total.relative_error, 2), n.fixed(worst, 4)]


def title_of(holder: dict[str, Any]) -> str:
    """ "digits · eqprop · 5 seeds", of those that are known."""
    seeds = holder.get("seeds")
    if isinstance(seeds, int):
        seeds = "1 seed" if seeds == 1 else f"{seeds} seeds"
    return " · ".join(str(part) for part in (holder.get("name"), holder.get("rule"), seeds) if part)


def timings(holder: dict[str, Any], where: str = "seconds") -> dict[str, str]:
    """`seconds` of a summary by name, written out; those that are not finite are left out."""
    found = mapping(holder.get("seconds"), where)
    checked = {name: number(value, f"{where}.{name}") for name, value in found.items()}
    return {name: n.duration(value) for name, value in checked.items() if math.isfinite(value)}


def _timings(summary: dict[str, Any]) -> str:
    return " · ".join(f"{name} {text}" for name, text in timings(summary).items())


def _caption(comparison: dict[str, Any], found: list[Row]) -> str:
    lines = []
    if any(row.cost for row in found):
        lines.append("Cost is of one gradient.")
    if any(row.fidelity for row in found):
        lines.append(
            "grad. error: of the gradient, relative to the exact one of the rule's own function, "
            "with trained parameters; worst cosine: of the layer that is furthest off."
        )
    pairs = differences(comparison)
    for d in pairs[:_MOST_PAIRS]:
        unit = f" {d.unit}".rstrip().replace(" percentage", "")
        between = f", {100 * d.level:g} % interval {interval(d)}" if interval(d) else ""
        size = f"{d.metric.difference(d.mean)}{unit}{between}, n\u00a0=\u00a0{d.n}"
        lines.append(f"{d.title}, {d.metric.label}: {size}; {d.says()}.")
    lines += [text for text in [omitted(_MOST_PAIRS, len(pairs))] if text]
    return "\n".join(lines + notes(comparison, found, lead(found)))


def blank(title: str, caption: str) -> Table:
    """A table without columns yet, in the style of all tables."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    return Table(
        title=words(title, "bold"),
        caption=words("\n" + caption, "dim") if caption else None,
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )


def words(text: str, style: str = "") -> Any:
    """Text in a style, never markup: names and notes may hold square brackets."""
    from rich.text import Text

    return Text(text, style=style)


def folded_name(name: str, width: int) -> str:
    """`name` on lines of at most `width`, broken after an underscore, dot or colon if it can be."""
    lines = [""]
    for part in filter(None, re.findall(r"[^_.:]*[_.:]?", name)):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)
