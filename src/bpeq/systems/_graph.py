"""The graph of a Hopfield system: connections, their states, and the places of their weights."""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jaxtyping import Array

from bpeq.core import trees
from bpeq.layers import Block, output_shape
from bpeq.settings import SettingError
from bpeq.systems._derivatives import times
from bpeq.types import Layer, Params, Shape, State

Skips = Mapping[tuple[int, int], Layer] | Mapping[str, Layer]
"""(i, j), or "i-j" as a config writes it -> the connection from state i to state j."""


class Edge(NamedTuple):
    """One connection, from state `source` (0 is the clamped input) to state `target`.

    layer: f. Its forward drives the target and its backward drives the source.
    at:    where its weights stand: a slice of the network's tuple, or a name among the skips.
    name:  a block's name, such as `dense_2`, or `0_2` for a skip; unique in its graph.
    """

    source: int
    target: int
    layer: Layer
    at: slice | str
    name: str

    def pulled_down(self, own: Params, back: Params, state: State) -> Array:
        """f_ijᵀ(s_j), the input of source i from target j, by the weights `back`.

        Args:
          own: the forward weights, which the residuals need.
          back: the feedback weights; `own` if they are tied.
          state: all states.

        Returns:
          An array in the shape of s_i.
        """
        _, residuals = self.layer.forward(own, state[self.source - 1])
        return self.layer.backward(own, back, residuals, state[self.target - 1])[1]


class Graph(NamedTuple):
    """The states of a Hopfield system and the connections between them.

    states: the blocks whose units are states.
    edges: the chain's connections in order, then the skips.
    parts: the number of entries in the network's own params tuple. The system's own entries follow.
    gain:  γ, the factor on activity for each state that it comes down.
    """

    states: tuple[Block, ...]
    edges: tuple[Edge, ...]
    parts: int
    gain: float = 1.0

    @property
    def skip_edges(self) -> list[Edge]:
        """The connections that are not part of the chain."""
        return [edge for edge in self.edges if isinstance(edge.at, str)]

    def weight(self, state: int) -> float:
        """γ^(l−L), the weight of the terms of state l in the energy; L is the top state."""
        return self.gain ** (state - len(self.states))

    def own(self, params: Params, edge: Edge) -> Params:
        """The forward weights of a connection."""
        if isinstance(edge.at, slice):
            return params[edge.at]
        return params[self.parts]["skips"][edge.at]  # the entry after the network's own

    def into(self, state: int) -> list[Edge]:
        """The connections into a state, the chain's first."""
        return [edge for edge in self.edges if edge.target == state]

    def out_of(self, state: int) -> list[Edge]:
        """The connections out of a state, the chain's first."""
        return [edge for edge in self.edges if edge.source == state]

    def placed(self, params: Params, pulled: dict[str, Params], feedback: Any = None) -> Params:
        """The connections' gradients in the places of their weights; zero for other weights."""
        grads = list(trees.zeros(params))
        for edge in self.edges:
            if isinstance(edge.at, slice):
                grads[edge.at] = pulled[edge.name]
            else:
                grads[self.parts]["skips"][edge.at] = pulled[edge.name]
        if feedback is not None:
            grads[-1] = {"feedback": feedback}
        return tuple(grads)


def build_graph(
    blocks: Sequence[Block], states: int, parts: int, skips: Skips | None, gain: float = 1.0
) -> Graph:
    """The graph of the first `states` blocks and the skips between them.

    Args:
      blocks: all blocks of the network.
      states: how many of them are states.
      parts: number of entries in the network's params tuple.
      skips: (i, j) -> layer, or None.
      gain: γ > 0.

    Returns:
      A Graph.

    Raises:
      ValueError: a skip does not name two states, or its value is not a layer; powers of the gain
        are out of float32's range.
    """
    if abs(math.log10(gain)) * states > 30:
        remedy = f"with {states} states γ^{states} must be 1e-30 to 1e30"
        raise SettingError("hopfield", "gain", gain, remedy)
    used = tuple(blocks[:states])
    chain_edges = [Edge(l, l + 1, b.connection, b.slice, b.name) for l, b in enumerate(used)]
    readout = len(blocks) > states
    found = {}
    for given, layer in (skips or {}).items():
        pair = _pair(given, states, readout)
        if pair in found:
            raise _wrong_skip(pair, "is given twice")
        if not isinstance(layer, Layer):
            remedy = f"{layer!r} is not a layer; was a factory passed without its ()?"
            raise _wrong_skip(pair, remedy)
        found[pair] = Edge(*pair, layer, f"{pair[0]}_{pair[1]}", f"{pair[0]}_{pair[1]}")
    edges = (*chain_edges, *(found[pair] for pair in sorted(found)))
    return Graph(used, edges, parts, float(gain))


def independent_groups(graph: Graph) -> tuple[tuple[int, ...], ...]:
    """Groups of states without a connection inside; a state joins the first group it can.

    In a chain these are the odd states and the even states.

    Args:
      graph: the graph.

    Returns:
      One tuple of state indices per group.

    Example:
      >>> from bpeq.layers import chain, cut, dense, tanh
      >>> blocks = cut(chain(dense(2), tanh(), dense(2), tanh(), dense(2)))
      >>> independent_groups(build_graph(blocks, 3, 5, None))
      ((1, 3), (2,))
      >>> independent_groups(build_graph(blocks, 3, 5, {(1, 3): dense(2)}))
      ((1,), (2,), (3,))
    """
    group: dict[int, int] = {}
    for state in range(1, len(graph.states) + 1):
        taken = {group[edge.source] for edge in graph.into(state) if edge.source > 0}
        group[state] = next(g for g in itertools.count() if g not in taken)
    numbers = range(max(group.values()) + 1)
    return tuple(tuple(state for state in group if group[state] == g) for g in numbers)


