"""Anderson acceleration for each example alone, with the certificate of plain sweeps."""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Ge, Le
from jaxtyping import Array, Bool, Float, Int

from bpeq.core import trees
from bpeq.settings import Count, Positive, checked
from bpeq.solvers._loops import PARTS, memory, run_compacting_active, run_sweep
from bpeq.types import SolveInfo, Solver, State

Leaves = list[Array]
"""The leaves that a sweep reads. Vectors are `[units, batch]`, since sums over few units vectorise
better that way. Images are large and keep their layout, `[batch, height, width, channels]`."""

GROWTH = 2.0
"""A residual this many times the least so far sends an example back to plain sweeps."""


class _Carry(NamedTuple):
    """The state of the loop. g = sweep(s) and f = g − s, for the units that a sweep reads.

    read: s. swept: g. residual: max |f| of each example. least: its smallest residual so far.
    before: g and f of the previous sweep. changes: earlier Δg and Δf, the latest first.
    active: which examples still move. steps: sweeps per example. sweeps: sweeps of the loop.
    """

    read: Leaves
    swept: Leaves
    residual: Float[Array, " batch"]
    least: Float[Array, " batch"]
    before: tuple[Leaves, Leaves]
    changes: tuple[tuple[Leaves, Leaves], ...]
    active: Bool[Array, " batch"]
    steps: Int[Array, " batch"]
    sweeps: Int[Array, ""]


@checked
def anderson(
    tolerance: Positive = 1e-6,
    max_steps: Count = 1000,
    *,
    window: Annotated[int, Ge(1), Le(8)] = 2,
    near: Positive = 0.1,
) -> Solver:
    """Anderson acceleration of the sweep, until every example's residual is at most `tolerance`.

    With g = sweep(s), f = g − s and the changes Δ_i g, Δ_i f of the last m sweeps the next state is

        s ← g − Σ_i a_i Δ_i g,      a = argmin ‖f − Σ_i a_i Δ_i f‖²

    for each example alone. So its result does not depend on the other examples of its batch. An
    example that has settled stops moving. Only the units that a sweep reads take part: the ten
    outputs of 784-512-10, for example. So the least squares cost little. The other units end at
    what the sweep makes of these. So `residual` is a certificate, as with `fixed_point`: max
    |sweep(s) − s| at the returned state. NaN never counts as settled.

    The sweeps of the rules can run on a part of the batch. Once a quarter of the batch is not
    settled, these examples continue alone; the same again at a sixteenth.

    An example takes a plain sweep in three cases. (1) A past sweep shows no descent,
    ⟨Δ_i s, Δ_i f⟩ > 0: there the energy has a saddle, and least squares would go to it. (2) Its
    residual has grown to twice the smallest so far; it then also drops its past changes.
    (3) Its residual is above `near`. After half of `max_steps` all examples take plain sweeps.

    A system can have several stable equilibria, for example with max-pooling between states. The
    path then decides between them, and an example can settle at another one than plain sweeps would
    find. Most of that decision is early; therefore the plain sweeps until the residual is `near`.

    Args:
      tolerance: > 0, in units of the state. In float32 the smallest possible value is near 1e-6.
      max_steps: largest number of sweeps, >= 1.
      window: m, the number of past sweeps to combine, 1 to 8. 2 is enough for a few output units;
        deep nets can gain from 3 to 5.
      near: largest residual at which an example is accelerated, > 0, in units of the state. A
        smaller value keeps it closer to the path of plain sweeps.

    Returns:
      A Solver.

    Raises:
      ValueError: a setting is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> slow = lambda s: 0.9 * s + 0.1
      >>> state, info = anderson(1e-3)(slow, jnp.zeros((1, 1)))
      >>> round(float(state[0, 0]), 4), info.steps.tolist(), info.converged.tolist()
      (1.0, [3], [True])

    Source: Anderson 1965, Iterative procedures for nonlinear integral equations; Walker & Ni 2011,
    Anderson acceleration for fixed-point iterations.
    """

    def solve(step: Callable[[State], State], state: State) -> tuple[State, SolveInfo]:
        read = memory(step, state)

        def pick(state: State) -> Leaves:
            """The leaves that a sweep reads, with the batch on axis `_axis`."""
            return [leaf.T if _axis(leaf) else leaf for leaf in read.pick(state)]

        def fill(kept: Leaves, rest: State = state) -> State:
            """The inverse of `pick`, with the other leaves from `rest`."""
            return read.fill([leaf.T if _axis(leaf) else leaf for leaf in kept], rest)

        def move(step: Callable[[State], State], rest: State, carry: _Carry) -> _Carry:
            # The newest change joins the past ones, unless the residual has grown too much.
            f = trees.sub(carry.swept, carry.read)
            grown = ~(carry.residual <= GROWTH * carry.least)
            change = trees.sub((carry.swept, f), carry.before)
            known = _where(grown, trees.zeros(change), change), *carry.changes
            # Accelerate only where it is safe; a plain sweep is always the alternative.
            mixed, sound = _mixed(carry.swept, f, known)
            sound = sound & ~grown & (carry.residual <= near) & (2 * carry.sweeps <= max_steps)
            moved = _where(sound, mixed, carry.swept)
            # Measure the residual at the new state, so that it belongs to the state returned.
            kept = _where(carry.active, moved, carry.read)
            swept = pick(run_sweep(step, fill(kept, rest), carry.sweeps))
            residual = _size(trees.sub(swept, kept))
            return _Carry(
                kept,
                swept,
                jnp.where(carry.active, residual, carry.residual),
                jnp.where(grown, carry.residual, jnp.minimum(carry.least, carry.residual)),
                (carry.swept, f),
                _where(grown, trees.zeros(known[:-1]), known[:-1]),
                carry.active & ~(residual <= tolerance),
                carry.steps + carry.active.astype(jnp.int32),
                carry.sweeps + 1,
            )

        def run(step: Callable[[State], State], rest: State, carry: _Carry, few: int) -> _Carry:
            """Move until no more than `few` examples are active."""

            def go_on(carry: _Carry) -> Array:
                return (jnp.sum(carry.active) > few) & (carry.sweeps < max_steps)

            return jax.lax.while_loop(go_on, partial(move, step, rest), carry)

        # Measure before the loop: a settled start needs no move.
        kept = pick(state)
        swept = pick(run_sweep(step, state, 0))
        residual = _size(trees.sub(swept, kept))
        nothing = trees.zeros(kept)
        start = _Carry(
            kept,
            swept,
            residual,
            residual,
            (swept, trees.sub(swept, kept)),  # so that the first change is zero
            ((nothing, nothing),) * (window - 1),
            ~(residual <= tolerance),
            jnp.ones(residual.shape, jnp.int32),
            jnp.ones((), jnp.int32),
        )
        end = run_compacting_active(run, step, state, start, PARTS, _axis)
        # The sweep sets the units that it does not read; those that it reads stay certified.
        last = fill(end.read)
        settled = read.fill(read.pick(last), run_sweep(step, last, end.sweeps))
        return settled, SolveInfo(end.steps, end.residual, end.residual <= tolerance)

    return solve


