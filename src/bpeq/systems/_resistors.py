"""Layers as crossbars of resistors: the currents that they carry and what their power depends on.

A layer f that is linear in its input, with weights g >= 0, is read as resistors between its input
nodes i and its output nodes j. Then f(v)_j = Σ_i g_ij v_i is the current that flows into a grounded
j, fᵀ(v)_i = Σ_j g_ij v_j the one into a grounded i, and f(1), fᵀ(1) are the nodes' total
conductances. Biases are resistors too: a pair "b" = (g⁺, g⁻) to sources of +V and −V.
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
    """Signed weights as conductances: |w|, and a bias b as a resistor to +V or −V by its sign."""

    def one(path: Any, leaf: Array) -> Array:
        if jax.tree_util.keystr(path[-1:], simple=True) != "b":
            return jnp.abs(leaf)
        return jnp.stack([jnp.maximum(leaf, 0.0), jnp.maximum(-leaf, 0.0)])

    return jax.tree_util.tree_map_with_path(one, drawn)


def non_negative(params: Params) -> Params:
    """The nearest conductances that exist: max(g, 0)."""
    return jax.tree.map(lambda g: jnp.maximum(g, jnp.zeros_like(g)), params)


def drive(own: Params, volts: float) -> Params:
    """Weights under which `forward` gives the current into grounded nodes: b is V(g⁺ − g⁻)."""
    return _biases(own, lambda b: volts * (b[0] - b[1]))


def load(own: Params, factor: float = 1.0) -> Params:
    """Weights under which `forward` of ones gives total conductances: b is g⁺ + g⁻, scaled."""
    return _biases(own, lambda b: factor * (b[0] + b[1]))


def _biases(own: Params, change: Callable[[Array], Array]) -> Params:
    return tuple({**part, "b": change(part["b"])} if "b" in part else part for part in own)


def twice(layer: Layer) -> Layer:
    """Two copies of a layer side by side: outputs `[batch, 2, ...]` from one input.

    Every leaf of its params has the copies on axis 0.
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

    That is Σ_n w_n ½ (v_i − v_j)², a local product, for all phases by one call of `backward`. The
    phases enter by their distances from the first one: ½(v_i − v_j)² is many times its change
    under a nudge, and would lose it in round-off.

    Args:
      below: `[phases, batch, ...]`, or `[1, batch, ...]` where it is the same in all phases.
      above: `[phases, batch, ...]`.
      weights: w, `[phases]`.
      volts: of the biases' sources.

    Returns:
      The derivative by the conductances, summed over the batch; and by the voltages below, which
      is Σ_n w_n Σ_j g_ij (v_i − v_j) for each example; None if these differ from phase to phase.
    """
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

    nowhere = jnp.zeros_like(squares_below)  # the biases' share alone: no current from below
    sums = jnp.sum(contract(weights, above), axis=0, keepdims=True)
    supplied = 0.5 * (volts**2 * total * above.shape[1] + squares_above)
    both, net = (_pull(layer, own, nowhere, seed)[0] for seed in (supplied, volts * sums))
    grads = tuple(
        {**part, "b": jnp.stack([b["b"] - n["b"], b["b"] + n["b"]])} if "b" in part else part
        for part, b, n in zip(grads, both, net, strict=True)
    )
    return grads, dbelow


def _pull(layer: Layer, own: Params, inputs: Array, seeds: Array) -> tuple[Params, Array]:
    own = load(own)  # the biases' values are not read
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
    """Rows whose outer products sum to Σ_n w_n s_n t_n."""
    s, t = below[0], above[0]
    gaps_below, gaps_above = below[1:] - below[:1], above[1:] - above[:1]
    inputs = [s, _moved(below, weights), merge_phases(gaps_below)]
    seeds = [contract(weights, above), t, weighted(weights[1:], gaps_above)]
    return jnp.concatenate(inputs), jnp.concatenate(seeds)


def over(current: Array, conductance: Array) -> Array:
    """I / G; a node that nothing conducts to stays grounded."""
    joined = conductance != 0
    return jnp.where(joined, current, jnp.zeros_like(current)) / jnp.where(
        joined, conductance, jnp.ones_like(conductance)
    )
