"""Untied feedback: weights of its own at a chosen angle, what they bring down, its derivative."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array

from bpeq.core import trees
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
            drawn[edge.name] = trees.at_angle(graph.own(params, edge), other, angle)
    return drawn


def pulled_down(edge: Edge, own: Params, back: Params, state: State) -> Array:
    """f_ijᵀ(s_j): what a connection's source gets from its target, by the weights `back`."""
    _, residuals = edge.layer.forward(own, state[edge.source - 1])
    return edge.layer.backward(own, back, residuals, state[edge.target - 1])[1]


def untied_dforce(graph: Graph) -> Callable[[Params, Any, State, State], tuple[Params, Any]]:
    """vᵀ ∂force/∂(θ, x) of an untied system, θ the forward and the feedback weights."""

    def dforce(params: Params, clamped: Any, state: State, v: State) -> tuple[Params, Any]:
        pulled, feedback, dx = {}, {}, None
        for edge in graph.edges:
            weight = graph.weight(edge.target)
            own, up = graph.own(params, edge), times(weight, v[edge.target - 1])
            if edge.source == 0:
                residuals = clamped.residuals[edge.name]
                pulled[edge.name], into = edge.layer.backward(own, own, residuals, up)
                dx = into if dx is None else dx + into
                continue
            _, residuals = edge.layer.forward(own, state[edge.source - 1])
            raised, _ = edge.layer.backward(own, own, residuals, up)
            # What comes down reads B, and by the residuals θ: reverse mode through the pull-back.
            down = functools.partial(pulled_down, edge, state=state)
            _, pull = jax.vjp(down, own, params[-1]["feedback"][edge.name])
            through, feedback[edge.name] = pull(times(weight, v[edge.source - 1]))
            pulled[edge.name] = trees.add(raised, through)
        return graph.placed(params, pulled, feedback), dx

    return dforce
