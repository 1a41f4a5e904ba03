"""The page of a report: figures, tables and notes in one self-contained HTML file."""

from __future__ import annotations

import base64
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from bpeq.report import colours
from bpeq.report.figures import Panel, png, svg
from bpeq.report.numbers import plural
from bpeq.report.tables import Table, to_csv
from bpeq.runs import run_folder
from bpeq.runs.json_models import Holder, Result, read_text
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


class Section(NamedTuple):
    """A part of the page. Only the title is required.

    Args:
      title: the heading.
      lead: a sentence below the heading.
      figures: the panels to draw. None is left out.
      table: a table; None: no table.
      notes: sentences in a list.
      pictures: PNG files.
    """

    title: str
    lead: str = ""
    figures: Sequence[Panel | None] = ()
    table: Table | None = None
    notes: Sequence[str] = ()
    pictures: Sequence[Path] = ()

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
      subject: the title of the PNG files.
      panels: the panels of each PNG file that is written beside the page. None is left out,
        and so is a file without panels.
      tables: the table of each CSV file that is written beside the page.
    """

    kind: str
    title: str
    subtitle: str
    tiles: Sequence[Tile]
    sections: Sequence[Section]
    details: Sequence[Detail]
    subject: str = ""
    panels: Mapping[str, Sequence[Panel | None]] = {}
    tables: Mapping[str, Table] = {}


def write(page: Page, path: Path) -> Path:
    """Renders a page to one HTML file with inline CSS and SVG, and writes its PNG and CSV files.

    The page has no script and loads nothing. All text is escaped.

    Args:
      page: the page.
      path: the file.

    Returns:
      `path`.

    Raises:
      DataError: a picture cannot be read, the disk is full, or the folder cannot be written.
    """
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(variable=colours.variable, breaks=breaks, source=_source)
    here = resources.files("bpeq.report")
    numbers = itertools.count()

    def figure(panel: Panel) -> Markup:
        return Markup(
            svg(panel, f"f{next(numbers)}")
        )  # this code makes the SVG and escapes its text

    style = colours.stylesheet() + here.joinpath("page.css").read_text(encoding="utf-8")
    template = environment.from_string(here.joinpath("page.html.j2").read_text(encoding="utf-8"))
    sections = [s._replace(figures=[*filter(None, s.figures)]) for s in page.sections]
    page = page._replace(
        sections=[section for section in sections if not section.is_empty],
        details=[part for part in page.details if part.text or part.pairs],
    )
    text = template.render(page=page, style=Markup(style), figure=figure)
    for name, table in page.tables.items():
        run_folder.write_text(path.with_name(name), to_csv(table))
    for name, panels in page.panels.items():
        if drawn := [*filter(None, panels)]:
            png(drawn, path.with_name(name), page.subject)
    run_folder.write_text(path, text)
    return path


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


def origin(folder: Path, result: Holder, others: Sequence[Path] = ()) -> list[Detail]:
    """The folded parts of every report: configuration, data, environment.

    The configuration is config.toml, else the result's own. The environment is environment.json,
    else the result's own, else environment.json in one of the other folders.

    Args:
      folder: the folder of the result.
      result: the result.
      others: other folders.

    Returns:
      The parts.

    Raises:
      DataError: a file cannot be read.
    """
    config = json.dumps(result.config, indent=2, ensure_ascii=False) if result.config else ""
    if (folder / "config.toml").exists():
        config = read_text(folder / "config.toml").strip()
    environment, places = result.environment, [folder, *([] if result.environment else others)]
    paths = [path for place in places if (path := place / "environment.json").exists()]
    if paths:
        environment = Result.read(paths[0]).model_dump()
    return [
        Detail("Configuration, resolved", text=config),
        Detail("Data", pairs=flat(result.data) if result.data else ()),
        Detail("Environment", pairs=flat(environment)),
    ]


def title_of(result: Holder, name: str) -> str:
    """The title of a result, such as "digits · eqprop · 5 seeds".

    Args:
      result: the result. Unknown parts are left out.
      name: the first part of the title.

    Returns:
      The title.
    """
    seeds = plural(result.seeds, "seed") if isinstance(result.seeds, int) else result.seeds
    return " · ".join(str(part) for part in (name, result.rule, seeds) if part)


def _source(path: Path) -> str:
    """The content of a PNG file as a data URI."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"
