"""The graph of a Hopfield system: its connections, which states they join, where weights stand."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from bpeq.core import trees
from bpeq.layers import Block, output_shape
from bpeq.settings import SettingError
from bpeq.types import Layer, Params, Shape

Skips = Mapping[tuple[int, int], Layer] | Mapping[str, Layer]
"""(i, j), or "i-j" as a config writes it -> the connection from state i to state j."""


class Edge(NamedTuple):
    """One connection: from state `source` (0 is the clamped input) into state `target`.

    layer: f, whose forward drives the target and whose backward drives the source.
    at:    where its weights stand: a slice of the network's tuple, or the name among the skips.
    name:  a block's, such as `dense_2`, or `0_2` for a skip; unique in its graph.
    """

    source: int
    target: int
    layer: Layer
    at: slice | str
    name: str


class Graph(NamedTuple):
    """states: the blocks whose units are states. edges: the chain's, in order, then the skips.

    parts: entries of the network's own params tuple; what the system appends stands behind them.
    gain:  γ, by which activity shrinks for each state that it comes down.
    """

    states: tuple[Block, ...]
    edges: tuple[Edge, ...]
    parts: int
    gain: float = 1.0

    @property
    def skip_edges(self) -> list[Edge]:
        """The connections that are no part of the chain."""
        return [edge for edge in self.edges if isinstance(edge.at, str)]

    def weight(self, state: int) -> float:
        """γ^(l−L): what the terms of state l weigh in the energy, L the top one."""
        return self.gain ** (state - len(self.states))

    def own(self, params: Params, edge: Edge) -> Params:
        """A connection's forward weights."""
        return params[edge.at] if isinstance(edge.at, slice) else self.skips(params)[edge.at]

    def skips(self, params: Params) -> dict[str, Params]:
        """The skips' weights by name, from the entry behind the network's own."""
        return params[self.parts]["skips"]

    def into(self, state: int) -> list[Edge]:
        """The connections into a state, the chain's first."""
        return [edge for edge in self.edges if edge.target == state]

    def out_of(self, state: int) -> list[Edge]:
        """The connections out of a state, the chain's first."""
        return [edge for edge in self.edges if edge.source == state]

    def placed(self, params: Params, pulled: dict[str, Params], feedback: Any = None) -> Params:
        """Gradients by connection in the places of their weights; zero for all other weights."""
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
    """The graph of the first `states` blocks and of the skips between their states.

    Raises:
      ValueError: a skip that names no two states, or what it holds is no layer; a gain whose powers
        leave float32.
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
    """States in groups without a connection inside: each takes the first group that allows it.

    In a chain these are the odd states and the even ones.

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
    return tuple(
        tuple(state for state in group if group[state] == g) for g in range(max(group.values()) + 1)
    )


def turns(graph: Graph, schedule: str) -> tuple[tuple[int, ...], ...]:
    """The groups of states that a sweep updates, one after the other.

    With max-pooling between states the chain's even states go first: what a state drives and what
    comes back to it then meet in one sweep, and share their pooling and the product below it.
    """
    if schedule == "synchronous":
        return (tuple(range(1, len(graph.states) + 1)),)
    groups = independent_groups(graph)
    pooled = any(edge.source > 0 and pools(edge.layer) for edge in graph.edges)
    return groups[::-1] if pooled else groups


def pools(layer: Layer) -> bool:
    """Whether there is max-pooling inside, whose pull-back depends on what it pooled."""
    return layer.name == "max_pool" or any(map(pools, layer.parts))


def state_shapes(graph: Graph, shape: Shape) -> list[Shape]:
    """One example's shape of every state, the input's first; nothing is computed."""
    shapes = [shape]
    for block in graph.states:
        shapes.append(output_shape(block.connection, shapes[-1]))
    return shapes


def init_skips(graph: Graph, key: jax.Array, shapes: list[Shape]) -> dict[str, Params]:
    """Weights of every skip, each from a key of its own two states'.

    Raises:
      ValueError: a skip takes another shape than its source has, or gives one that its target has
        not.
    """
    drawn = {}
    for edge in graph.edges:
        if isinstance(edge.at, slice):
            continue
        own = jax.random.fold_in(jax.random.fold_in(key, edge.source), edge.target)
        pair = (edge.source, edge.target)
        try:
            drawn[edge.at], shape = edge.layer.init(own, shapes[edge.source])
        except ValueError as error:
            raise _wrong_skip(pair, str(error)) from None
        if tuple(shape) != tuple(shapes[edge.target]):
            block = graph.states[edge.target - 1].name
            raise _wrong_skip(
                pair,
                f"{edge.layer.name!r} gives shape {tuple(shape)}; state {edge.target} ({block!r}) "
                f"has {tuple(shapes[edge.target])}, and they must agree to be added",
            )
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
            raise _wrong_skip(
                pair,
                f"block {end} is the readout, a function of the last hidden state and no part of "
                f"the energy; states are 0 (the input) to {top}",
            )
        if not 0 <= end <= top:
            remedy = f"there is no state {end}; states are 0 (the input) to {top}"
            raise _wrong_skip(pair, remedy)
    if pair[0] >= pair[1]:
        raise _wrong_skip(pair, "must go from a lower state to a higher one")
    return pair


def _wrong_skip(pair: tuple[int, int], remedy: str) -> SettingError:
    """The error for the skip between these two states."""
    return SettingError("hopfield", "skips", f"{pair[0]}-{pair[1]}", remedy)
