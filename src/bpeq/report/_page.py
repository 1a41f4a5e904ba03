"""The page: sections of figures, tables and notes, rendered to one self-contained HTML file."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from bpeq.report import _colours as colours
from bpeq.report._canvas import Panel, svg
from bpeq.report._metrics import Metric, Stat
from bpeq.runs import run_folder
from bpeq.types import DataError


class Tile(NamedTuple):
    """A headline figure: what it is of, the figure, what qualifies it; quiet for references."""

    label: str
    figure: str
    detail: str = ""
    colour: str = ""
    quiet: bool = False


class Cell(NamedTuple):
    """Text in a table: `colour` draws a swatch before it, `detail` follows it, smaller.

    inset: the name of a row that is a part of the row above.
    """

    text: str
    colour: str = ""
    detail: str = ""
    inset: bool = False


class Group(NamedTuple):
    """Rows of a table under a heading of their own; `label` may be empty."""

    rows: Sequence[Sequence[Cell]]
    label: str = ""


class Picture(NamedTuple):
    """A PNG file's content as a data URI, and what it is called."""

    source: str
    name: str


class Section(NamedTuple):
    """A part of the page: a heading, a sentence, then whatever of the rest is there."""

    title: str
    lead: str = ""
    figures: Sequence[Panel] = ()
    columns: Sequence[str] = ()
    groups: Sequence[Group] = ()
    notes: Sequence[str] = ()
    pictures: Sequence[Picture] = ()


class Detail(NamedTuple):
    """Something folded away: plain text, or pairs of a key and its value."""

    title: str
    text: str = ""
    pairs: Sequence[tuple[str, str]] = ()


class Page(NamedTuple):
    """All that one report says, in reading order."""

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
    environment.filters.update(variable=colours.variable, breaks=breaks)
    here = resources.files("bpeq.report")
    drawn = iter(range(1000))

    def figure(panel: Panel) -> Markup:
        return Markup(svg(panel, f"f{next(drawn)}"))  # built here; its own text is escaped

    style = colours.stylesheet() + here.joinpath("page.css").read_text(encoding="utf-8")
    template = environment.from_string(here.joinpath("page.html.j2").read_text(encoding="utf-8"))
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


def each_seed(title: str, stats: dict[str, tuple[Metric, Stat]]) -> list[Detail]:
    """Every seed's value, a line a name; nothing where each has one seed only."""
    if all(len(stat.values) < 2 for _, stat in stats.values()):
        return []
    shown = {name: [m.show(v) for v in stat.values.tolist()] for name, (m, stat) in stats.items()}
    return [Detail(title, pairs=[(name, "  ".join(texts)) for name, texts in shown.items()])]


def folded(config: str, environment: dict[str, Any], data: Any = None) -> list[Detail]:
    """The folded parts of every report: configuration, data, environment; those that are there."""
    parts = [
        Detail("Configuration, resolved", text=config),
        Detail("Data", pairs=flat(data) if data else ()),
        Detail("Environment", pairs=flat(environment)),
    ]
    return [part for part in parts if part.text or part.pairs]
