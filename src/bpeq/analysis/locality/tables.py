"""The rows of the audit, and their tables as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

COLUMNS = ("reads", "transposed weight", "stored activations", "error pass", "global signal")
PHASES = ("drive", "forward", "free", "nudged", "target", "output error", "error")


class WeightRow(NamedTuple):
    """What the gradient of one weight needs. `audit_locality` explains the columns.

    Args:
      weight: the name of the weight.
      reads: inputs, targets, noise and states.
      transposed: what passes through the weight in the reverse direction.
      stored: the phases that must be remembered.
      error_pass: "yes", "inside the sweeps" or "no".
      global_signal: signals from beyond the two ends of the weight.
    """

    weight: str
    reads: tuple[str, ...]
    transposed: tuple[str, ...]
    stored: tuple[str, ...]
    error_pass: str
    global_signal: tuple[str, ...]


class Locality(NamedTuple):
    """The audit of one rule.

    Args:
      rule: the name of the rule.
      rows: one row for each weight, in the order of params.
      unseen: primitives that the audit does not know, so that rows may be incomplete; and
        primitives, with their lines, in which a weight was lost. Such a weight is `unknown` under
        transposed.
      carried: leaves of the rule's state that it makes anew from weights or data, with their
        sources. The rule reads them one step late.
    """

    rule: str
    rows: tuple[WeightRow, ...]
    unseen: tuple[str, ...] = ()
    carried: tuple[str, ...] = ()


def overall(rows: Sequence[WeightRow]) -> WeightRow:
    """Combines all rows into one: what any weight needs. Of states it keeps only the phases.

    Args:
      rows: the rows of one rule.

    Returns:
      The combined row.
    """

    def every(column: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(entry for row in rows for entry in getattr(row, column)))

    read = every("reads")
    sources = [entry for entry in ("input", "target", "noise") if entry in read]
    phases = [phase for phase in PHASES if any(entry.endswith(f" {phase}") for entry in read)]
    if not any(entry.endswith(" error") and " output " not in entry for entry in read):
        phases = [phase for phase in phases if phase != "error"]
    passes = {row.error_pass for row in rows} | {"no"}
    error_pass = next(word for word in ("yes", "inside the sweeps", "no") if word in passes)
    transposed, stored, beyond = map(every, ("transposed", "stored", "global_signal"))
    return WeightRow("all", (*sources, *phases), transposed, stored, error_pass, beyond)


def cells(row: WeightRow) -> list[str]:
    """Formats a row as the entries under COLUMNS.

    Args:
      row: the row of one weight, or `overall`.

    Returns:
      One text for each column.
    """
    return [
        ", ".join(row.reads) or "nothing: its gradient is zero",
        ", ".join(row.transposed) or "no",
        ", ".join(row.stored) or "no",
        row.error_pass,
        "; ".join(row.global_signal) or "no",
    ]


def markdown(audits: Sequence[Locality]) -> str:
    """Formats audits as Markdown: a table of rules, a table of weights, and notes.

    Args:
      audits: the audits of the rules.

    Returns:
      The text.

    Example:
      >>> row = WeightRow("w", ("input",), (), (), "no", ())
      >>> print(markdown([Locality("mine", (row,))]).splitlines()[2])
      | mine | input | no | no | no | no |
    """
    rules = [[each.rule, *cells(overall(each.rows))] for each in audits]
    weights = [[each.rule, row.weight, *cells(row)] for each in audits for row in each.rows]
    tables = [_table(["rule", *COLUMNS], rules), _table(["rule", "weight", *COLUMNS], weights)]
    return "\n\n".join([*tables, *notes(audits)])


def notes(audits: Sequence[Locality]) -> list[str]:
    """The notes below the tables: operations not followed, and state that is read one step late.

    Args:
      audits: the audits of the rules.

    Returns:
      The notes.
    """
    unseen = [f"{a.rule}: not followed: {', '.join(a.unseen)}." for a in audits if a.unseen]
    late = [f"{a.rule}: read a step late: {', '.join(a.carried)}." for a in audits if a.carried]
    return [*unseen, *late]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
