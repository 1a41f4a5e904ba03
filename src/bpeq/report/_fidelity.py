"""The report of a fidelity folder: fidelity.png and report.html; and a run's own fidelity."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bpeq.report import _canvas as canvas
from bpeq.report import _colours as colours
from bpeq.report import _fidelity_words as say
from bpeq.report import _numbers as n
from bpeq.report._fidelity_grid import gdu_panel, grid_panels
from bpeq.report._fidelity_layers import layer_panel
from bpeq.report._fidelity_read import Equilibrium, Microscope, microscope
from bpeq.report._fidelity_rule import Rule, rule
from bpeq.report._fidelity_table import title_of
from bpeq.report._page import Cell, Detail, Group, Page, Section, Tile, folded, write
from bpeq.report._read import config_text, environment_of, mapping, number, only_noted, read_json
from bpeq.types import DataError

_MOST_TILES = 5


def write_fidelity_report(folder: Path) -> Path:
    """Draws a fidelity result: writes fidelity.png and report.html into its folder.

    Reads fidelity.json, and config.toml and environment.json where they are there. The figures:
    relative error by layer; then, as far as the result has them, over β, over the points of the
    holomorphic estimate, over sweeps; and EP's updates against BPTT's gradients.

    Args:
      folder: the fidelity folder.

    Returns:
      The path of report.html. Where no rule has figures there may be no fidelity.png.

    Raises:
      DataError: a file is absent, truncated or corrupt, a key missing or of the wrong type; names
        file and key.
    """
    folder = Path(folder)
    path = folder / "fidelity.json"
    result = read_json(path)
    try:
        found = microscope(result)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    about = folded(config_text(folder, result), environment_of(folder, result, path))
    title = found.name or folder.resolve().name
    layers = layer_panel(found.rules) if found.rules else None
    grids, gdu = grid_panels(found), gdu_panel(found.gdu)
    panels = [panel for panel in (layers, *grids, gdu) if panel is not None]
    if panels:
        canvas.png(panels, folder / "fidelity.png", title_of(found._replace(name=title)))
    sections = [
        None if layers is None else _closeness(found, layers),
        _own_objectives(found.rules),
        _grids(found, grids),
        _equilibrium(found.equilibrium),
        _nudges(found.rules),
        Section("EP's updates and BPTT's gradients", figures=[gdu]) if gdu else None,
        _references(found.rules),
        Section("Notes", notes=said) if (said := say.notes(found)) else None,
    ]
    page = Page(
        "fidelity",
        title,
        title_of(found._replace(name="")),
        _tiles(found.rules),
        [section for section in sections if section is not None],
        [*_every_point(found), *about],
    )
    return write(page, folder / "report.html")


def training_section(fidelity: Any, where: str) -> Section | None:
    """A run's "Gradient fidelity": layer by layer, before and after training; None without it.

    Args:
      fidelity: `fidelity` of summary.json.
      where: what an error names.

    Raises:
      DataError: a key is missing or its value has the wrong type.
    """
    fields = mapping(fidelity, where)
    name = str(fields.get("rule") or "the rule")
    given = {end: fields[end] for end in ("initial", "trained") if fields.get(end) is not None}
    noted = [f"{entry['note']}." for entry in given.values() if only_noted(entry)]
    if not given or noted:
        return Section("Gradient fidelity", noted[0]) if noted else None
    ends = {end: rule(name, entry, f"{where}.{end}") for end, entry in given.items()}
    examples = fields.get("examples")
    on = f" on {n.count(number(examples, f'{where}.examples'))} examples" if examples else ""
    said = []
    for end, r in ends.items():
        worst = f" ({say.worst(r)})" if say.worst(r) else ""
        said.append(f"{n.plain(r.total.relative_error)}{worst} with {end} parameters")
    own = {end: r.own for end, r in ends.items() if r.own is not None}
    lead = (
        f"How far the gradient of {name} was from the exact one of the same function{on}: its "
        f"relative error was {' and '.join(said)}; 0 is exact, 1 as far off as no gradient at all."
    )
    if own:
        told = say.objectives([r for r in ends.values() if r.own is not None][:1])
        lead += f" {told} The last columns are against its own objective's."
    layers = list(dict.fromkeys(layer for r in ends.values() for layer in r.layers))
    rows = []
    for layer in [*layers, "all"]:
        of = [r.total if layer == "all" else r.layers.get(layer) for r in ends.values()]
        texts = [n.ABSENT if m is None else n.plain(m.relative_error) for m in of]
        texts += [n.ABSENT if m is None else say.cosine(m.cosine) for m in of]
        of = [o.total if layer == "all" else o.layers.get(layer) for o in own.values()]
        texts += [n.ABSENT if m is None else n.plain(m.relative_error) for m in of]
        rows.append([Cell(layer), *map(Cell, texts)])
    columns = [f"{what}, {end}" for what in ("relative error", "cosine") for end in ends]
    columns += [f"to its own objective, {end}" for end in own]
    return Section("Gradient fidelity", lead, columns=["layer", *columns], groups=[Group(rows)])


def _tiles(rules: Sequence[Rule]) -> list[Tile]:
    tiles = []
    for i, r in enumerate(rules[:_MOST_TILES]):
        details = ["relative error", say.worst(r)]
        if r.own is not None:
            details.append(f"to its own objective {n.plain(r.own.total.relative_error)}")
        figure, detail = n.plain(r.total.relative_error), "; ".join(filter(None, details))
        tiles.append(Tile(r.name, figure, detail, colours.series(i)))
    return tiles


def _closeness(found: Microscope, panel: canvas.Panel) -> Section:
    rows = []
    for i, r in enumerate(found.rules):
        cells = [*say.measured(r.total), *say.settling(r)]
        rows.append([Cell(r.name, colour=colours.series(i)), *map(Cell, cells)])
        for name, m in r.layers.items():
            cells = [*say.measured(m), *[""] * len(say.ENDS)]
            rows.append([Cell(name, inset=True), *map(Cell, cells)])
    lead = (
        "Each rule's estimate against the exact gradient, in float64, of the rule's own function. "
        "Of all parameters together, and layer by layer: a total hides a layer that is far worse."
    )
    if any(r.own is not None for r in found.rules):
        lead += " A rule that follows another objective than the cost is set against that below."
    return Section(
        "Closeness to the exact gradient", lead, [panel], ["rule", *say.MEASURES, *say.ENDS],
        [Group(rows)],
    )  # fmt: skip


def _own_objectives(rules: Sequence[Rule]) -> Section | None:
    rows = []
    for i, r in enumerate(rules):
        if r.own is None:
            continue
        first = Cell(r.name, colour=colours.series(i), detail=r.own.objective)
        rows.append([first, *map(Cell, say.measured(r.own.total))])
        for name, m in r.own.layers.items():
            rows.append([Cell(name, inset=True), *map(Cell, say.measured(m))])
    if not rows:
        return None
    lead = (
        f"{say.objectives(rules)} Here are its distances to the exact gradient of what it follows."
    )
    columns = ["rule", *say.MEASURES]
    return Section("Own objectives", lead, columns=columns, groups=[Group(rows)])


def _grids(found: Microscope, panels: Sequence[canvas.Panel]) -> Section | None:
    parts = [say.orders(found), say.pole(found), say.precisions(found.rules)]
    against = {f"{p.rule} by {p.against}" for p in found.grid if p.against}
    if against:
        parts.append(f"Set against the gradient of what it follows: {'; '.join(sorted(against))}.")
    lead = " ".join(filter(None, parts))
    return Section("Bias and round-off", lead, panels) if panels or lead else None


def _equilibrium(at: Equilibrium | None) -> Section | None:
    if at is None:
        return None
    lead = f"The settled states{say.looked_at(at)}."
    rows = []
    for label, spread in (("curvature", at.curvature), ("curvature of the outputs", at.output)):
        if spread is not None:
            lines = zip(("smallest", "median over examples"), spread, strict=True)
            rows += [(f"{label}, {which}", n.plain(value)) for which, value in lines]
    if at.asymmetry is not None:
        rows.append(("asymmetry of the force's Jacobian", n.plain(at.asymmetry)))
    rows += [(f"saturated units of {name}", say.share(v)) for name, v in at.saturated.items()]
    if at.jumped is not None:
        beta, part = at.jumped
        rows.append((f"examples that jump at β = {say.setting(beta)}", say.share(part)))
    rows += [
        (f"along the grid, at β = {setting}", say.share(part))
        for setting, part in ((say.setting(beta), part) for beta, part in at.along)
    ]
    if at.settled is not None:
        rows.append(("examples that settled", say.share(at.settled)))
    if at.output is not None:
        lead += " With squared error a negative nudge must stay below the outputs' curvature."
    group = Group([[Cell(label), Cell(text)] for label, text in rows])
    return Section("Equilibrium", lead, columns=["quantity", "value"], groups=[group])


def _nudges(rules: Sequence[Rule]) -> Section | None:
    rows = []
    for i, r in enumerate(rules):
        left = n.ABSENT if r.residual is None else n.plain(r.residual)
        for place, (name, moved) in enumerate(r.amplitude.items()):
            if place == 0:
                rows.append([Cell(r.name, colour=colours.series(i)), Cell(""), Cell(left)])
            rows.append([Cell(name, inset=True), Cell(n.plain(moved)), Cell("")])
    if not rows:
        return None
    lead = (
        "How far the nudge moves each state (the examples' mean of the largest change), against "
        "what the solver left unsettled: where the two are close, the contrast is noise."
    )
    columns = ["state", "moved by", "residual"]
    return Section("Nudge", lead, columns=columns, groups=[Group(rows)])


def _references(rules: Sequence[Rule]) -> Section | None:
    known = [r for r in rules if r.reference]
    rows = []
    for r in known:
        first = Cell(r.name, colour=colours.series(rules.index(r)))
        lines = [(first, r.reference, r.reference_settled, r.reference_residual)]
        if r.own is not None:
            inset = Cell("own objective", inset=True)
            lines.append((inset, r.own.objective, r.own.settled, r.own.residual))
        for cell, by, settled, left in lines:
            cells = [cell, Cell(by), Cell(n.ABSENT if settled is None else say.share(settled))]
            rows.append([*cells, Cell(n.ABSENT if left is None else n.plain(left))])
    columns = ["rule", "exact gradient by", "settled", "largest residual"]
    return Section("References", columns=columns, groups=[Group(rows)]) if rows else None


def _every_point(found: Microscope) -> list[Detail]:
    """Every point of the grids, folded away."""
    pairs = []
    for p in found.grid:
        name = " ".join(part for part in (p.rule, p.estimator, p.precision) if part)
        at = [f"β = {say.setting(p.beta)}"] if p.beta else []
        at += [f"{say.setting(p.x)} {p.varied}"] if p.varied != "beta" else []
        text = f"{', '.join(at)}: relative error {n.plain(p.error)}, cosine {say.cosine(p.cosine)}"
        pairs.append((name, f"{text}, settled {say.share(p.settled)}"))
    return [Detail("Every point of the grids", pairs=pairs)] if pairs else []
