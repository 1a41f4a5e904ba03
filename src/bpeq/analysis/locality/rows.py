"""The rows of the audit: what the walk has found, in words and as tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from bpeq.analysis.locality._arrays import LATE
from bpeq.analysis.locality._contents import (
    MOVES,
    Atom,
    Content,
    Kind,
    Label,
    Term,
    replaced,
    unpooled,
)
from bpeq.analysis.locality._walk import Walk
from bpeq.analysis.locality._weights import Use

COLUMNS = ("reads", "transposed weight", "stored activations", "error pass", "global signal")
PHASES = ("drive", "forward", "free", "nudged", "target", "output error", "error")
_PASSES = {"forward": 0, "free": 1, "nudged": 2, "target": 2, "error": 3}
_WORDS = {Kind.ERROR: "error", Kind.TARGET: "target"}
_RANK = {Kind.ACTIVITY: 0, Kind.NUDGED: 1, Kind.TARGET: 2, Kind.ERROR: 4}  # a probe has rank 3
_NOWHERE: Label = (-2, 0)


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
      unseen: primitives with their lines that the audit does not know, so that rows may be
        incomplete, or in which a weight was lost. Such a weight is `unknown` under transposed.
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


class RowWriter:
    """Writes the rows of a finished walk.

    Args:
      walk: the walk.
      names: the names of the leaves, such as `dense_1.w`. A state has the name of the block that
        drives it.
    """

    def __init__(self, walk: Walk, names: Sequence[str]) -> None:
        self._names, self._units, self._ranks = names, walk.units, walk.weights.ranks
        self._uses: dict[int, list[Use]] = {}
        for use in walk.weights.uses.values():
            self._uses.setdefault(use.leaf, []).append(use)
        self._moving = list(walk.weights.moving)
        self._drives = {walk.units.find(label) for label in walk.drives}
        self._roads = {
            (self._root(use.came), self._root(use.within))
            for use in walk.weights.uses.values()
            if use.carried in MOVES
        }
        # Units are named after the weight nearest to x that drives them.
        nearest: dict[Label, tuple[int, int]] = {}
        for leaf, uses in self._uses.items():
            distance = (min(use.far for use in uses), leaf)
            for label in self._ends(leaf)[1]:
                nearest[label] = min(distance, nearest.get(label, distance))
        self._states = {label: self._block(leaf) for label, (_, leaf) in nearest.items()}

    def row(self, leaf: int, content: Content, unknown: bool = False) -> WeightRow:
        """Writes the row of one weight.

        Args:
          leaf: the number of the leaf.
          content: the content of its gradient.
          unknown: whether the weight is also used in an unknown way.

        Returns:
          The row.
        """
        terms = self._with_local_signals(leaf, content.terms)
        if self._ranks[leaf] == 0:  # the gradient of a scalar is a number without any pooling
            terms = unpooled(terms)
        atoms = frozenset[Atom]().union(*terms)
        errors = any(atom.phase == "error" for term in unpooled(terms) for atom in term)
        inside = "inside the sweeps" if content.errors else "no"
        return WeightRow(
            self._names[leaf],
            self._reads(atoms),
            (*self._transposed(leaf), *(["unknown"] if unknown else [])),
            self._stored(terms),
            "yes" if errors else inside,
            self._global(leaf, atoms),
        )

    def _with_local_signals(self, leaf: int, terms: frozenset[Term]) -> frozenset[Term]:
        """Signals of units at the ends of a weight are states there; others are numbers."""
        ends = self._both_ends(leaf)

        def inside(atom: Atom) -> frozenset[Term]:
            if atom.what != "signal":
                return frozenset({frozenset({atom})})
            sources = {self._root(a.where) for term in atom.inner for a in term if a.where}
            return atom.inner if sources <= ends else frozenset({frozenset({atom})})

        return replaced(terms, inside)

    def _both_ends(self, leaf: int) -> set[Label | None]:
        """The units below and above a weight."""
        below, above = self._ends(leaf)
        return {*below, *above} if self._uses.get(leaf) else {self._units.find((leaf, 0))}

    def _root(self, label: Label | None) -> Label | None:
        return None if label is None else self._units.find(label)

    def _block(self, leaf: int) -> str:
        if leaf >= len(self._names):
            return "a matrix of its own"
        return self._names[leaf].rpartition(".")[0] or self._names[leaf]

    def _forward(self, leaf: int) -> frozenset[int] | None:
        """The axes over which the weight sums on the way up from x to the output.

        That is the direction of activity, in the first relaxation that uses the weight and nearest
        to x. An error gives the direction only if nothing else does.
        """
        ways: dict[frozenset[int], list[Use]] = {}
        for use in self._uses.get(leaf, []):
            ways.setdefault(use.contracted, []).append(use)

        def rank(way: frozenset[int]) -> tuple[int, int, int]:
            loops = [use.loop for use in ways[way] if use.carried in MOVES]
            met = [self._moving.index(m) if m in self._moving else len(self._moving) for m in loops]
            best = min(_RANK.get(use.carried, 3) for use in ways[way])
            return best, min(met, default=0), min(use.far for use in ways[way])

        return min(ways, key=rank, default=None)

    def _ends(self, leaf: int) -> tuple[set[Label], set[Label]]:
        """The units below and above a weight."""
        down = self._forward(leaf) or frozenset()
        up = set(range(self._ranks[leaf])) - down or {-1}
        below, above = ({self._units.find((leaf, axis)) for axis in axes} for axes in (down, up))
        return below, above

    def _state(self, label: Label | None) -> str:
        return self._states.get(self._root(label) or _NOWHERE, "a state")

    def _phase(self, atom: Atom) -> str:
        drives = atom.phase == "forward" and self._root(atom.where) in self._drives
        return "drive" if drives else atom.phase

    def _reads(self, atoms: Iterable[Atom]) -> tuple[str, ...]:
        sources = {atom.what for atom in atoms if atom.what in ("input", "target", "noise")}
        states = {
            (self._root(a.where) or (-1, 0), PHASES.index(self._phase(a)), self._state(a.where))
            for a in atoms
            if a.what == "state"
        }
        read = [f"{state} {PHASES[phase]}" for _, phase, state in sorted(states)]
        return tuple(dict.fromkeys([*sorted(sources), *read]))

    def _transposed(self, leaf: int) -> tuple[str, ...]:
        uses, forward = self._uses.get(leaf, []), self._forward(leaf)
        if forward is None:
            return ()
        # Does activity come down in every relaxation in which it goes up, or only in some phases?
        back = [use for use in uses if use.contracted != forward]
        down = [use for use in back if use.carried in MOVES]
        up = {use.loop for use in uses if use.contracted == forward} & {*self._moving}
        looped = [use for use in down if use.loop in self._moving]
        words = []
        if up and up <= {use.loop for use in looped}:
            words.append("coupling")
        elif down:
            phases = {use.phase for use in looped or down}
            words.append(f"activity ({', '.join(sorted(phases, key=PHASES.index))})")
        for word in ("error", "target", "probe"):
            others = [use for use in back if use not in down]
            functions = {u.through for u in others if _WORDS.get(u.carried, "probe") == word}
            words += [word + _function(function) for function in sorted(functions)]
        if not forward and any(use.carried == Kind.ERROR for use in uses):
            words.append("error (entry by entry)")
        return tuple(words)

    def _stored(self, terms: Iterable[Term]) -> tuple[str, ...]:
        stored: set[str] = set()
        for term in terms:
            phases = {self._phase(atom) for atom in term} & _PASSES.keys()
            last = max((_PASSES[phase] for phase in phases), default=0)
            stored |= {phase for phase in phases if _PASSES[phase] < last}
        return tuple(sorted(stored, key=PHASES.index))

    def _global(self, leaf: int, atoms: frozenset[Atom]) -> tuple[str, ...]:
        ends = self._both_ends(leaf)
        numbers = [atom for atom in atoms if atom.what in ("number", "signal")]
        pooled, single = (
            {a for n in numbers if n.pooled is flag for term in n.inner for a in term}
            for flag in (True, False)
        )
        pooled |= {atom for atom in atoms if atom.what == "batch"}
        signals = []
        if pooled or any(number.pooled for number in numbers):
            signals.append(f"batch statistic of {self._listed(pooled)}")
        ends_in_data = {"target" if a.phase == "output error" else a.what for a in atoms}
        data = {a.what for a in single if a.what in ("input", "target")} - ends_in_data
        if data or not {self._root(a.where) for a in single if a.where is not None} <= ends:
            signals.append(f"a number from {', '.join([*sorted(data), *self._named(single)])}")
        if any(atom.what == "unknown" for term in unpooled(frozenset({atoms})) for atom in term):
            signals.append("unknown")
        sources = {self._state(atom.source) for atom in atoms if self._skips(atom)}
        return (*signals, *(f"error of {s}, past the layers between" for s in sorted(sources)))

    def _skips(self, atom: Atom) -> bool:
        """Whether an error has come by a route on which no activity goes up."""
        ends = (self._root(atom.where), self._root(atom.source))
        beside = None in ends or ends[0] == ends[1] or ends in self._roads
        return atom.phase == "error" and not beside

    def _listed(self, atoms: Iterable[Atom]) -> str:
        return ", ".join(self._named(atoms)) or "the data"

    def _named(self, atoms: Iterable[Atom]) -> list[str]:
        return sorted({self._state(atom.where) for atom in atoms if atom.where is not None})


def _function(through: str) -> str:
    """The mark for a weight of which only a function is used, or that the rule's state holds."""
    return f" ({through})" if through == LATE else f" (its {through})" if through else ""
