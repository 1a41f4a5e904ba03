"""Finds the corners of an energy, and the slope that autodiff takes there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal
from jaxtyping import Array

from bpeq.analysis.energy_contract._context import Context, Finding, flat_rows, idle_weights
from bpeq.analysis.energy_contract._pieces import IGNORED, Operation, piecewise_operations
from bpeq.core import trees
from bpeq.core.jaxprs import Interpreter, all_equations, source_line
from bpeq.types import State

MOST_CORNERS = 64
AHEAD = 1e-7  # the distance from a corner to the points on both sides
SPREADS = (0.3, 1.0, 1.0, 3.0)  # standard deviations of the ends of the searched lines
POINTS = 17  # points of a line, between which a sign can change
_COMPARISONS = ("max", "min", "lt", "le", "gt", "ge")

Corner = tuple[str, float, float]
"""(function, number, share): share is 0 if autodiff takes the slope of the outer side."""


def corner_finding(context: Context, key: jax.Array) -> Finding:
    """Finds corners of the force and, for a system, corners of σ in its sweep's response to a push.

    It tries 0, ±½, ±1 and the numbers that the program compares with. The share of a corner says
    which slope autodiff takes: 0 is the outer side, 1 the inner side, ½ the middle. For a pair of
    corners the outer side is the flat one of a clip. For a single corner it is the left side. If
    none of these numbers is a corner and the program has piecewise operations, it searches lines
    between states for a place where such an operation changes its piece.

    Args:
      context: the system and its states.
      key: draws these lines.

    Returns:
      The finding "corners".
    """
    corners = [*_force_corners(context)]
    if context.user_energy is None:
        corners += _sigma_corners(context)
    if not corners:
        return _turning_finding(context, key)
    places: dict[str, list[str]] = {}
    for name, number, share in corners:
        kind, _, leaf = name.partition(" of ")
        places.setdefault(f"{_fraction(share)} for {kind} at {number:g}", []).append(leaf)
    words = "of the outer slope (0) and the inner (1) autodiff takes " + ", ".join(
        place + (f" (state {', '.join(leaves)})" if any(leaves) else "")
        for place, leaves in places.items()
    )
    if context.user_energy is not None:
        flat = [number for _, number, share in corners if abs(share) < 1e-3]
        starts = [np.asarray(leaf[0]) for leaf in jax.tree.leaves(context.start)]
        if stuck := sum(int(np.isin(leaf, flat).sum()) for leaf in starts):
            words += f"; {stuck} units start there, where gradient flow may not leave"
    return _note([share for *_, share in corners], words)


def _turning_finding(context: Context, key: jax.Array) -> Finding:
    """The finding about piecewise operations if no tried number is a corner."""
    pieces = piecewise_operations(
        lambda s: context.program(context.params, context.x, s), context.interior
    )
    if not pieces:
        return Finding("corners", True, np.nan, "no corner found: one-sided derivatives agree")
    crossings = find_crossings(context, pieces, key)
    jumping = {piece: crossing.share for piece, crossing in crossings.items() if crossing.jumps}
    words = []
    for piece, share in jumping.items():
        slope = "; no state hits the place itself"
        if not np.isnan(share):
            slope = f": autodiff takes {_fraction(share)} of the jump"
        words.append(f"the force jumps where {piece} turns{slope}")
    if missed := [piece for piece in pieces if piece not in crossings]:
        words.append(f"the program has {_listed(missed)}: no corner among the numbers tried")
    if smooth := [piece for piece in crossings if piece not in jumping]:
        words.append(f"the force goes on where {_listed(smooth)} turns")
    if not jumping and not missed:
        return Finding("corners", True, np.nan, "; ".join(words))
    return _note([share for share in jumping.values() if not np.isnan(share)], "; ".join(words))


def _note(shares: list[float], words: str) -> Finding:
    """A note, or a failure if autodiff takes neither side's slope nor one between."""
    between = all(-1e-3 <= share <= 1 + 1e-3 for share in shares)
    figure = float(shares[0]) if shares else np.nan
    return Finding("corners", None if between else False, figure, words)


def _listed(pieces: list[Operation]) -> str:
    return ", ".join(map(str, pieces[:4])) + (", …" if len(pieces) > 4 else "")


def _fraction(share: float) -> str:
    return {0.0: "0", 0.5: "½", 1.0: "1"}.get(round(share, 3), f"{share:.2g}")


