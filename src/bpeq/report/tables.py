"""A table of typed cells, and its forms for a terminal, Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from bpeq.report.numbers import ABSENT, format_number

if TYPE_CHECKING:
    import rich.table

_WIDTH = 80  # columns of a terminal
_LEAST_NAME = 12  # the least width of the first column in a terminal


class Column(NamedTuple):
    """A column of a table.

    Args:
      header: its name.
      unit: its unit; empty without one.
      align: the side on which its cells are aligned.
      format: formats a value that is not a text. None becomes a dash.
    """

    header: str
    unit: str = ""
    align: Literal["left", "right"] = "right"
    format: Callable[[Any], str] = format_number

    @property
    def label(self) -> str:
        """The header with its unit, such as "test error, %"."""
        return f"{self.header}, {self.unit}" if self.unit else self.header

    def text(self, cell: Any) -> str:
        """Formats a cell.

        Args:
          cell: a value or a TableCell.

        Returns:
          The text.
        """
        value = as_cell(cell).value
        if value is None:
            return ABSENT
        return value if isinstance(value, str) else self.format(value)


class TableCell(NamedTuple):
    """A value with a style. A cell without a style can be the value itself.

    Args:
      value: the value.
      colour: the colour of a mark before it, on a page; empty: no mark.
      detail: a smaller text after it, on a page.
      indent: 1 or more for the name of a row that belongs to the row above.
      style: the style in a terminal.
    """

    value: Any
    colour: str = ""
    detail: str = ""
    indent: int = 0
    style: str = ""


def as_cell(value: Any) -> TableCell:
    """A value as a cell without a style.

    Args:
      value: a value or a TableCell, which is returned unchanged.

    Returns:
      The cell.
    """
    return value if isinstance(value, TableCell) else TableCell(value)


class Group(NamedTuple):
    """Rows of a table.

    Args:
      rows: the cells of each row.
      label: a heading that separates these rows from others; empty: no heading.
      quiet: whether the rows are references and so drawn in grey.
    """

    rows: Sequence[Sequence[Any]]
    label: str = ""
    quiet: bool = False


class Table(NamedTuple):
    """A table.

    Args:
      columns: the columns.
      groups: the groups of rows.
      title: the text above it.
      caption: the text below it.
    """

    columns: Sequence[Column]
    groups: Sequence[Group]
    title: str = ""
    caption: str = ""

    @property
    def rows(self) -> Iterator[Sequence[Any]]:
        """The rows of all groups."""
        return (row for group in self.groups for row in group.rows)

    def cells(self, row: Sequence[Any]) -> list[tuple[Column, TableCell]]:
        """Pairs the cells of a row with their columns.

        Args:
          row: the cells.

        Returns:
          The pairs.

        Raises:
          ValueError: the row has more or fewer cells than the table has columns.
        """
        return [(column, as_cell(cell)) for column, cell in zip(self.columns, row, strict=True)]

    def without_empty_columns(self) -> Table:
        """Removes the columns in which no row has a value, except the first.

        Returns:
          The table.
        """
        kept = [
            i
            for i in range(len(self.columns))
            if i == 0 or any(row[i] not in (None, "") for row in self.rows)
        ]
        groups = [
            group._replace(rows=[[row[i] for i in kept] for row in group.rows])
            for group in self.groups
        ]
        return self._replace(columns=[self.columns[i] for i in kept], groups=groups)

    def texts(self) -> list[list[str]]:
        """Formats all cells.

        Returns:
          The labels of the columns, then the texts of each row.
        """
        texts = [[column.text(cell) for column, cell in self.cells(row)] for row in self.rows]
        return [[column.label for column in self.columns], *texts]

    def __rich__(self) -> rich.table.Table:
        """Converts a table for a terminal, at most 80 columns wide if its names can be broken.

        Square brackets in names and notes stay text, not markup.

        Returns:
          The table of rich.
        """
        from rich.box import SIMPLE_HEAD
        from rich.table import Table as RichTable
        from rich.text import Text

        written = RichTable(
            title=Text(self.title, "bold"),
            caption=Text(f"\n{self.caption}", "dim") if self.caption else None,
            title_justify="left",
            caption_justify="left",
            box=SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
            padding=(0, 1, 0, 0),
        )
        # Make the columns, and add up the widths of all except the first.
        others = 0
        for i, column in enumerate(self.columns):
            right = i > 0 and column.align == "right"
            header = textwrap.wrap(column.label, 8, break_long_words=False)
            written.add_column(
                Text("\n".join(header)),
                justify="right" if right else "left",
                no_wrap=right,
                overflow="fold",
                min_width=_LEAST_NAME if i == 0 and len(self.columns) > 2 else None,
            )
            if right:
                texts = [*header, *(column.text(row[i]) for row in self.rows)]
                others += 2 + max(map(len, texts), default=0)
        # Write the rows. Names are folded to the width that is left.
        width = max(_LEAST_NAME, _WIDTH - others)
        for group in self.groups:
            if group.label and group.rows:
                written.add_section()
                written.add_row(Text(group.label, "italic dim"))
            for row in group.rows:
                first = as_cell(row[0])
                inset = "  " * first.indent
                name = fold_name(self.columns[0].text(first), width - len(inset))
                quiet = "dim" if group.quiet or first.indent else ""
                cells = [Text(inset + name.replace("\n", f"\n{inset}"), quiet or first.style)]
                for column, cell in zip(self.columns[1:], row[1:], strict=True):
                    cells.append(Text(column.text(cell), as_cell(cell).style or quiet))
                written.add_row(*cells)
        return written


def of_records(records: Sequence[Mapping[str, Any]]) -> Table:
    """A table with one row for each record, whose columns are all keys of the records.

    Args:
      records: the values by column.

    Returns:
      The table.
    """
    keys = list(dict.fromkeys(key for record in records for key in record))
    rows = [[record.get(key) for key in keys] for record in records]
    return Table([*map(Column, keys)], [Group(rows)])


def to_markdown(table: Table) -> str:
    """Converts a table to Markdown. A vertical bar in a cell is escaped.

    Args:
      table: the table.

    Returns:
      The text.
    """
    head, *rows = table.texts()
    lines = [
        head,
        ["---"] * len(head),
        *([text.replace("|", "\\|") for text in row] for row in rows),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def to_csv(table: Table) -> str:
    """Converts a table to CSV, with the raw values. None becomes an empty field.

    Args:
      table: the table.

    Returns:
      The text.
    """
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([column.header for column in table.columns])
    for row in table.rows:
        values = [as_cell(cell).value for cell in row]
        writer.writerow([str(v).lower() if isinstance(v, bool) else v for v in values])
    return text.getvalue()


def to_latex(table: Table) -> str:
    r"""Converts a table to a LaTeX `tabular`, with the lines of the booktabs package.

    Args:
      table: the table.

    Returns:
      The text.

    Example:
      >>> print(to_latex(Table([Column("rule"), Column("error", "%")], [Group([["a_b", 2.0]])])))
      \begin{tabular}{lr}
      \toprule
      rule & error, \% \\
      \midrule
      a\_b & 2.00 \\
      \bottomrule
      \end{tabular}
    """
    sides = "l" + "".join(column.align[0] for column in table.columns[1:])
    lines = [" & ".join(map(_escape_latex, line)) + r" \\" for line in table.texts()]
    lines = [rf"\begin{{tabular}}{{{sides}}}", r"\toprule", lines[0], r"\midrule", *lines[1:]]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def fold_name(name: str, width: int) -> str:
    """Breaks a name into lines, after an underscore, dot or colon if possible.

    Args:
      name: the name.
      width: the largest number of characters of a line.

    Returns:
      The lines, separated by line breaks.
    """
    lines = [""]
    for part in filter(None, re.findall(r"[^_.:]*[_.:]?", name)):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _escape_latex(text: str) -> str:
    text = text.replace("\\", r"\textbackslash ")
    return re.sub(r"([&%$#_{}])", r"\\\1", text).replace("−", "$-$").replace("±", r"$\pm$")
