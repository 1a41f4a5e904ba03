"""What the walk has learnt, weight by weight, in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from bpeq.analysis.locality._units import Label
from bpeq.analysis.locality._values import LATE, MOVES, Atom, Content, Kind, Term, opened
from bpeq.analysis.locality._walk import Walk
from bpeq.analysis.locality._weights import Use


class WeightRow(NamedTuple):
    """What the gradient of one weight takes; the columns are those of `audit_locality`."""

    weight: str
    reads: tuple[str, ...]
    transposed: tuple[str, ...]
    stored: tuple[str, ...]
    error_pass: str
    global_signal: tuple[str, ...]


PHASES = ("drive", "forward", "free", "nudged", "target", "output error", "error")
_PASSES = {"forward": 0, "free": 1, "nudged": 2, "target": 2, "error": 3}
_WORDS = {Kind.ERROR: "error", Kind.TARGET: "target"}
_RANK = {Kind.ACTIVITY: 0, Kind.NUDGED: 1, Kind.TARGET: 2, Kind.ERROR: 4}  # a probe has rank 3


class Namer:
    """Rows out of a finished walk.

    names: of the leaves, such as `dense_1.w`; states are called after the block that drives them.
    """

    def __init__(self, walk: Walk, names: Sequence[str]) -> None:
        self._names, self._units = names, walk.units
        self._uses: dict[int, list[Use]] = {}
        for use in walk.weights.uses:
            self._uses.setdefault(use.leaf, []).append(use)
        self._moving = list(walk.weights.moving)
        self._ranks = walk.weights.ranks
        self._drives = {walk.units.find(label) for label in walk.drives}
        self._roads = {
            (self._root(use.came), self._root(use.within))
            for use in walk.weights.uses
            if use.carried in MOVES
        }
        self._states = self._called()

    def row(self, leaf: int, content: Content, lost: bool = False) -> WeightRow:
        """The row of one weight, whose gradient is `content`; lost: it is also used unknown how."""
        terms = content.terms
        if self._ranks[leaf] == 0:  # its gradient is a number by its shape, not by what it pools
            terms = opened(terms)
        atoms = frozenset[Atom]().union(*terms)
        phases = {atom.phase for term in opened(terms) for atom in term}
        error_pass = "yes" if "error" in phases else "no"
        if error_pass == "no" and content.errors:
            error_pass = "inside the sweeps"
        return WeightRow(
            self._names[leaf],
            self._reads(atoms),
            (*self._transposed(leaf), *(["unknown"] if lost else [])),
            self._stored(terms),
            error_pass,
            self._global(leaf, atoms),
        )

    def _root(self, label: Label | None) -> Label | None:
        return None if label is None else self._units.find(label)

    def _forward(self, leaf: int) -> frozenset[int] | None:
        """The axes that the weight sums over on the way up.

        That is where activity goes, in the first relaxation that the weight is used in, and from
        nearest to x; an error only where nothing else does.
        """
        ways: dict[frozenset[int], list[Use]] = {}
        for use in self._uses.get(leaf, []):
            ways.setdefault(use.contracted, []).append(use)

        def rank(way: frozenset[int]) -> tuple[int, int, int]:
            met = [self._met(use) for use in ways[way] if use.carried in MOVES]
            best = min(_RANK.get(use.carried, 3) for use in ways[way])
            return best, min(met, default=0), min(use.far for use in ways[way])

        return min(ways, key=rank, default=None)

    def _met(self, use: Use) -> int:
        """Which relaxation a use stands in, by number; behind them all where it stands in none."""
        return self._moving.index(use.loop) if use.loop in self._moving else len(self._moving)

    def _ends(self, leaf: int) -> tuple[set[Label], set[Label]]:
        """The units below and above a weight."""
        down = self._forward(leaf) or frozenset()
        axes = set(range(self._ranks[leaf]))
        below = {self._units.find((leaf, axis)) for axis in down}
        return below, {self._units.find((leaf, axis)) for axis in axes - down or {-1}}

    def _called(self) -> dict[Label, str]:
        """The units' names: of the block that drives them, nearest to x."""
        found: dict[Label, tuple[int, int, str]] = {}
        for leaf, uses in self._uses.items():
            known = leaf < len(self._names)
            called = _block(self._names[leaf]) if known else "a matrix of its own"
            name = (min(use.far for use in uses), leaf, called)
            for label in self._ends(leaf)[1]:
                found[label] = min(name, found.get(label, name))
        return {label: name for label, (_, _, name) in found.items()}

    def _state(self, label: Label | None) -> str:
        return self._states.get(self._root(label) or (-2, 0), "a state")

    def _phase(self, atom: Atom) -> str:
        drives = atom.phase == "forward" and self._root(atom.where) in self._drives
        return "drive" if drives else atom.phase

    def _reads(self, atoms: Iterable[Atom]) -> tuple[str, ...]:
        given = [atom.what for atom in atoms if atom.what in ("input", "target", "noise")]
        states = {
            ((self._root(atom.where) or (-1, 0)), PHASES.index(self._phase(atom)), atom)
            for atom in atoms
            if atom.what == "state"
        }
        read = [
            f"{self._state(a.where)} {self._phase(a)}" for _, _, a in sorted(states, key=_order)
        ]
        return tuple(dict.fromkeys([*sorted(set(given)), *read]))

    def _transposed(self, leaf: int) -> tuple[str, ...]:
        uses, forward = self._uses.get(leaf, []), self._forward(leaf)
        if forward is None:
            return ()
        back = [use for use in uses if use.contracted != forward]
        up = {use.loop for use in uses if use.contracted == forward} & {*self._moving}
        down = [use for use in back if use.carried in MOVES]
        looped = [use for use in down if use.loop in self._moving]
        found = []
        if up and up <= {use.loop for use in looped}:
            found.append("coupling")
        elif down:
            phases = {use.phase for use in looped or down}
            found.append(f"activity ({', '.join(sorted(phases, key=PHASES.index))})")
        for word in ("error", "target", "probe"):
            own = {
                u.through for u in back if u not in down and _WORDS.get(u.carried, "probe") == word
            }
            found += [f"{word}{_of(via)}" for via in sorted(own)]
        if not forward and any(use.carried == Kind.ERROR for use in uses):
            found.append("error (entry by entry)")
        return tuple(found)

    def _stored(self, terms: Iterable[Term]) -> tuple[str, ...]:
        kept: set[str] = set()
        for term in terms:
            own = {self._phase(atom) for atom in term} & _PASSES.keys()
            last = max((_PASSES[phase] for phase in own), default=0)
            kept |= {phase for phase in own if _PASSES[phase] < last}
        return tuple(sorted(kept, key=PHASES.index))

    def _global(self, leaf: int, atoms: Iterable[Atom]) -> tuple[str, ...]:
        below, above = self._ends(leaf)
        own = {*below, *above} if self._uses.get(leaf) else {self._units.find((leaf, 0))}
        numbers = [atom for atom in atoms if atom.what == "number"]
        pooled = {a for atom in numbers if atom.pooled for term in atom.inner for a in term}
        pooled |= {atom for atom in atoms if atom.what == "batch"}
        single = {a for atom in numbers if not atom.pooled for term in atom.inner for a in term}
        found = []
        if pooled or any(atom.pooled for atom in numbers):
            found.append(f"batch statistic of {self._list(pooled)}")
        if not {self._root(a.where) for a in single if a.where is not None} <= own:
            found.append(f"a number from {self._list(single)}")
        sources = {self._state(atom.source) for atom in atoms if self._past(atom)}
        found += [f"error of {source}, past the layers between" for source in sorted(sources)]
        return tuple(found)

    def _past(self, atom: Atom) -> bool:
        """Whether an error has come by a road on which no activity goes up."""
        ends = (self._root(atom.where), self._root(atom.source))
        beside = None in ends or ends[0] == ends[1] or ends in self._roads
        return atom.phase == "error" and not beside

    def _list(self, atoms: Iterable[Atom]) -> str:
        names = {self._state(atom.where) for atom in atoms if atom.where is not None}
        return ", ".join(sorted(names)) or "the data"


def overall(rows: Sequence[WeightRow]) -> WeightRow:
    """All rows as one: what any of them takes; of states the phases only."""

    def every(column: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(entry for row in rows for entry in getattr(row, column)))

    read = every("reads")
    given = [entry for entry in ("input", "target", "noise") if entry in read]
    phases = [phase for phase in PHASES if any(entry.endswith(f" {phase}") for entry in read)]
    if not any(entry.endswith(" error") and " output " not in entry for entry in read):
        phases = [phase for phase in phases if phase != "error"]
    worst = {row.error_pass for row in rows}
    error_pass = next(word for word in ("yes", "inside the sweeps", "no") if word in worst | {"no"})
    transposed, stored, beyond = map(every, ("transposed", "stored", "global_signal"))
    return WeightRow("all", (*given, *phases), transposed, stored, error_pass, beyond)


def _order(entry: tuple[Label, int, Atom]) -> tuple[Label, int]:
    return entry[:2]


def _of(via: str) -> str:
    """Whether only a function of the weight is used, or what the rule's state holds of it."""
    return f" ({via})" if via == LATE else f" (its {via})" if via else ""


def _block(name: str) -> str:
    return name.rpartition(".")[0] or name
