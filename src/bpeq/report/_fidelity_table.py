"""The terminal table of a fidelity result, at most 80 columns wide."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bpeq.report import _fidelity_words as say
from bpeq.report._fidelity_read import Microscope, microscope
from bpeq.report._numbers import ABSENT, count, plain
from bpeq.report._tables import blank, folded_name, words

if TYPE_CHECKING:
    from rich.table import Table

_LEAST_NAME = 12  # columns of the first column


def fidelity_table(result: dict[str, Any]) -> Table:
    """Estimates against exact gradients: a row a rule and, indented below it, a row a layer.

    A rule that follows another objective than the cost has a second set of rows, against that.
    The caption holds the bias orders, the equilibrium and the notes.

    Args:
      result: what fidelity.json holds.

    Raises:
      DataError: a key is missing or its value has the wrong type.
    """
    found = microscope(result)
    heads = ["relative\nerror", "cosine", "norm\nratio", "sign\nagr. %"]
    heads += ["settled\n%", "sweeps", "β", "error\nbar"]
    lines = []
    for r in found.rules:
        lines.append((r.name, "bold", [*say.measured(r.total), *say.settling(r)]))
        for name, m in r.layers.items():
            lines.append((f"  {name}", "", [*say.measured(m), "", "", "", ""]))
        if r.own is not None:
            parts = {"  own objective": r.own.total}
            parts |= {f"    {name}": m for name, m in r.own.layers.items()}
            lines += [(name, "", [*say.measured(m), "", "", "", ""]) for name, m in parts.items()]
    cells = [line for _, _, line in lines]
    kept = [i for i in range(8) if i < 6 or any(line[i] not in ("", ABSENT) for line in cells)]
    if not any(r.relaxes for r in found.rules):
        kept = [i for i in kept if i not in (4, 5)]
    table = blank(title_of(found), "\n".join(_caption(found)))
    table.add_column("rule", overflow="fold", min_width=_LEAST_NAME)
    others = 0
    for i in kept:
        table.add_column(heads[i], justify="right", no_wrap=True)
        others += 2 + max(len(text) for text in [*heads[i].split("\n"), *(c[i] for c in cells)])
    width = max(_LEAST_NAME, 80 - others)
    for name, style, line in lines:
        inset = " " * (len(name) - len(name.lstrip()))
        folded = folded_name(name.strip(), width - len(inset)).replace("\n", f"\n{inset}")
        row = [words(text) for i, text in enumerate(line) if i in kept]
        table.add_row(words(inset + folded, style), *row, style=None if style else "dim")
    return table


def title_of(found: Microscope) -> str:
    """ "digits · initial parameters · 64 examples · float32", of those that are known."""
    params = found.params if found.params != "initial" else "initial parameters"
    examples = "" if found.examples is None else f"{count(found.examples)} examples"
    return " · ".join(part for part in (found.name, params, examples, found.precision) if part)


def _caption(found: Microscope) -> list[str]:
    residuals = [r.reference_residual for r in found.rules if r.reference_residual]
    residuals += [r.own.residual for r in found.rules if r.own is not None and r.own.residual]
    lines = [say.objectives(found.rules)]
    if lines[0]:
        lines[0] += " Rows “own objective” are against the exact gradient of what it follows."
    lines += [say.precisions(found.rules), say.orders(found), say.pole(found), say.gdu(found)]
    lines.append(say.equilibrium(found.equilibrium))
    if residuals:
        lines.append(f"Exact gradients settled to a residual of {plain(max(residuals))}.")
    return [line for line in [*lines, *say.notes(found)] if line]
