"""Layers as crossbars of resistors: the currents in them, and the gradient of their power.

A layer f that is linear in its input, with weights g >= 0, stands for resistors between its input
nodes i and its output nodes j. Then f(v)_j = Σ_i g_ij v_i is the current into a grounded j,
fᵀ(v)_i = Σ_j g_ij v_j is the current into a grounded i, and f(1), fᵀ(1) are the total conductances
of the nodes. Biases are resistors too: a pair "b" = (g⁺, g⁻) to sources of +V and −V.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bpeq.systems._derivatives import contract, merge_phases, weighted
from bpeq.types import Key, Layer, Params


def conductances(drawn: Params) -> Params:
    """Turn signed weights into conductances.

    Args:
      drawn: weights as the layers' init gives them.

    Returns:
      |w| for a weight. A bias b gets a resistor to +V if b > 0 and to −V if b < 0, `[2, ...]`.
    """

    def one(path: Any, leaf: Array) -> Array:
        if jax.tree_util.keystr(path[-1:], simple=True) != "b":
            return jnp.abs(leaf)
        return jnp.stack([jnp.maximum(leaf, 0.0), jnp.maximum(-leaf, 0.0)])

    return jax.tree_util.tree_map_with_path(one, drawn)


def non_negative(params: Params) -> Params:
    """The nearest conductances that exist: max(g, 0).

    Args:
      params: conductances.

    Returns:
      A tree like params.
    """
    return jax.tree.map(lambda g: jnp.maximum(g, jnp.zeros_like(g)), params)


def drive(own: Params, volts: float) -> Params:
    """Weights with which `forward` gives the current into grounded nodes: a bias is V(g⁺ − g⁻).

    Args:
      own: a block's conductances.
      volts: V.

    Returns:
      Params for the layer.
    """
    return _biases(own, lambda b: volts * (b[0] - b[1]))


def load(own: Params, factor: float = 1.0) -> Params:
    """Weights with which `forward` of ones gives total conductances: a bias is factor · (g⁺ + g⁻).

    Args:
      own: a block's conductances.
      factor: scales the biases only.

    Returns:
      Params for the layer.
    """
    return _biases(own, lambda b: factor * (b[0] + b[1]))


def _biases(own: Params, change: Callable[[Array], Array]) -> Params:
    """A block's params with each pair of biases replaced by change(pair)."""
    return tuple({**part, "b": change(part["b"])} if "b" in part else part for part in own)


def twice(layer: Layer) -> Layer:
    """Two copies of a layer: outputs `[batch, 2, ...]` from one input.

    Args:
      layer: any layer.

    Returns:
      A Layer. Every leaf of its params has the copies on axis 0.
    """

    def forward(params: Params, x: Array, key: Key | None = None) -> tuple[Array, Any]:
        return jax.vmap(lambda own: layer.forward(own, x), out_axes=(1, 0))(params)

    def backward(params: Params, feedback: Params, kept: Any, dy: Array) -> tuple[Params, Array]:
        pull = jax.vmap(layer.backward, in_axes=(0, 0, 0, 1))
        dparams, dx = pull(params, feedback, kept, dy)
        return dparams, jnp.sum(dx, axis=0)

    return layer._replace(forward=forward, backward=backward)


