"""β chosen by the estimates themselves: where bias and round-off are smallest together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bpeq.core import trees
from bpeq.types import Params

RUNGS = 40
PATIENCE = 3


class Chosen(NamedTuple):
    """The best β met, and the estimated relative error ‖g − g*‖ / ‖g‖ of the estimate there.

    The bar is twice what the differences show, so that it covers the error nearly always.
    """

    beta: Array
    error_bar: Array


class _Walk(NamedTuple):
    rung: Array
    before: Params  # the gradients of the two rungs above
    above: Params
    gap_before: Array  # ‖g − g'‖ between neighbours: rungs −3 and −2, then −2 and −1
    gap_above: Array
    noise_before: Array
    noise_above: Array
    best: Array
    best_beta: Array
    best_size: Array
    worse: Array


def choose(
    measure: Callable[[Array, Array], tuple[Params, Array]], like: Params, order: int, start: Array
) -> Chosen:
    """Walks β down by halves from `start` and keeps the rung with the smallest error bar.

    With g_k the estimate at β_k = start / 2^k and d_k = ‖g_{k−1} − g_k‖, rung k's bar is

        d_k / (2^p − 1)  +  d_{k+2} / 2  +  ν_k ‖g_k‖

    The first term is the bias β^p A that the step from above shows; the second the noise B/β that
    the two rungs below show; ν_k, the nudged phases' residual over their distance from the free
    state, is the noise that no difference shows: at a ν of 0.1 or more phases no longer follow the
    nudge, and the rung does not count. The walk ends when three rungs in a row gave no smaller bar
    and their noise outweighs their bias.

    Args:
      measure: (β, number of the rung) -> (gradient, ν).
      like: a tree of the gradient's shapes.
      order: p, the order of the bias in β.
      start: the first β.
    """
    far = jnp.full_like(start, jnp.inf)
    nothing, count = trees.zeros(like), jnp.zeros((), jnp.int32)
    walk = _Walk(
        count, nothing, nothing, far, far, far, far, far, start, jnp.ones_like(start), count
    )

    def go_on(walk: _Walk) -> Array:
        return (walk.rung < RUNGS) & (walk.worse < PATIENCE)

    def step(walk: _Walk) -> _Walk:
        grads, noise = measure(start * 2.0 ** (-walk.rung.astype(start.dtype)), walk.rung)
        gap = jnp.where(walk.rung > 0, _norm(trees.sub(walk.above, grads)), far)
        # The rung two above is judged now that the one below its lower neighbour is known.
        size, bias = _norm(walk.before), walk.gap_before / (2.0**order - 1.0)
        noise_there = gap / 2.0 + walk.noise_before * size
        better = (bias + noise_there < walk.best) & (walk.noise_before < 0.1)  # false for a NaN
        lost = ~better & jnp.isfinite(walk.best) & ~(noise_there < bias)
        candidate = start * 2.0 ** (2.0 - walk.rung.astype(start.dtype))
        return _Walk(
            walk.rung + 1,
            walk.above,
            grads,
            walk.gap_above,
            gap,
            walk.noise_above,
            noise,
            jnp.where(better, bias + noise_there, walk.best),
            jnp.where(better, candidate, walk.best_beta),
            jnp.where(better, size, walk.best_size),
            jnp.where(lost, walk.worse + 1, 0),
        )

    end = jax.lax.while_loop(go_on, step, walk)
    return Chosen(end.best_beta, 2.0 * end.best / end.best_size)


def unsettled(first: Params, second: Params, third: Params) -> Array:
    """What phases that were cut short lack, relative to the first estimate.

    An error of the free phase moves all phases alike, and a nudged phase after k sweeps lacks a
    part that grows as β: in the estimate both are independent of β, so `choose` cannot see them.
    Settling on for as long as before, and once more, shows them: with d and d' the steps from one
    estimate to the next and q = d'/d, a geometric series has d / (1 − q) left. q is trusted up to
    0.9 only, since at round-off, where there is no series, it is near 1.
    """
    step, after = _norm(trees.sub(second, first)), _norm(trees.sub(third, second))
    ratio = jnp.where(step > 0, after / step, 0.0)
    return step / (1.0 - jnp.minimum(ratio, 0.9)) / _norm(first)


def _norm(tree: Any) -> Array:
    return jnp.sqrt(trees.dot(tree, tree))
