"""Networks that a system refuses when it is built; and why a system is not holomorphic."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp

from bpeq.layers import Block
from bpeq.settings import SettingError
from bpeq.systems._graph import Edge, Graph, pools
from bpeq.types import Activation, Layer


def refuse_coupling(system: str, network: Layer) -> None:
    """Refuse a layer without a per-example energy (batch norm, dropout).

    Args:
      system: name of the system or rule, for the message.
      network: a chain.

    Raises:
      ValueError: it gives the layer's index and name.
    """
    for i, part in enumerate(network.parts):
        if part.no_energy:
            raise ValueError(f"{system}: layer {i} ({part.name!r}) {part.no_energy}")


def refuse_network(network: Layer, blocks: tuple[Block, ...], output: str) -> None:
    """Refuse a network without a Hopfield energy: coupled examples, non-monotone activations.

    Args:
      network: a chain.
      blocks: its blocks.
      output: "state" or "readout".

    Raises:
      ValueError: it gives the layer's index and name; or a readout has no hidden block before it.
    """
    refuse_coupling("hopfield", network)
    for i, part in enumerate(network.parts):
        if part.activation is not None and part.activation.potential is None:
            raise ValueError(
                f"hopfield: layer {i} ({part.name!r}) is not monotone, so it has no potential and "
                "no energy; allowed: linear, relu, tanh, sigmoid, hard_sigmoid, shifted_sigmoid, "
                "softplus, or an activation_layer with a potential"
            )
    if output == "readout" and len(blocks) < 2:
        raise ValueError("hopfield: output = 'readout' needs a hidden block before the readout")


def refuse_connections(graph: Graph) -> None:
    """Refuse skips with an activation or coupled examples, and max-pooling below signed activity.

    Args:
      graph: the graph of a Hopfield system.

    Raises:
      ValueError: it names the connection.
    """
    for edge in graph.edges:
        if isinstance(edge.at, str):
            _refuse_skip(edge)
        if edge.source > 0:
            block = graph.states[edge.target - 1]
            name = edge.name if isinstance(edge.at, slice) else f"{edge.source}-{edge.target}"
            _refuse_signed_max_pool(name, edge.layer, block.activation)


def refuse_circuit(network: Layer, blocks: tuple[Block, ...]) -> None:
    """Refuse layers that are no crossbar of resistors, and activations that diodes cannot make.

    Args:
      network: a chain.
      blocks: its blocks.

    Raises:
      ValueError: it names the layer or the block, and what is allowed.
    """
    crossbars, plain = ("dense", "conv"), ("flatten", "avg_pool")
    for i, part in enumerate(network.parts):
        if part.activation is not None and not _projects(part.activation):
            raise ValueError(
                f"resistive: layer {i} ({part.name!r}) is no projection onto an interval, which "
                "is what diodes do to a voltage; allowed: linear, relu, hard_sigmoid, or an "
                "activation_layer that is one"
            )
        if part.activation is None and part.name not in (*crossbars, *plain):
            raise ValueError(
                f"resistive: layer {i} ({part.name!r}) is no crossbar of resistors; allowed "
                f"between activations: {', '.join((*crossbars, *plain))}"
            )
    for block in blocks:
        found = [part.name for part in block.connection.parts if part.name in crossbars]
        if len(found) != 1:
            raise ValueError(
                f"resistive: {block.name!r} has {len(found)} layers of resistors "
                f"({', '.join(found) or 'none'}); allowed: one between two activations"
            )


def _projects(activation: Activation) -> bool:
    """Whether σ is the projection onto an interval, by its values."""
    with jax.ensure_compile_time_eval():
        far, near = 1e4, jnp.linspace(-4.0, 4.0, 81)
        low, high = (activation.value(jnp.asarray(end, near.dtype)) for end in (-far, far))
        return bool(jnp.all(activation.value(near) == jnp.clip(near, low, high)))


def why_not_holomorphic(network: Layer, skips: Iterable[Edge] = ()) -> str:
    """The first layer that is not complex-differentiable, with its index; empty if all are.

    Args:
      network: a chain.
      skips: the skips of its graph.

    Returns:
      A phrase for a message.

    Example:
      >>> from bpeq.layers import chain, dense, hard_sigmoid
      >>> why_not_holomorphic(chain(dense(2), hard_sigmoid(), dense(1)))
      "layer 1 ('hard_sigmoid') is not complex-differentiable"
    """
    named = [(f"layer {i} ({part.name!r})", part) for i, part in enumerate(network.parts)]
    named += [(f"the skip {e.source}-{e.target} ({e.layer.name!r})", e.layer) for e in skips]
    for name, part in named:
        for inner in _all(part):
            if inner.not_holomorphic:
                return f"{name} {inner.not_holomorphic}"
            if inner.activation is not None and not inner.activation.holomorphic:
                return f"{name} is not complex-differentiable"
    return ""


def _all(layer: Layer) -> Iterator[Layer]:
    """The layers inside a layer, innermost first, then the layer itself."""
    for part in layer.parts:
        yield from _all(part)
    yield layer


def _refuse_skip(edge: Edge) -> None:
    """Refuse a skip with coupled examples or with an activation inside."""
    where = f"{edge.source}-{edge.target}"
    for inner in _all(edge.layer):
        if inner.no_energy:
            remedy = f"{inner.name!r} {inner.no_energy}"
            raise SettingError("hopfield", "skips", where, remedy)
        if inner.activation is not None and inner.name != "linear":
            remedy = (
                f"{inner.name!r} hides an activation inside a connection, where it would be no "
                "state's; use a connection without one, such as dense or conv"
            )
            raise SettingError("hopfield", "skips", where, remedy)


def _refuse_signed_max_pool(place: str, connection: Layer, activation: Activation) -> None:
    """Refuse max-pooling below signed activity.

    −⟨s, max-pool(z)⟩ is concave in z for s ≥ 0 only. This is what makes a sweep lower the energy.
    """
    if not pools(connection):
        return
    signed = _signed_above_pool(connection)
    if signed:
        raise ValueError(
            f"hopfield: {place!r}: {signed!r} above max_pool in one connection feeds "
            "negative activity back through the pooling, so the energy can rise and cycle; "
            "put an activation between them, or use avg_pool"
        )
    with jax.ensure_compile_time_eval():  # σ is monotone, so this is its infimum
        lowest = float(activation.value(jnp.asarray(-1e4)))
    if lowest < 0.0:
        raise ValueError(
            f"hopfield: {place!r}: the activation above max_pool takes negative values "
            f"(down to {lowest:g}), so the energy can rise and cycle; use one that does not (relu, "
            "sigmoid, hard_sigmoid, shifted_sigmoid, softplus), or avg_pool"
        )


def _signed(layer: Layer) -> str:
    """The first layer inside whose pull-back does not keep signs; empty if all keep them."""
    leaves = (inner.name for inner in _all(layer) if not inner.parts)
    return next((name for name in leaves if name not in ("flatten", "max_pool", "avg_pool")), "")


def _signed_above_pool(layer: Layer) -> str:
    """The name of the first such layer above a max-pooling, also inside combinators."""
    if layer.name == "repeat":  # a repeated layer stands above itself
        return _signed(layer) if pools(layer) else ""
    found = [_signed_above_pool(part) for part in layer.parts]
    if layer.name == "chain":
        pooled = [pools(part) for part in layer.parts]
        start = pooled.index(True) + 1 if any(pooled) else len(pooled)
        found += [_signed(part) for part in layer.parts[start:]]
    return next(filter(None, found), "")
