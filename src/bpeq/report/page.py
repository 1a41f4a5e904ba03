"""The page: sections of figures, tables and notes, rendered to one self-contained HTML file."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from bpeq.report import colours
from bpeq.report.figures import Panel, svg
from bpeq.report.tables import Table, TableCell
from bpeq.runs import run_folder
from bpeq.types import DataError


class Tile(NamedTuple):
    """A headline figure: what it is of, the figure, what qualifies it; quiet for references."""

    label: str
    figure: str
    detail: str = ""
    colour: str = ""
    quiet: bool = False


class Picture(NamedTuple):
    """A PNG file's content as a data URI, and what it is called."""

    source: str
    name: str


class Section(NamedTuple):
    """A part of the page: a heading, a sentence, then whatever of the rest is there."""

    title: str
    lead: str = ""
    figures: Sequence[Panel] = ()
    table: Table | None = None
    notes: Sequence[str] = ()
    pictures: Sequence[Picture] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show: no figure, row, note or picture, or a lead alone."""
        rows = self.table is not None and any(self.table.rows)
        content = self.figures or rows or self.notes or self.pictures
        return not content and (self.table is not None or not self.lead)


class Detail(NamedTuple):
    """Something folded away: plain text, or pairs of a key and its value."""

    title: str
    text: str = ""
    pairs: Sequence[tuple[str, str]] = ()


class Page(NamedTuple):
    """All that one report says, in reading order. Empty sections and details are left out."""

    kind: str
    title: str
    subtitle: str
    tiles: Sequence[Tile]
    sections: Sequence[Section]
    details: Sequence[Detail]


def write(page: Page, path: Path) -> Path:
    """Renders `page` to `path`: inline CSS and SVG, no script, nothing loaded from elsewhere.

    All text is escaped.
    """
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(variable=colours.variable, breaks=breaks, cell=_as_cell)
    here = resources.files("bpeq.report")
    drawn = iter(range(1000))

    def figure(panel: Panel) -> Markup:
        return Markup(svg(panel, f"f{next(drawn)}"))  # built here; its own text is escaped

    style = colours.stylesheet() + here.joinpath("page.css").read_text(encoding="utf-8")
    template = environment.from_string(here.joinpath("page.html.j2").read_text(encoding="utf-8"))
    page = page._replace(
        sections=[section for section in page.sections if not section.is_empty],
        details=[part for part in page.details if part.text or part.pairs],
    )
    text = template.render(page=page, style=Markup(style), figure=figure)
    run_folder.write_text(path, text)
    return path


def picture(path: Path) -> Picture:
    """A PNG file, to stand inside the page.

    Raises:
      DataError: it cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    encoded = base64.b64encode(content).decode()
    return Picture(f"data:image/png;base64,{encoded}", path.stem.replace("_", " "))


def breaks(text: str) -> str:
    """A name, escaped, free to break after an underscore, a colon, or a dot before a letter."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"(?<=[_:])(?=\w)|(?<=\.)(?=[^\W\d])", "<wbr>", str(escape(text))))


def flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """A nest of objects and lists as pairs: a dotted key, and its value as text."""
    if isinstance(value, dict):
        return [pair for k, v in value.items() for pair in flat(v, f"{prefix}.{k}".strip("."))]
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        return [pair for i, v in enumerate(value) for pair in flat(v, f"{prefix}.{i}".strip("."))]
    if isinstance(value, list):
        return [(prefix, ", ".join(str(item) for item in value))]
    return [(prefix, str(value))]


def folded(config: str, environment: dict[str, Any], data: Any = None) -> list[Detail]:
    """The folded parts of every report: configuration, data, environment."""
    return [
        Detail("Configuration, resolved", text=config),
        Detail("Data", pairs=flat(data) if data else ()),
        Detail("Environment", pairs=flat(environment)),
    ]


def _as_cell(value: Any) -> TableCell:
    return value if isinstance(value, TableCell) else TableCell(value)
