"""Where on the way between two states an operation in pieces goes over from one to the next."""

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

AHEAD = 1e-7  # how far from a corner its two sides are looked at
SPREADS = (0.3, 1.0, 1.0, 3.0)  # of the ends of the lines that are searched
POINTS = 17  # of a line, between which a sign is seen to change
_CONTROL = ("scan", "while", "cond")
_COMPARISONS = ("max", "min", "lt", "le", "gt", "ge")


class Crossing(NamedTuple):
    """A place where an operation's argument changes its sign.

    operation: which one.
    jumps: whether the force does.
    share: which slope autodiff takes there: 0 that of the side of the negative argument, 1 the
        other; NaN where no number between makes the argument zero.
    """

    operation: Operation
    jumps: bool
    share: float


def find_crossings(
    context: Context, operations: Sequence[Operation], key: jax.Array
) -> list[Crossing]:
    """One of each operation that the lines from `interior` to random states meet.

    A sign changes between two points of a line; bisection finds where. Where the force goes on at
    an operation's first crossing, those on other lines are tried too.

    Args:
      context: the system and its states.
      operations: of its energy, or of its force if there is none.
      key: draws the ends of the lines.
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
        # The force on both sides, from that of the negative argument to the other.
        far = float(jnp.max(trees.max_abs(trees.sub(end, context.interior))))
        step = (AHEAD if rising else -AHEAD) / far
        left, right = (_flat(context.force(state(t + move, end))) for move in (-step, step))
        jump, share = jumps(left, right), np.nan
        # What autodiff takes at the zero itself, if a number near t hits it.
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
    """Where two slopes on the two sides of a place differ by more than a smooth one would."""
    with np.errstate(invalid="ignore"):  # outside the domain
        jump = right - left
        size = np.abs(left) + np.abs(right) + 1.0
        return np.isfinite(jump) & (np.abs(jump) > 1e-4 * size)


def jump_share(left: np.ndarray, here: np.ndarray, right: np.ndarray, jump: np.ndarray) -> float:
    """How far along a jump a slope lies: 0 at its left, 1 at its right."""
    return round(float(np.median((here - left)[jump] / (right - left)[jump])), 6) + 0.0  # no −0


def _bisect(value: Callable[[float], float], low: float, high: float, rising: bool) -> float:
    """Where `value` changes its sign, to the last bit."""
    for _ in range(60):
        middle = 0.5 * (low + high)
        now = value(middle)
        if now == 0.0 or middle in (low, high):
            return middle
        low, high = (middle, high) if (now < 0) is rising else (low, middle)
    return high


def _neighbours(state: State) -> Iterator[State]:
    """The state, and those a few units of round-off beside it."""
    for n in (0, 1, -1, 2, -2, 3, -3, 4, -4):
        yield jax.tree.map(lambda s, n=n: s + n * np.spacing(np.asarray(s)), state)


def _flat(state: State) -> np.ndarray:
    return np.asarray(flat_rows(state)).ravel()


class _Switches(Walker[Any]):
    """Computes a program, and keeps what its operations in pieces change at the zeros of."""

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
    """What is zero where the operation goes over to its next piece, of real numbers."""
    if not all(jnp.issubdtype(jnp.result_type(value), jnp.floating) for value in values):
        return []
    if name in ("abs", "sign"):
        return values
    if name in _COMPARISONS:
        return [values[0] - values[1]]
    return [values[1] - values[0], values[1] - values[2]] if name == "clamp" else []
