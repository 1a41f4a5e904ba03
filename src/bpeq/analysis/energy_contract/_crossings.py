"""Finds the places between two states where a piecewise operation changes its piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from bpeq.analysis.energy_contract._context import Context, draw_state, flat_rows
from bpeq.analysis.energy_contract.piecewise import IGNORED, Operation
from bpeq.core import trees
from bpeq.core.jaxprs import Walker, inner_programs, source_line
from bpeq.types import State

AHEAD = 1e-7  # the distance from a corner to the points on both sides
SPREADS = (0.3, 1.0, 1.0, 3.0)  # standard deviations of the ends of the searched lines
POINTS = 17  # points of a line, between which a sign can change
_CONTROL = ("scan", "while", "cond")
_COMPARISONS = ("max", "min", "lt", "le", "gt", "ge")


class Crossing(NamedTuple):
    """A place where the argument of an operation changes its sign.

    Args:
      operation: the operation.
      jumps: whether the force jumps there.
      share: the slope that autodiff takes there: 0 that of the side with the negative argument, 1
        that of the other side; NaN if no floating-point number makes the argument zero.
    """

    operation: Operation
    jumps: bool
    share: float


def find_crossings(
    context: Context, operations: Sequence[Operation], key: jax.Array
) -> list[Crossing]:
    """Finds one crossing of each operation on lines from `interior` to random states.

    A sign changes between two points of a line. Bisection finds the place. If the force is
    continuous at an operation's first crossing, crossings on other lines are tried too.

    Args:
      context: the system and its states.
      operations: the operations of its energy, or of its force without an energy.
      key: draws the ends of the lines.

    Returns:
      The crossings.
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

    seen = jax.eval_shape(arguments, context.interior)
    names = [one for one in dict.fromkeys(operations) if one in seen]
    read = jax.jit(lambda at: [arguments(at)[one] for one in names])
    along = jax.jit(
        lambda end: jax.lax.map(lambda t: read(state(t, end)), jnp.linspace(0.0, 1.0, POINTS))
    )

    def first_crossing(k: int, end: State, values: np.ndarray) -> Crossing | None:
        places = np.argwhere(values[:-1] * values[1:] < 0)
        if not len(places):
            return None
        j, unit = places[0]
        rising = bool(values[j, unit] < 0)
        ends = (j / (POINTS - 1), (j + 1) / (POINTS - 1))
        t = _bisect(lambda t: float(read(state(t, end))[k][unit]), *ends, rising)
        # The force on both sides, first on the side of the negative argument.
        far = float(jnp.max(trees.max_abs(trees.sub(end, context.interior))))
        step = (AHEAD if rising else -AHEAD) / far
        left, right = (_flat(context.force(state(t + move, end))) for move in (-step, step))
        jump, share = jumps(left, right), np.nan
        # The slope that autodiff takes at the zero itself, if a number near t is this zero.
        for near in _neighbours(state(t, end)) if jump.any() else ():
            if float(read(near)[k][unit]) == 0.0:
                share = jump_share(left, _flat(context.force(near)), right, jump)
                break
        return Crossing(names[k], bool(jump.any()), share)

    met: dict[Operation, Crossing] = {}
    for i, spread in enumerate(SPREADS if names else ()):
        end = draw_state(context, jax.random.fold_in(key, i), spread)
        for k, values in enumerate(map(np.asarray, along(end))):
            before = met.get(names[k])
            if before is None or not before.jumps:
                crossing = first_crossing(k, end, values)
                met.update({} if crossing is None else {names[k]: crossing})
    return list(met.values())


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


class _Switches(Walker[Any]):
    """Runs a program, and keeps the arguments whose zeros change the piece of an operation."""

    def __init__(self) -> None:
        self.arguments: dict[Operation, list[Array]] = {}
        self._line = ""

    def literal(self, literal: Any) -> Any:
        return literal.val

    def equation(self, eqn: Any, values: list[Any]) -> Sequence[Any]:
        outer, self._line = self._line, source_line(eqn, IGNORED) or self._line
        name = eqn.primitive.name
        inner = [] if name in _CONTROL else inner_programs(eqn)
        if inner:
            results = self.run(inner[0].jaxpr, inner[0].consts, values)
        else:
            for argument in _switching(name, values):
                operation = Operation(name, self._line)
                self.arguments.setdefault(operation, []).append(jnp.ravel(argument))
            results = eqn.primitive.bind(*values, **eqn.params)
            results = results if eqn.primitive.multiple_results else [results]
        self._line = outer
        return results


def _switching(name: str, values: list[Any]) -> list[Any]:
    """The arguments that are zero where a piecewise operation of real numbers changes its piece."""
    if not all(jnp.issubdtype(jnp.result_type(value), jnp.floating) for value in values):
        return []
    if name in ("abs", "sign"):
        return values
    if name in _COMPARISONS:
        return [values[0] - values[1]]
    return [values[1] - values[0], values[1] - values[2]] if name == "clamp" else []
