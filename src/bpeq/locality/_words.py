"""The audit as text: cells of a table, and tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from bpeq.locality._audit import Locality
from bpeq.locality._rows import WeightRow, overall

COLUMNS = ("reads", "transposed weight", "stored activations", "error pass", "global signal")


def cells(row: WeightRow) -> list[str]:
    """The entries of a row under COLUMNS."""
    return [
        ", ".join(row.reads) or "nothing: its gradient is zero",
        ", ".join(row.transposed) or "no",
        ", ".join(row.stored) or "no",
        row.error_pass,
        "; ".join(row.global_signal) or "no",
    ]


def markdown(found: Sequence[Locality]) -> str:
    """A table with a row a rule, and one with a row a weight; what was not followed below them.

    Example:
      >>> row = WeightRow("w", ("input",), (), (), "no", ())
      >>> print(markdown([Locality("mine", (row,))]).splitlines()[2])
      | mine | input | no | no | no | no |
    """
    rules = [[each.rule, *cells(overall(each.rows))] for each in found]
    weights = [[each.rule, row.weight, *cells(row)] for each in found for row in each.rows]
    parts = [_table(["rule", *COLUMNS], rules), _table(["rule", "weight", *COLUMNS], weights)]
    parts += [f"{name}: not followed: {unseen}." for name, unseen in unfollowed(found)]
    return "\n\n".join(parts)


def unfollowed(found: Sequence[Locality]) -> list[tuple[str, str]]:
    """Rules with primitives that the audit does not know, and which."""
    return [(each.rule, ", ".join(each.unseen)) for each in found if each.unseen]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