def _force_corners(context: Context) -> Iterator[Corner]:
    """The corners of the force on each leaf, with all units of the leaf at one number."""
    system, params = context.system, context.params
    leaves, structure = jax.tree.flatten(context.interior)
    numbers = _numbers(lambda s: system.force(params, context.clamped, s), context.interior)

    def force(value: float, i: int) -> np.ndarray:
        moved = [*leaves[:i], jnp.full_like(leaves[i], value), *leaves[i + 1 :]]
        state = jax.tree.unflatten(structure, moved)
        slope = np.asarray(jax.tree.leaves(context.force(state))[i])
        inside = context.energy is None or bool(jnp.isfinite(context.energy(state)).all())
        return slope if inside else np.full_like(slope, np.nan)

    for i, name in enumerate(trees.names(context.interior)):
        name = f"∂E/∂s of {name}" if name else "∂E/∂s"
        yield from _corners(name, numbers, [force(n + h, i) for n in numbers for h in _SIDES])


def _sigma_corners(context: Context) -> Iterator[Corner]:
    """The corners of σ. At zero weights and states a push is the whole input of its unit."""
    system, params, x = context.system, idle_weights(context.params), trees.zeros(context.x)
    state, clamped = trees.zeros(context.start), system.clamp(params, x)

    def sweep(value: Any) -> State:
        push = jax.tree.map(lambda s: jnp.zeros_like(s) + value, state)
        return system.sweep(params, clamped, state, lambda s: push)

    slope = jax.jit(jax.jacfwd(sweep))
    numbers = _numbers(sweep, jnp.zeros(()))
    slopes = [jax.tree.leaves(slope(jnp.asarray(n + h))) for n in numbers for h in _SIDES]
    for i, name in enumerate(trees.names(state)):
        yield from _corners(f"σ of {name}", numbers, [np.asarray(each[i]) for each in slopes])


_SIDES = (-AHEAD, 0.0, AHEAD)


def _corners(name: str, numbers: list[float], slopes: Sequence[np.ndarray]) -> Iterator[Corner]:
    """The numbers at which a slope jumps; `slopes` has three for each: left of it, at it, right."""
    corners = []
    for i, number in enumerate(numbers):
        left, here, right = slopes[3 * i : 3 * i + 3]
        jump = jumps(left, right)
        if jump.any():
            corners.append((number, jump_share(left, here, right, jump)))
    for i, (number, share) in enumerate(corners):
        upper = len(corners) > 1 and i == len(corners) - 1
        yield name, number, 1.0 - share if upper else share


def _numbers(fn: Callable[..., Any], state: Any) -> list[float]:
    """Where corners may be: common numbers, those that the program compares with, their gaps."""
    literals = {
        abs(float(np.real(var.val)))
        for eqn in all_equations(jax.make_jaxpr(fn)(state).jaxpr)
        for var in eqn.invars
        if isinstance(var, Literal) and np.ndim(var.val) == 0
    }
    literals = {value for value in literals if value <= 100}  # nor NaN
    gaps = {abs(a - b) for a in literals for b in literals}
    wanted = sorted({0.0, 0.5, 1.0} | literals | gaps)[:MOST_CORNERS]
    return sorted({*wanted, *(-value for value in wanted if value)})


class Crossing(NamedTuple):
    """A place where the argument of an operation changes its sign.

    Args:
      jumps: whether the force jumps there.
      share: the slope that autodiff takes there: 0 that of the side with the negative argument, 1
        that of the other side; NaN if no floating-point number makes the argument zero.
    """

    jumps: bool
    share: float


