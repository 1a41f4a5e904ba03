"""Where on the way between two states an operation in pieces goes over from one to the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal
from jaxtyping import Array

from bpeq.analysis.energy_contract._operations import Operation, inner_of, line_of
from bpeq.analysis.energy_contract._subject import Subject, drawn
from bpeq.core import trees
from bpeq.types import State

AHEAD = 1e-7  # where the two sides of a corner are looked at
SPREADS = (0.3, 1.0, 1.0, 3.0)  # of the ends of the lines that are searched
POINTS = 17  # of a line, between which a sign is seen to change
_CONTROL = ("scan", "while", "cond")
_TWO = frozenset(["max", "min", "lt", "le", "gt", "ge"])


class Crossing(NamedTuple):
    """A place where an operation's argument changes its sign.

    jumps: whether the force does. share: which slope autodiff takes at it: 0 that of the side of
    the negative argument, 1 the other; NaN where no number between makes the argument zero.
    """

    operation: Operation
    jumps: bool
    share: float


def crossings(subject: Subject, wanted: Sequence[Operation], key: jax.Array) -> list[Crossing]:
    """One of each operation in `wanted` that the lines from `inside` to random states meet.

    A sign is seen to change between two points of a line; bisection finds where. Where the force
    goes on at an operation's first crossing, those on other lines are tried too.
    """
    system = subject.system
    program = system.force if system.energy is None else system.energy
    closed = jax.make_jaxpr(lambda s: program(subject.params, subject.clamped, s))(subject.inside)

    def state(t: Any, end: State) -> State:
        return trees.add(subject.inside, trees.scale(t, trees.sub(end, subject.inside)))

    def arguments(at: State) -> dict[Operation, Array]:
        found: dict[Operation, list[Array]] = {}
        _run(closed.jaxpr, closed.consts, jax.tree.leaves(at), "", found)
        return {one: jnp.concatenate(parts) for one, parts in found.items() if one in wanted}

    seen = jax.eval_shape(arguments, subject.inside)
    names = [one for one in dict.fromkeys(wanted) if one in seen]
    read = jax.jit(lambda at: [arguments(at)[one] for one in names])
    along = jax.jit(
        lambda end: jax.lax.map(lambda t: read(state(t, end)), jnp.linspace(0.0, 1.0, POINTS))
    )

    def crossing(k: int, end: State, values: np.ndarray) -> Crossing | None:
        place = np.argwhere(values[:-1] * values[1:] < 0)
        if not len(place):
            return None
        j, unit = place[0]
        rising = bool(values[j, unit] < 0)
        ends = (j / (POINTS - 1), (j + 1) / (POINTS - 1))
        t = _bisect(lambda t: float(read(state(t, end))[k][unit]), *ends, rising)
        far = float(jnp.max(trees.max_abs(trees.sub(end, subject.inside))))
        step = (AHEAD if rising else -AHEAD) / far
        left, right = (_flat(subject.force(state(t + move, end))) for move in (-step, step))
        jump, share = jumps(left, right), np.nan
        for near in _neighbours(state(t, end)) if jump.any() else ():
            if float(read(near)[k][unit]) == 0.0:
                here = _flat(subject.force(near))
                share = float(np.median((here - left)[jump] / (right - left)[jump]))
                break
        return Crossing(names[k], bool(jump.any()), round(share, 6) + 0.0)

    met: dict[Operation, Crossing] = {}
    for i, spread in enumerate(SPREADS if names else ()):
        end = drawn(subject, jax.random.fold_in(key, i), spread)
        for k, values in enumerate(map(np.asarray, along(end))):
            before = met.get(names[k])
            if before is None or not before.jumps:
                made = crossing(k, end, values)
                met.update({} if made is None else {names[k]: made})
    return list(met.values())


def jumps(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Where two slopes on the two sides of a place differ by more than a smooth one would."""
    with np.errstate(invalid="ignore"):  # outside the domain
        jump = right - left
        size = np.abs(left) + np.abs(right) + 1.0
        return np.isfinite(jump) & (np.abs(jump) > 1e-4 * size)


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
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(state)])


def _run(
    jaxpr: Any, consts: Sequence[Any], values: Sequence[Any], outer: str, found: dict[Any, Any]
) -> list[Any]:
    """The program's results; what its operations in pieces change at the zeros of, in `found`."""
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *values], strict=True))
    for eqn in jaxpr.eqns:
        given = [var.val if isinstance(var, Literal) else known[var] for var in eqn.invars]
        name, where = eqn.primitive.name, line_of(eqn) or outer
        inner = None if name in _CONTROL else inner_of(eqn)
        if inner is not None:
            own = inner.consts if isinstance(inner, ClosedJaxpr) else ()
            made = _run(getattr(inner, "jaxpr", inner), own, given, where, found)
        else:
            for argument in _arguments(name, given):
                found.setdefault(Operation(name, where), []).append(jnp.ravel(argument))
            made = eqn.primitive.bind(*given, **eqn.params)
            made = made if eqn.primitive.multiple_results else [made]
        known.update(zip(eqn.outvars, made, strict=True))
    return [var.val if isinstance(var, Literal) else known[var] for var in jaxpr.outvars]


def _arguments(name: str, given: list[Any]) -> list[Any]:
    """What is zero where the operation goes over to its next piece, of real numbers."""
    if not all(jnp.issubdtype(jnp.result_type(value), jnp.floating) for value in given):
        return []
    if name in ("abs", "sign"):
        return given
    if name in _TWO:
        return [given[0] - given[1]]
    return [given[1] - given[0], given[1] - given[2]] if name == "clamp" else []
