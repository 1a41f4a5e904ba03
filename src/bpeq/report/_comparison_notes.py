"""What a comparison's figures say in words: nulls beaten and unbeaten, runs and seeds lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bpeq.report._metrics import Metric
from bpeq.report._rows import FROZEN, Difference, Row, differences, mean_of, unit_after


def notes(comparison: dict[str, Any], found: list[Row], measured: Metric | None) -> list[str]:
    """Nulls beaten and unbeaten, what is lost, what is known of rows; then the comparison's own."""
    said = []
    if measured is None:
        said.append("No rule has any result: none of the runs finished.")
    else:
        said = _against_nulls(differences(comparison), found, measured)
    for row in found:
        stat = None if measured is None else row.stats.get(measured.name)
        if row.diverged:
            said.append(f"{row.name} diverged and has no result: {row.diverged}.")
        elif stat is not None and measured is not None and stat.lost:
            said.append(
                f"{row.name}: the {measured.label} of {stat.lost} of {len(stat.values)} seeds "
                "is not finite."
            )
        elif stat is None and measured is not None:
            said.append(f"{row.name} has no {measured.label}: its run did not finish.")
    said += [f"{row.name}: {row.note}" for row in found if row.note]
    return said + [str(note) for note in comparison.get("notes") or []]


def _against_nulls(pairs: list[Difference], found: list[Row], measured: Metric) -> list[str]:
    """Which rules beat the frozen control and which do not: by interval, or else by mean alone."""
    controls = [row for row in found if row.control and mean_of(row, measured) is not None]
    rules = [row for row in found if not row.control]
    if not controls or not measured.better:
        return []
    judged = {
        d.a: d
        for d in pairs
        if d.b == FROZEN and d.metric == measured and d.a in {row.name for row in rules}
    }
    if any(d.judged for d in judged.values()):
        frozen = next(row for row in controls if row.name == FROZEN)
        return _by_interval(list(judged.values()), f"{FROZEN} ({_shown(frozen, measured)})")
    best = max(controls, key=lambda row: measured.better * (mean_of(row, measured) or 0.0))
    bar = mean_of(best, measured) or 0.0
    means = {row.name: mean_of(row, measured) for row in rules}
    weak = [k for k, v in means.items() if v is not None and measured.better * (v - bar) <= 0]
    shown = f"{best.name} ({_shown(best, measured)})"
    return [f"No better than the null control {shown}: {', '.join(weak)}."] if weak else []


def _by_interval(pairs: Sequence[Difference], bar: str) -> list[str]:
    """`pairs`: each rule against the frozen control; `bar` names that, with its figure."""
    level = f"{100 * pairs[0].level:g} %"
    better, same, worse = (
        ", ".join(d.a for d in pairs if d.verdict == verdict)
        for verdict in ("better", "not distinguishable", "worse")
    )
    weak = [f"{same} (the {level} interval of the difference contains 0)"] if same else []
    weak += [f"{worse} (worse)"] if worse else []
    said = [f"Beat the null control {bar} by the {level} interval: {better}."] if better else []
    if weak:
        said.append(
            f"Do not beat the null control {bar}, whose hidden layers stay random: "
            f"{'; '.join(weak)}. Nothing here shows that their hidden layers learn anything useful."
        )
    return said


def _shown(row: Row, m: Metric) -> str:
    return f"{m.show(mean_of(row, m) or 0.0)}{unit_after(m)} {m.label}"
