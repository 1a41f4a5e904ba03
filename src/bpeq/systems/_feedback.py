"""Untied feedback: weights of its own at a chosen angle, what they bring down, its derivative."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bpeq import trees
from bpeq.systems._derivatives import times
from bpeq.systems._graph import Edge, Graph
from bpeq.types import Params, Shape, State


def init_feedback(
    graph: Graph, params: Params, key: jax.Array, shapes: list[Shape], angle: float
) -> dict[str, Params]:
    """Feedback weights by connection, for all that leave a state, from an independent init each."""
    drawn = {}
    for i, edge in enumerate(graph.edges):
        if edge.source > 0:
            other, _ = edge.layer.init(jax.random.fold_in(key, i), shapes[edge.source])
            drawn[edge.name] = at_angle(graph.own(params, edge), other, angle)
    return drawn


def at_angle(weights: Any, other: Any, angle: float) -> Any:
    """B = cos(a) W + sin(a) R leaf by leaf, with |B| = |W| and the angle between them exactly a.

    Args:
      weights: W, any tree of arrays.
      other: an independent draw of the same shapes; R is what of it is orthogonal to W, scaled to
        W's norm (of all of a leaf's elements). Where nothing is left, because a leaf is one number
        or the same in every draw, or where W is zero, B is W.
      angle: a in degrees, 0 to 180.

    Example:
      >>> import jax.numpy as jnp
      >>> at_angle(jnp.array([2.0, 0.0]), jnp.array([7.0, 3.0]), 90.0).round(6).tolist()
      [0.0, 2.0]
    """
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))

    def one(w: Array, r: Array) -> Array:
        squared = jnp.sum(w * w)
        safe = jnp.where(squared > 0, squared, jnp.ones_like(squared))
        across = r
        for _ in range(2):  # the second round removes the first one's round-off
            across = across - jnp.sum(across * w) / safe * w
        length = jnp.sqrt(jnp.sum(across * across))
        least = math.sqrt(float(jnp.finfo(w.dtype).eps)) * jnp.sqrt(jnp.sum(r * r))
        alone = (squared == 0) | (length <= least)
        scale = jnp.sqrt(squared) / jnp.where(alone, jnp.ones_like(length), length)
        return jnp.where(alone, w, c * w + s * (scale * across))

    return jax.tree.map(one, weights, other)


def pulled_down(edge: Edge, own: Params, back: Params, state: State) -> Array:
    """f_ijᵀ(s_j): what a connection's source gets from its target, by the weights `back`."""
    _, residuals = edge.layer.forward(own, state[edge.source - 1])
    return edge.layer.backward(own, back, residuals, state[edge.target - 1])[1]


def untied_dforce(graph: Graph) -> Callable[[Params, Any, State, State], Params]:
    """vᵀ ∂force/∂θ of an untied system, θ the forward and the feedback weights."""

    def dforce(params: Params, clamped: Any, state: State, v: State) -> Params:
        pulled, feedback = {}, {}
        for edge in graph.edges:
            weight = graph.weight(edge.target)
            own, up = graph.own(params, edge), times(weight, v[edge.target - 1])
            if edge.source == 0:
                residuals = clamped.residuals[edge.name]
                pulled[edge.name], _ = edge.layer.backward(own, own, residuals, up)
                continue
            _, residuals = edge.layer.forward(own, state[edge.source - 1])
            raised, _ = edge.layer.backward(own, own, residuals, up)
            # What comes down reads B, and by the residuals θ: reverse mode through the pull-back.
            down = functools.partial(pulled_down, edge, state=state)
            _, pull = jax.vjp(down, own, params[-1]["feedback"][edge.name])
            through, feedback[edge.name] = pull(times(weight, v[edge.source - 1]))
            pulled[edge.name] = trees.add(raised, through)
        return graph.placed(params, pulled, feedback)

    return dforce