def find_crossings(
    context: Context, operations: Sequence[Operation], key: jax.Array
) -> dict[Operation, Crossing]:
    """Finds one crossing of each operation on lines from `interior` to random states.

    A sign changes between two points of a line. Bisection finds the place. If the force is
    continuous at an operation's first crossing, crossings on other lines are tried too.

    Args:
      context: the system and its states.
      operations: the operations of its energy, or of its force without an energy.
      key: draws the ends of the lines.

    Returns:
      The crossing of each operation that has one.
    """
    system = context.system
    program = system.force if system.energy is None else system.energy
    closed = jax.make_jaxpr(lambda s: program(context.params, context.clamped, s))(context.interior)

    def state(t: Any, end: State) -> State:
        return trees.add(context.interior, trees.scale(t, trees.sub(end, context.interior)))

    def arguments(at: State) -> dict[Operation, Array]:
        switches = _Switches()
        switches.run(closed.jaxpr, closed.consts, jax.tree.leaves(at))
        parts = switches.arguments
        return {one: jnp.concatenate(parts[one]) for one in operations if one in parts}

    read = jax.jit(arguments)
    along = jax.jit(
        lambda end: jax.lax.map(lambda t: arguments(state(t, end)), jnp.linspace(0.0, 1.0, POINTS))
    )

    def first_crossing(operation: Operation, end: State, values: np.ndarray) -> Crossing | None:
        places = np.argwhere(values[:-1] * values[1:] < 0)
        if not len(places):
            return None
        j, unit = places[0]
        rising = bool(values[j, unit] < 0)
        ends = (j / (POINTS - 1), (j + 1) / (POINTS - 1))
        t = _bisect(lambda t: float(read(state(t, end))[operation][unit]), *ends, rising)
        # The force on both sides, first on the side of the negative argument.
        far = float(jnp.max(trees.max_abs(trees.sub(end, context.interior))))
        step = (AHEAD if rising else -AHEAD) / far
        left, right = (_flat(context.force(state(t + move, end))) for move in (-step, step))
        jump, share = jumps(left, right), np.nan
        # The slope that autodiff takes at the zero itself, if a number near t is this zero.
        for near in _neighbours(state(t, end)) if jump.any() else ():
            if float(read(near)[operation][unit]) == 0.0:
                share = jump_share(left, _flat(context.force(near)), right, jump)
                break
        return Crossing(bool(jump.any()), share)

    crossings: dict[Operation, Crossing] = {}
    for i, spread in enumerate(SPREADS):
        end = context.draw(jax.random.fold_in(key, i), spread)
        values = along(end)
        for operation in (each for each in operations if each in values):
            if operation not in crossings or not crossings[operation].jumps:
                crossing = first_crossing(operation, end, np.asarray(values[operation]))
                crossings.update({} if crossing is None else {operation: crossing})
    return crossings


def jumps(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Finds the entries in which two slopes differ by more than a smooth function allows.

    Args:
      left: the slopes on one side.
      right: the slopes on the other side.

    Returns:
      A boolean for each entry.
    """
    with np.errstate(invalid="ignore"):  # outside the domain
        jump = right - left
        size = np.abs(left) + np.abs(right) + 1.0
        return np.isfinite(jump) & (np.abs(jump) > 1e-4 * size)


def jump_share(left: np.ndarray, here: np.ndarray, right: np.ndarray, jump: np.ndarray) -> float:
    """The place of a slope within a jump: 0 at the left slope, 1 at the right slope.

    Args:
      left: the slopes on one side.
      here: the slopes at the place.
      right: the slopes on the other side.
      jump: the entries that jump.

    Returns:
      The median over these entries.
    """
    return round(float(np.median((here - left)[jump] / (right - left)[jump])), 6) + 0.0  # no −0


def _bisect(value: Callable[[float], float], low: float, high: float, rising: bool) -> float:
    """The place where `value` changes its sign, to the last bit."""
    for _ in range(60):
        middle = 0.5 * (low + high)
        now = value(middle)
        if now == 0.0 or middle in (low, high):
            return middle
        low, high = (middle, high) if (now < 0) is rising else (low, middle)
    return high


def _neighbours(state: State) -> Iterator[State]:
    """The state, and states that differ by a few units of round-off."""
    for n in (0, 1, -1, 2, -2, 3, -3, 4, -4):
        yield jax.tree.map(lambda s, n=n: s + n * np.spacing(np.asarray(s)), state)


def _flat(state: State) -> np.ndarray:
    return np.asarray(flat_rows(state)).ravel()


class _Switches(Interpreter):
    """Runs a program, and keeps the arguments whose zeros change the piece of an operation."""

    def __init__(self) -> None:
        self.arguments: dict[Operation, list[Array]] = {}
        self._line = ""

    def equation(self, eqn: Any, values: list[Any]) -> Sequence[Any]:
        outer, self._line = self._line, source_line(eqn, IGNORED) or self._line
        operation = Operation(eqn.primitive.name, self._line)
        for argument in _switching(operation.name, values):
            self.arguments.setdefault(operation, []).append(jnp.ravel(argument))
        results = super().equation(eqn, values)
        self._line = outer
        return results


def _switching(name: str, values: list[Any]) -> list[Any]:
    """The arguments that are zero where a piecewise operation of real numbers changes its piece."""
    if name not in ("abs", "sign", "clamp", *_COMPARISONS):
        return []
    if not all(jnp.issubdtype(jnp.result_type(value), jnp.floating) for value in values):
        return []
    if name in ("abs", "sign"):
        return values
    if name in _COMPARISONS:
        return [values[0] - values[1]]
    return [values[1] - values[0], values[1] - values[2]]
