"""The rows of the audit, and tables of them as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

COLUMNS = ("reads", "transposed weight", "stored activations", "error pass", "global signal")
PHASES = ("drive", "forward", "free", "nudged", "target", "output error", "error")


class WeightRow(NamedTuple):
    """What the gradient of one weight takes; the columns are those of `audit_locality`."""

    weight: str
    reads: tuple[str, ...]
    transposed: tuple[str, ...]
    stored: tuple[str, ...]
    error_pass: str
    global_signal: tuple[str, ...]


class Locality(NamedTuple):
    """The audit of one rule.

    rule:    its name.
    rows:    one for each weight, in the order of its params.
    unseen:  primitives of the estimate that the audit does not know, so that rows may lack
        something; and, with their lines, those in which a weight was lost. That weight is `unknown`
        under transposed.
    carried: the leaves of the rule's own state that it makes anew of weights or data, and of which.
        The rule reads them a step late.
    """

    rule: str
    rows: tuple[WeightRow, ...]
    unseen: tuple[str, ...] = ()
    carried: tuple[str, ...] = ()


def overall(rows: Sequence[WeightRow]) -> WeightRow:
    """All rows as one: what any of them takes. Of states it keeps the phases only.

    Args:
      rows: of one rule.
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
    """The entries of a row under COLUMNS.

    Args:
      row: of one weight, or `overall`.
    """
    return [
        ", ".join(row.reads) or "nothing: its gradient is zero",
        ", ".join(row.transposed) or "no",
        ", ".join(row.stored) or "no",
        row.error_pass,
        "; ".join(row.global_signal) or "no",
    ]


def markdown(audits: Sequence[Locality]) -> str:
    """A table with a row for each rule, one with a row for each weight, and notes below them.

    Args:
      audits: of the rules.

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
    """What the tables cannot say: where the audit lost track, and what a rule's state holds.

    Args:
      audits: of the rules.
    """
    unseen = [f"{a.rule}: not followed: {', '.join(a.unseen)}." for a in audits if a.unseen]
    late = [f"{a.rule}: read a step late: {', '.join(a.carried)}." for a in audits if a.carried]
    return [*unseen, *late]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