def power_gradient(
    layer: Layer, own: Params, below: Array, above: Array, weights: Array, volts: float
) -> tuple[Params, Array | None]:
    """Σ_n w_n ∂P_n/∂(g, v_i), with P = ½ Σ g_ij (v_i − v_j)² + the biases' power.

    By the conductances this is Σ_n w_n ½ (v_i − v_j)², a local product. One call of `backward`
    serves all phases. Phases enter as differences from the first phase. ½(v_i − v_j)² is many times
    its change under a nudge, so round-off would hide the change.

    Args:
      layer: a layer, linear in its input.
      own: its conductances.
      below: voltages, `[phases, batch, ...]`, or `[1, batch, ...]` if all phases have the same.
      above: voltages, `[phases, batch, ...]`.
      weights: w, `[phases]`.
      volts: voltage of the biases' sources.

    Returns:
      (derivative by the conductances, summed over the batch; derivative by the voltages below). The
      latter is Σ_n w_n Σ_j g_ij (v_i − v_j) for each example, or None if these voltages differ
      between phases.
    """
    # The products v_i v_j of all phases, as rows of one pull-back.
    total = jnp.sum(weights)
    if below.shape[0] == 1:
        inputs, seeds = below[0], contract(weights, above)
        squares_below = _squares(below, total[None])
    else:
        inputs, seeds = _product(below, above, weights)
        squares_below = _squares(below, weights)
    squares_above = _squares(above, weights)
    # ½ Σ w (v_i² + v_j²) − Σ w v_i v_j are pull-backs: of 1 at v_i², of v_j² at 1, of v_j at v_i.
    inputs = jnp.concatenate([inputs, 0.5 * squares_below, jnp.ones_like(squares_below)])
    seeds = jnp.concatenate([-seeds, jnp.ones_like(squares_above), 0.5 * squares_above])
    grads, into = _pull(layer, own, inputs, seeds)
    dbelow = None
    if below.shape[0] == 1:  # −Σ_n w_n fᵀ(v_j) and fᵀ(1) are rows of the same pull-back
        dbelow = into[:-2] + total * below[0] * into[-2:-1]

    nowhere = jnp.zeros_like(squares_below)  # the biases alone: no current from below
    sums = jnp.sum(contract(weights, above), axis=0, keepdims=True)
    supplied = 0.5 * (volts**2 * total * above.shape[1] + squares_above)
    both, net = (_pull(layer, own, nowhere, seed)[0] for seed in (supplied, volts * sums))
    grads = tuple(
        {**part, "b": jnp.stack([b["b"] - n["b"], b["b"] + n["b"]])} if "b" in part else part
        for part, b, n in zip(grads, both, net, strict=True)
    )
    return grads, dbelow


def _pull(layer: Layer, own: Params, inputs: Array, seeds: Array) -> tuple[Params, Array]:
    """The pull-back of `seeds` at `inputs`. It does not read the values of the biases."""
    own = load(own)  # the layer needs biases of its own shape; nothing reads their values
    _, residuals = layer.forward(own, inputs)
    return layer.backward(own, own, residuals, seeds)


def _moved(phases: Array, weights: Array) -> Array:
    """Σ_n w_n (s_n − s_0)."""
    return jnp.tensordot(weights[1:], phases[1:] - phases[:1], axes=1)


def _squares(phases: Array, weights: Array) -> Array:
    """Σ_n w_n s_n², summed over the batch, `[1, ...]`."""
    first, gaps = phases[0], phases[1:] - phases[:1]
    squares = jnp.sum(weights) * first * first + 2.0 * first * _moved(phases, weights)
    squares = squares + jnp.tensordot(weights[1:], gaps * gaps, axes=1)
    return jnp.sum(squares, axis=0, keepdims=True)


def _product(below: Array, above: Array, weights: Array) -> tuple[Array, Array]:
    """Rows whose outer products add up to Σ_n w_n s_n t_n."""
    s, t = below[0], above[0]
    gaps_below, gaps_above = below[1:] - below[:1], above[1:] - above[:1]
    inputs = [s, _moved(below, weights), merge_phases(gaps_below)]
    seeds = [contract(weights, above), t, weighted(weights[1:], gaps_above)]
    return jnp.concatenate(inputs), jnp.concatenate(seeds)


def over(current: Array, conductance: Array) -> Array:
    """I / G; 0 volts for a node without any conductance.

    Args:
      current: I.
      conductance: G >= 0, in a shape that broadcasts.

    Returns:
      The voltages.
    """
    joined = conductance != 0
    return jnp.where(joined, current, jnp.zeros_like(current)) / jnp.where(
        joined, conductance, jnp.ones_like(conductance)
    )
