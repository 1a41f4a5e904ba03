"""Readouts: layers from a system's state to its output, without weights of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from bpeq.core import trees
from bpeq.layers import Block
from bpeq.types import Activation, Key, Layer, Params, Shape, State


def state_readout(forward: Callable[..., Any], backward: Callable[..., Any]) -> Layer:
    """A Layer from a state to the output; it reads the system's own params and has none itself.

    Args:
      forward: (params, state, key=None) -> (output, residuals).
      backward: (params, feedback, residuals, dy) -> (dparams, dstate). dstate has None for the
        states that the output does not read.

    Returns:
      A Layer. Its `init` raises a TypeError.
    """

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        raise TypeError("a readout has no parameters of its own: call the system's init")

    return Layer("readout", init, forward, backward)


def activation_names(network: Layer) -> list[str]:
    """The name of each block's σ; "linear" for a last block without one.

    Args:
      network: a chain.

    Returns:
      One name per block.
    """
    names = [part.name for part in network.parts if part.activation is not None]
    return names if network.parts[-1].activation is not None else [*names, "linear"]


def last_state(
    states: int,
    read: Callable[[Array], tuple[Array, Any]] = lambda state: (state, ()),
    pull: Callable[[Any, Array], Array] = lambda kept, dy: dy,
) -> Layer:
    """The output from the last of `states`. Its pull-back gives the error to that state alone.

    Args:
      states: number of states.
      read: last state -> (output, what `pull` needs); the default reads the state itself.
      pull: (what `read` kept, error of the output) -> error of the state.

    Returns:
      A Layer.
    """

    def forward(params: Params, state: State, key: Key | None = None) -> tuple[Array, Any]:
        return read(state[-1])

    def backward(params: Params, feedback: Params, kept: Any, dy: Array) -> tuple[Params, Any]:
        return trees.zeros(params), (*(None,) * (states - 1), pull(kept, dy))

    return state_readout(forward, backward)


def activated_state(activation: Activation, states: int) -> Layer:
    """σ of the last of `states`, for states that are pre-activations.

    The pull-back is the error times σ′.

    Args:
      activation: σ.
      states: number of states.

    Returns:
      A Layer.
    """
    return last_state(
        states, lambda z: (activation.value(z), activation.slope(z)), lambda slope, dy: dy * slope
    )


def paired_state(states: int) -> Layer:
    """v⁺ − v⁻ of the last of `states`, which is `[batch, 2, ...]`.

    Args:
      states: number of states.

    Returns:
      A Layer.
    """
    return last_state(
        states, lambda v: (v[:, 0] - v[:, 1], ()), lambda kept, dy: jnp.stack([dy, -dy], axis=1)
    )


def write_last(state: State, output: Array) -> State:
    """The state with its last part replaced by `output`.

    Args:
      state: a tuple.
      output: an array in the shape of the last part.

    Returns:
      A tuple.
    """
    return (*state[:-1], output)


def last_block(block: Block, states: int, below: Activation | None = None) -> Layer:
    """A block as a function of the last of `states`, with a gradient for the block's own weights.

    Args:
      block: the block.
      states: number of states.
      below: that state's activation if states are pre-activations; None if they are activations.

    Returns:
      A Layer.
    """
    connection, activation = block.connection, block.activation

    def forward(params: Params, state: State, key: Key | None = None) -> tuple[Array, Any]:
        x, factor = state[-1], None
        if below is not None:
            x, factor = below.value(x), below.slope(x)
        z, residuals = connection.forward(params[block.slice], x)
        return activation.value(z), (residuals, activation.slope(z), factor)

    def backward(params: Params, feedback: Params, residuals: Any, dy: Array) -> tuple[Params, Any]:
        kept, slope, factor = residuals
        own, back = params[block.slice], feedback[block.slice]
        pulled, dx = connection.backward(own, back, kept, dy * slope)
        grads = list(trees.zeros(params))
        grads[block.slice] = pulled
        ds = dx if factor is None else dx * factor
        return tuple(grads), (*(None,) * (states - 1), ds)

    return state_readout(forward, backward)
