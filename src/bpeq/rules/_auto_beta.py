"""β chosen by the estimates themselves: where the sum of bias and round-off is smallest."""

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
    """The chosen β and its estimated error.

    beta: the β with the smallest error bar.
    error_bar: the estimated relative error ‖g − g*‖ / ‖g‖ of the estimate there. It is twice what
        the differences show, so that it nearly always covers the error.
    """

    beta: Array
    error_bar: Array


class _Walk(NamedTuple):
    """The state of the search over β.

    A rung is one value β_k = start / 2^k. The search judges rung k − 2 when it knows rung k.
    """

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
    """Search for β: halve it from `start` on, and keep the rung with the smallest error bar.

    With g_k the estimate at β_k = start / 2^k and d_k = ‖g_{k−1} − g_k‖, the bar of rung k is

        d_k / (2^p − 1)  +  d_{k+2} / 2  +  ν_k ‖g_k‖

    The first term is the bias β^p A; the difference to the rung above shows it. The second term is
    the noise B/β; the two rungs below show it. ν_k is the residual of the nudged phases over their
    distance from the free state: noise that no difference shows. If ν_k is 0.1 or more, the phases
    no longer follow the nudge, and the rung does not count. The search ends after three rungs in a
    row that have no smaller bar and more noise than bias.

    Args:
      measure: (β, index of the rung) -> (gradient, ν).
      like: a tree in the gradient's shapes.
      order: p, the order of the bias in β, >= 1.
      start: the first β, > 0, a scalar array.

    Returns:
      A Chosen.
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
        # Judge the rung two above: the two rungs below it are now known.
        size, bias = _norm(walk.before), walk.gap_before / (2.0**order - 1.0)
        noise_there = gap / 2.0 + walk.noise_before * size
        better = (bias + noise_there < walk.best) & (walk.noise_before < 0.1)  # false for a NaN
        # A rung is lost only if noise dominates there; a large bias still falls further down.
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
    """The relative error of phases that stopped early, from three estimates.

    An error of the free phase moves all phases alike. A nudged phase lacks, after k sweeps, a part
    that grows as β. In the estimate both errors are independent of β, so `choose` cannot see them.
    Two further relaxations, each as long as the first, show them. With d and d' the steps from one
    estimate to the next and q = d'/d, a geometric series has d / (1 − q) left. q is limited to 0.9:
    at round-off there is no series, and q is near 1.

    Args:
      first: the estimate.
      second: the estimate after one further relaxation.
      third: the estimate after two.

    Returns:
      A scalar, relative to the norm of `first`.
    """
    step, after = _norm(trees.sub(second, first)), _norm(trees.sub(third, second))
    ratio = jnp.where(step > 0, after / step, 0.0)
    return step / (1.0 - jnp.minimum(ratio, 0.9)) / _norm(first)


def _norm(tree: Any) -> Array:
    """‖tree‖, over all leaves."""
    return jnp.sqrt(trees.dot(tree, tree))