def _mixed(
    g: Leaves, f: Leaves, changes: tuple[tuple[Leaves, Leaves], ...]
) -> tuple[Leaves, Bool[Array, " batch"]]:
    """g − Σ_i a_i Δ_i g with the least squares a, and whether it is finite and descends."""
    rows = [[_dot(a, b) for _, b in changes] for _, a in changes]
    trace = jnp.stack([jnp.real(row[i]) for i, row in enumerate(rows)]).sum(axis=0)
    # The ridge gives a = 0 if nothing has changed.
    ridge = jnp.finfo(trace.dtype).eps * trace + jnp.finfo(trace.dtype).tiny
    for i, row in enumerate(rows):
        row[i] = row[i] + ridge.astype(row[i].dtype)
    a = _solved(rows, [_dot(df, f) for _, df in changes])
    mixed = g
    for a_i, (dg, _) in zip(a, changes, strict=True):
        mixed = [x - _each(a_i, d) * d for x, d in zip(mixed, dg, strict=True)]
    sound = jnp.isfinite(_size(mixed))
    for dg, df in changes:
        sound = sound & (jnp.real(_dot(trees.sub(dg, df), df)) <= 0)
    return mixed, sound


def _solved(rows: list[list[Array]], right: list[Array]) -> list[Array]:
    """A⁻¹ b for each example, A Hermitian and positive; unrolled, which is fast for small A."""
    n = len(right)
    rows, right = [list(row) for row in rows], list(right)
    for i in range(n):
        for k in range(i + 1, n):
            share = rows[k][i] / rows[i][i]
            rows[k] = [a - share * b for a, b in zip(rows[k], rows[i], strict=True)]
            right[k] = right[k] - share * right[i]
    found: list[Array] = []
    for i in reversed(range(n)):
        rest = right[i]
        for k, a in zip(range(n - 1, i, -1), found, strict=True):
            rest = rest - rows[i][k] * a
        found.append(rest / rows[i][i])
    return found[::-1]


def _axis(leaf: Array) -> int:
    """The batch axis of a leaf, 0 or -1."""
    return 0 if leaf.ndim > 2 else -1


def _each(values: Array, leaf: Array) -> Array:
    """One value per example, in a shape that broadcasts with the leaf's units."""
    return values if _axis(leaf) else values.reshape(-1, *[1] * (leaf.ndim - 1))


def _units(leaf: Array) -> tuple[int, ...]:
    """The axes of an example's units."""
    return tuple(range(1, leaf.ndim)) if leaf.ndim > 2 else tuple(range(leaf.ndim - 1))


def _dot(a: Leaves, b: Leaves) -> Array:
    """Σ ā b of each example."""
    parts = [(jnp.conj(x) * y).sum(axis=_units(x)) for x, y in zip(a, b, strict=True)]
    return functools.reduce(jnp.add, parts)


def _size(a: Leaves) -> Array:
    """max |a| of each example; NaN if it has one."""
    return functools.reduce(jnp.maximum, [jnp.abs(x).max(axis=_units(x)) for x in a])


def _where(mask: Array, a: Any, b: Any) -> Any:
    """a where `mask` is true, b elsewhere, for each example."""
    return jax.tree.map(lambda x, y: jnp.where(_each(mask, x), x, y), a, b)
