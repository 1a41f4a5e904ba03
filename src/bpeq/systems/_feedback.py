"""Untied feedback: separate weights at a chosen angle, what they bring down, its derivative."""

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
    """Draw feedback weights at an angle from the forward ones, for connections that leave a state.

    Args:
      graph: the graph of the system.
      params: the forward weights.
      key: key of the draw.
      shapes: what `state_shapes` gives.
      angle: in degrees, 0 to 180; 90 is unrelated.

    Returns:
      {name of the connection: weights}.
    """
    drawn = {}
    for i, edge in enumerate(graph.edges):
        if edge.source > 0:
            other, _ = edge.layer.init(jax.random.fold_in(key, i), shapes[edge.source])
            drawn[edge.name] = trees.at_angle(graph.own(params, edge), other, angle)
    return drawn


def pulled_down(edge: Edge, own: Params, back: Params, state: State) -> Array:
    """f_ijᵀ(s_j): the input of a connection's source from its target, by the weights `back`.

    Args:
      edge: the connection from i to j.
      own: its forward weights.
      back: its feedback weights.
      state: all states.

    Returns:
      An array in the shape of s_i.
    """
    _, residuals = edge.layer.forward(own, state[edge.source - 1])
    return edge.layer.backward(own, back, residuals, state[edge.target - 1])[1]


def untied_dforce(graph: Graph) -> Callable[[Params, Any, State, State], tuple[Params, Any]]:
    """The `dforce` of an untied system: vᵀ ∂force/∂(θ, x), with θ the forward and feedback weights.

    Args:
      graph: the graph of the system.

    Returns:
      (params, clamped, state, v) -> (dparams, dx).
    """

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
            # What comes down depends on B, and on θ by the residuals: differentiate the pull-back.
            down = functools.partial(pulled_down, edge, state=state)
            _, pull = jax.vjp(down, own, params[-1]["feedback"][edge.name])
            through, feedback[edge.name] = pull(times(weight, v[edge.source - 1]))
            pulled[edge.name] = trees.add(raised, through)
        return graph.placed(params, pulled, feedback), dx

    return dforce
