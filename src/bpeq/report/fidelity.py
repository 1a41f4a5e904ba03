"""The report of a fidelity folder, its terminal table, and the section in a run's report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bpeq.report import colours, fidelity_plots, fidelity_tables
from bpeq.report import fidelity_notes as words
from bpeq.report.numbers import cosine, count, format_number, setting, share
from bpeq.report.page import Detail, Page, Section, Tile, origin
from bpeq.report.tables import Table
from bpeq.runs.fidelity_results import Fidelity, RuleFidelity, TrainingFidelity

_MOST_TILES = 5
_FITS = (
    "A fit uses the longest range of β (or of N) in which the slopes between neighbouring points "
    "agree. ± is the difference between the largest and the smallest of these slopes."
)


def fidelity_table(result: dict[str, Any] | Fidelity) -> Table:
    """A table of estimates against exact gradients: one row for each rule, then one for each layer.

    A rule with another objective than the cost has more rows, against that objective. The caption
    holds the bias orders, the equilibrium and the notes.

    Args:
      result: the content of fidelity.json.

    Returns:
      The table, for a terminal of 80 columns.

    Raises:
      DataError: a key is missing or its value has the wrong type.
    """
    result = Fidelity.parse(result)
    rules = result.measured
    residuals = [r.reference_residual for r in rules.values()]
    residuals += [own.reference_residual for r in rules.values() if (own := r.own_objective)]
    lines = [words.objectives(rules)]
    if lines[0]:
        lines[0] += " Rows “own objective” are against the exact gradient of what it follows."
    lines += [words.precisions(rules), words.orders(result), words.pole(result), words.gdu(result)]
    lines.append(words.equilibrium(result))
    if known := [value for value in residuals if value]:
        lines.append(f"Exact gradients settled to a residual of {format_number(max(known))}.")
    caption = "\n".join(line for line in [*lines, *words.notes(result)] if line)
    table = fidelity_tables.measures_table(result, {}, own=True)
    return table._replace(title=_title_of(result, result.name), caption=caption)


def fidelity_page(folder: Path) -> Page:
    """The page of a fidelity folder, and fidelity.png.

    It reads fidelity.json, and config.toml and environment.json if they exist. The figures show the
    relative error by layer, and, if they were measured, over β, over the points of the holomorphic
    estimate and over sweeps, and EP's updates against BPTT's gradients.

    Args:
      folder: the folder of the fidelity result.

    Returns:
      The page. If no rule was measured there may be no fidelity.png.

    Raises:
      DataError: a file is absent, truncated or corrupt, or a key is missing or has the wrong type.
        The message names file and key.
    """
    result = Fidelity.read(folder / "fidelity.json")
    rules, title = result.measured, result.name or folder.resolve().name
    looks = {name: colours.series(i) for i, name in enumerate(rules)}
    layers, gdu = fidelity_plots.layer_panel(rules), fidelity_plots.gdu_panel(result.gdu)
    grids = fidelity_plots.grid_panels(result)
    return Page(
        "fidelity",
        title,
        _title_of(result, ""),
        _tiles(rules),
        [
            _closeness(result, looks)._replace(figures=[layers]),
            Section(
                "Own objectives",
                f"{words.objectives(rules)} Here are its distances to the exact gradient of what "
                "it follows.",
                table=fidelity_tables.own_objectives_table(result, looks),
            ),
            _grids(result)._replace(figures=grids),
            _equilibrium(result),
            Section(
                "Nudge",
                "How far the nudge moves each state (the mean over examples of the largest "
                "change), and what the solver left unsettled. Where the two are close, the "
                "contrast is noise.",
                table=fidelity_tables.nudge_table(result, looks),
            ),
            Section("EP's updates and BPTT's gradients", figures=[gdu]),
            Section("References", table=fidelity_tables.references_table(result, looks)),
            Section("Notes", notes=words.notes(result)),
        ],
        [
            Detail("Every point of the grids", pairs=_every_point(result)),
            *origin(folder, result),
        ],
        _title_of(result, title),
        {"fidelity.png": [layers, *grids, gdu]},
    )


def training_section(fidelity: TrainingFidelity | None) -> Section:
    """The section "Gradient fidelity" of a run: layer by layer, before and after training.

    Args:
      fidelity: the `fidelity` of summary.json; None: not measured.

    Returns:
      The section; empty if there is no fidelity.
    """
    title, fidelity = "Gradient fidelity", fidelity or TrainingFidelity()
    ends, name = fidelity.ends, fidelity.rule or "the rule"
    notes = [r.note for r in (fidelity.initial, fidelity.trained) if r is not None and r.note]
    if not ends:
        return Section(title, f"{notes[0]}." if notes else "")
    texts = []
    for end, r in ends.items():
        worst = f" ({words.worst_layer(r)})" if words.worst_layer(r) else ""
        texts.append(f"{format_number(r.relative_error)}{worst} with {end} parameters")
    on = f" on {count(fidelity.examples)} examples" if fidelity.examples else ""
    lead = (
        f"How far the gradient of {name} was from the exact one of the same function{on}: its "
        f"relative error was {' and '.join(texts)}; 0 is exact, 1 as far off as no gradient at all."
    )
    follows = words.objectives({name: [*ends.values()][-1]})
    table = fidelity_tables.training_table({name: fidelity}, {})
    return Section(title, f"{lead} {follows}".strip(), table=table)


def _title_of(result: Fidelity, name: str) -> str:
    """ "digits · initial parameters · 64 examples · float32", of those that are known."""
    params = result.params if result.params != "initial" else "initial parameters"
    examples = "" if result.examples is None else f"{count(result.examples)} examples"
    return " · ".join(part for part in (name, params, examples, result.precision) if part)


def _tiles(rules: Mapping[str, RuleFidelity]) -> list[Tile]:
    tiles = []
    for i, (name, r) in enumerate([*rules.items()][:_MOST_TILES]):
        details = ["relative error", words.worst_layer(r)]
        if r.own_objective is not None:
            error = format_number(r.own_objective.relative_error)
            details.append(f"to its own objective {error}")
        figure, detail = format_number(r.relative_error), "; ".join(filter(None, details))
        tiles.append(Tile(name, figure, detail, colours.series(i)))
    return tiles


def _closeness(result: Fidelity, looks: Mapping[str, str]) -> Section:
    lead = (
        "Each rule's estimate against the exact gradient, in float64, of the rule's own function. "
        "First of all parameters together, then layer by layer: a total hides a layer that is far "
        "worse."
    )
    if any(r.own_objective is not None for r in result.measured.values()):
        lead += " A rule that follows another objective than the cost is set against that below."
    table = fidelity_tables.measures_table(result, looks, own=False)
    return Section("Closeness to the exact gradient", lead, table=table)


def _grids(result: Fidelity) -> Section:
    parts = [words.orders(result), words.pole(result), words.precisions(result.measured)]
    against = {f"{p.rule} by {p.against}" for p in result.grid if p.against}
    if against:
        parts.append(f"Set against the gradient of what it follows: {'; '.join(sorted(against))}.")
    table = fidelity_tables.fits_table(result)
    fitted = any(table.rows)
    parts += [_FITS] if fitted else []
    lead = " ".join(filter(None, parts))
    return Section("Bias and round-off", lead, table=table if fitted else None)


def _equilibrium(result: Fidelity) -> Section:
    at = result.equilibrium
    lead = "" if at is None else f"The settled states{words.sample(at)}."
    if at is not None and at.output_curvature is not None:
        lead += " With squared error a negative nudge must stay below the outputs' curvature."
    return Section("Equilibrium", lead, table=fidelity_tables.equilibrium_table(result))


def _every_point(result: Fidelity) -> list[tuple[str, str]]:
    pairs = []
    for p in result.grid:
        name = " ".join(part for part in (p.rule, p.estimator, p.precision) if part)
        at = [f"β = {setting(p.beta)}"] if p.beta else []
        at += [f"{setting(p.x)} {p.varied}"] if p.varied != "beta" else []
        error, angle = format_number(p.relative_error), cosine(p.cosine)
        text = f"{', '.join(at)}: relative error {error}, cosine {angle}"
        pairs.append((name, f"{text}, settled {share(p.converged)}"))
    return pairs
