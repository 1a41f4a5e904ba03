"""Looking inside a network: where its activations are, and what lies between them."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

from bpeq.layers._combinators import chain
from bpeq.layers._weightless import linear
from bpeq.types import Activation, Layer, Params


class Block(NamedTuple):
    """One connection and the activation that follows it.

    connection: a chain of the layers between two activations, such as convolution then pooling.
    activation: σ of the units it drives; linear where the network ends without one.
    slice:      where the connection's parameters stand in the network's params tuple.
    name:       unique in its network, such as `dense_1`: blocks count from 1 at the input.
    """

    connection: Layer
    activation: Activation
    slice: slice
    name: str

    def forward(self, params: Params, below: Any) -> tuple[Any, Any]:
        """The connection's output and residuals, with its part of the network's `params`."""
        return self.connection.forward(params[self.slice], below)

    def backward(self, params: Params, residuals: Any, error: Any) -> tuple[Params, Any]:
        """The connection's pull-back of `error`, with its part of the network's `params`."""
        own = params[self.slice]
        return self.connection.backward(own, own, residuals, error)


def cut(network: Layer) -> tuple[Block, ...]:
    """The blocks of a chain, cut at its activations, from input to output.

    Args:
      network: a chain.

    Raises:
      ValueError: not a chain, two activations with nothing between them, or an activation hidden
        inside a combinator, where it cannot be cut.

    Example:
      >>> from bpeq.layers import chain, dense, flatten, tanh
      >>> [block.name for block in cut(chain(flatten(), dense(4), tanh(), dense(2)))]
      ['dense_1', 'dense_2']
    """
    if network.name != "chain":
        raise ValueError(f"cut: needs a chain, got the layer {network.name!r}; use chain(...)")
    blocks: list[Block] = []
    start = 0
    for i, part in enumerate(network.parts):
        if _hides_activation(part):
            raise ValueError(
                f"layer {i} ({part.name!r}) hides an activation inside, where the network cannot "
                "be cut; write the skip between states instead: hopfield(network, skips=...)"
            )
        if part.activation is not None:
            blocks.append(_block(network, start, i, part.activation, len(blocks) + 1))
            start = i + 1
    if start < len(network.parts):
        activation = linear().activation
        assert activation is not None
        blocks.append(_block(network, start, len(network.parts), activation, len(blocks) + 1))
    return tuple(blocks)


def _block(network: Layer, start: int, end: int, activation: Activation, number: int) -> Block:
    parts = network.parts[start:end]
    if not parts:
        raise ValueError(
            f"layer {end} ({network.parts[end].name!r}): an activation with no connection before it"
        )
    telling = [part.name for part in parts if part.name not in ("flatten",)] or [parts[0].name]
    return Block(chain(*parts), activation, slice(start, end), f"{telling[0]}_{number}")


def _hides_activation(part: Layer) -> bool:
    return any(inner.activation is not None or _hides_activation(inner) for inner in part.parts)


def part_names(network: Layer) -> list[str]:
    """A unique name for every part of a chain, in order: `dense_0`, `tanh_1`, or bare if alone.

    Args:
      network: a chain.

    Example:
      >>> from bpeq.layers import chain, dense, tanh
      >>> part_names(chain(dense(4), tanh(), dense(2)))
      ['dense_0', 'tanh', 'dense_2']
    """
    count = Counter(part.name for part in network.parts)
    return [p.name if count[p.name] == 1 else f"{p.name}_{i}" for i, p in enumerate(network.parts)]
