"""The page of a report: figures, tables and notes in one self-contained HTML file."""

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
    """A headline number.

    Args:
      label: what the number is.
      figure: the number.
      detail: an explanation; may be empty.
      colour: the colour of its rule; empty: none.
      quiet: whether it is a reference and so drawn in grey.
    """

    label: str
    figure: str
    detail: str = ""
    colour: str = ""
    quiet: bool = False


class Picture(NamedTuple):
    """A PNG inside the page.

    Args:
      source: the content as a data URI.
      name: the name of the picture.
    """

    source: str
    name: str


class Section(NamedTuple):
    """A part of the page. Only the title is required.

    Args:
      title: the heading.
      lead: a sentence below the heading.
      figures: the panels to draw.
      table: a table; None: no table.
      notes: sentences in a list.
      pictures: PNG pictures.
    """

    title: str
    lead: str = ""
    figures: Sequence[Panel] = ()
    table: Table | None = None
    notes: Sequence[str] = ()
    pictures: Sequence[Picture] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is no figure, row, note or picture, and no lead without a table."""
        rows = self.table is not None and any(self.table.rows)
        content = self.figures or rows or self.notes or self.pictures
        return not content and (self.table is not None or not self.lead)


class Detail(NamedTuple):
    """A folded part of the page.

    Args:
      title: the heading.
      text: plain text.
      pairs: keys and values, instead of the text.
    """

    title: str
    text: str = ""
    pairs: Sequence[tuple[str, str]] = ()


class Page(NamedTuple):
    """The content of one report, in reading order. Empty sections and details are left out.

    Args:
      kind: the kind of result, such as "run".
      title: the title.
      subtitle: the line below the title.
      tiles: headline numbers.
      sections: the parts of the page.
      details: the folded parts.
    """

    kind: str
    title: str
    subtitle: str
    tiles: Sequence[Tile]
    sections: Sequence[Section]
    details: Sequence[Detail]


def write(page: Page, path: Path) -> Path:
    """Renders a page to one HTML file with inline CSS and SVG. It has no script and loads nothing.

    All text is escaped.

    Args:
      page: the page.
      path: the file.

    Returns:
      `path`.

    Raises:
      DataError: the disk is full or the folder cannot be written.
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
        return Markup(svg(panel, f"f{next(drawn)}"))  # this code makes the SVG and escapes its text

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
    """Reads a PNG file for a page.

    Args:
      path: the file.

    Returns:
      The picture.

    Raises:
      DataError: the file cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    encoded = base64.b64encode(content).decode()
    return Picture(f"data:image/png;base64,{encoded}", path.stem.replace("_", " "))


def breaks(text: str) -> str:
    """Escapes a name and allows line breaks after an underscore, a colon, or a dot before a letter.

    Args:
      text: the name.

    Returns:
      The HTML.
    """
    from markupsafe import Markup, escape

    return Markup(re.sub(r"(?<=[_:])(?=\w)|(?<=\.)(?=[^\W\d])", "<wbr>", str(escape(text))))


def flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Flattens nested objects and lists.

    Args:
      value: the objects and lists.
      prefix: the key of `value`; empty at the top.

    Returns:
      Pairs of a dotted key and a value as text.
    """
    if isinstance(value, dict):
        return [pair for k, v in value.items() for pair in flat(v, f"{prefix}.{k}".strip("."))]
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        return [pair for i, v in enumerate(value) for pair in flat(v, f"{prefix}.{i}".strip("."))]
    if isinstance(value, list):
        return [(prefix, ", ".join(str(item) for item in value))]
    return [(prefix, str(value))]


def folded(config: str, environment: dict[str, Any], data: Any = None) -> list[Detail]:
    """The folded parts of every report: configuration, data, environment.

    Args:
      config: the text of the configuration.
      environment: the environment.
      data: the description of the data; None: no such part.

    Returns:
      The parts.
    """
    return [
        Detail("Configuration, resolved", text=config),
        Detail("Data", pairs=flat(data) if data else ()),
        Detail("Environment", pairs=flat(environment)),
    ]


def _as_cell(value: Any) -> TableCell:
    return value if isinstance(value, TableCell) else TableCell(value)