def turns(graph: Graph, schedule: str) -> tuple[tuple[int, ...], ...]:
    """The groups of states in the order in which a sweep updates them.

    With max-pooling between states the chain's even states come first. Then one sweep has both the
    drive of a state and what comes back to it. They share their pooling and the product below it.

    Args:
      graph: the graph.
      schedule: "alternating" or "synchronous".

    Returns:
      One tuple of state indices per group; a single group for "synchronous".
    """
    if schedule == "synchronous":
        return (tuple(range(1, len(graph.states) + 1)),)
    groups = independent_groups(graph)
    pooled = any(edge.source > 0 and pools(edge.layer) for edge in graph.edges)
    return groups[::-1] if pooled else groups


def pools(layer: Layer) -> bool:
    """Whether a layer has max-pooling inside. Its pull-back depends on the values that it pooled.

    Args:
      layer: any layer.

    Returns:
      A bool.
    """
    return layer.name == "max_pool" or any(map(pools, layer.parts))


def init_extra(
    graph: Graph, key: jax.Array, params: Params, shape: Shape, angle: float | None
) -> Params:
    """Append the weights of the skips and of untied feedback to the network's own.

    The key of a skip depends on its two states. Feedback weights belong to connections that leave a
    state.

    Args:
      graph: the graph.
      key: key of the system's init.
      params: the network's weights.
      shape: one example's shape.
      angle: between feedback and forward weights, in degrees, 0 to 180; None: feedback is tied.

    Returns:
      The params of the system.

    Raises:
      ValueError: a skip does not accept the shape of its source, or does not give the shape of its
        target.
    """
    if angle is None and not graph.skip_edges:
        return params
    shapes = [shape]
    for block in graph.states:
        shapes.append(output_shape(block.connection, shapes[-1]))
    if graph.skip_edges:
        skip_key = jax.random.fold_in(key, graph.parts)
        params = (*params, {"skips": _init_skips(graph, skip_key, shapes)})
    if angle is None:
        return params
    back_key, drawn = jax.random.fold_in(key, graph.parts + 1), {}
    for i, edge in enumerate(graph.edges):
        if edge.source > 0:
            other, _ = edge.layer.init(jax.random.fold_in(back_key, i), shapes[edge.source])
            drawn[edge.name] = trees.at_angle(graph.own(params, edge), other, angle)
    return (*params, {"feedback": drawn})


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
            down = functools.partial(edge.pulled_down, state=state)
            _, pull = jax.vjp(down, own, params[-1]["feedback"][edge.name])
            through, feedback[edge.name] = pull(times(weight, v[edge.source - 1]))
            pulled[edge.name] = trees.add(raised, through)
        return graph.placed(params, pulled, feedback), dx

    return dforce


def _init_skips(graph: Graph, key: jax.Array, shapes: list[Shape]) -> dict[str, Params]:
    """The weights of every skip, from the shapes of the states."""
    drawn = {}
    for edge in graph.skip_edges:
        own = jax.random.fold_in(jax.random.fold_in(key, edge.source), edge.target)
        pair = (edge.source, edge.target)
        try:
            drawn[edge.name], shape = edge.layer.init(own, shapes[edge.source])
        except ValueError as error:
            raise _wrong_skip(pair, str(error)) from None
        if tuple(shape) != tuple(shapes[edge.target]):
            block = graph.states[edge.target - 1].name
            remedy = f"{edge.layer.name!r} gives shape {tuple(shape)}; state {edge.target} "
            remedy += f"({block!r}) has {tuple(shapes[edge.target])}, "
            remedy += "and they must agree to be added"
            raise _wrong_skip(pair, remedy)
    return drawn


def _pair(given: Any, top: int, readout: bool) -> tuple[int, int]:
    """The two states that a skip's key names."""
    pair = given
    if isinstance(given, str):
        match = re.fullmatch(r"\s*(\d+)\s*-\s*(\d+)\s*", given)
        pair = match and (int(match[1]), int(match[2]))
    whole = isinstance(pair, tuple) and all(type(end) is int for end in pair)
    if not isinstance(pair, tuple) or not whole or len(pair) != 2:
        remedy = 'must name two states, such as (0, 2), or "0-2" in a config'
        raise SettingError("hopfield", "skips", given, remedy)
    for end in pair:
        if readout and end == top + 1:
            remedy = f"block {end} is the readout, a function of the last hidden state and no part "
            remedy += f"of the energy; states are 0 (the input) to {top}"
            raise _wrong_skip(pair, remedy)
        if not 0 <= end <= top:
            remedy = f"there is no state {end}; states are 0 (the input) to {top}"
            raise _wrong_skip(pair, remedy)
    if pair[0] >= pair[1]:
        raise _wrong_skip(pair, "must go from a lower state to a higher one")
    return pair


def _wrong_skip(pair: tuple[int, int], remedy: str) -> SettingError:
    """The error for the skip between these two states."""
    return SettingError("hopfield", "skips", f"{pair[0]}-{pair[1]}", remedy)
