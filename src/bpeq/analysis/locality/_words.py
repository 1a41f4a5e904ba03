"""The audit as text: cells of a table, and tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from bpeq.analysis.locality._audit import Locality
from bpeq.analysis.locality._rows import WeightRow, overall

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
    return "\n\n".join([*parts, *notes(found)])


def notes(found: Sequence[Locality]) -> list[str]:
    """What the tables cannot say: where the audit lost track, and what a rule's state takes on."""
    lost = [
        f"{each.rule}: not followed: {', '.join(each.unseen)}." for each in found if each.unseen
    ]
    taken = [(each.rule, ", ".join(each.carried)) for each in found if each.carried]
    return [*lost, *(f"{name}: read a step late: {states}." for name, states in taken)]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
